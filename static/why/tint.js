// Words tinted by their probability, in the place of a text that is shown already.

import { h } from '../shared/dom.js';
import { BINS, binOf } from './scale.js';
import { percentOf } from './words.js';

const NAME = 'or-token';

/** A word, `bin` as in BINS; null = given. */
export function word(text, bin, title = null) {
  const span = h('span', { class: NAME, 'data-bin': bin ?? 'given', title }, text);
  if (bin !== null) span.style.setProperty('--alpha', String(BINS[bin].alpha));
  return span;
}

/** Shows the pieces of `element`'s own text (scale.js); does nothing if they are shown. */
export function tint(element, pieces) {
  if (element.querySelector(`.${NAME}`)) return;
  element.replaceChildren(
    ...pieces.map(({ text, logprob }) => {
      if (logprob === undefined) return text;
      return logprob === null ? word(text, null, 'given') : word(text, binOf(logprob), percentOf(logprob));
    }),
  );
}

export function untint(element) {
  if (element.querySelector(`.${NAME}`)) element.replaceChildren(element.textContent);
}
