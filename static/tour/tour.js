// Three notes for the first visit, beside what they are about. They never come again once they were read or skipped.

import { h, setText, show } from '../shared/dom.js';

const KEY = 'omni-r1-tour';
const STEPS = [
  {
    at: '#or-ask',
    title: 'Ask about an image',
    text: 'Choose an example, or bring your own image. Reason runs to the answer; Step pauses after each image.',
  },
  {
    at: '#or-samples',
    title: 'Ask several times',
    text: 'With more than one sample, all answers appear side by side, with their shares.',
  },
  {
    at: '#or-trace',
    title: 'Step in',
    text: 'Edit a step of an ended or paused trace: change its text, draw on its image, and the model goes on from there.',
  },
];

const seen = () => {
  try {
    return localStorage.getItem(KEY) !== null;
  } catch {
    return true; // it could not be skipped for good
  }
};

class Tour {
  #step = -1;

  constructor() {
    this.count = h('span', { class: 'or-quiet or-num' });
    this.title = h('h2', {});
    this.text = h('p', {});
    this.next = h('button', { type: 'button', class: 'or-secondary', onclick: () => this.#go(this.#step + 1) });
    this.skip = h('button', { type: 'button', class: 'or-link', onclick: () => this.end() }, 'Skip');
    this.element = h(
      'aside',
      { class: 'or-tour', 'aria-label': 'Tour' },
      h('div', { class: 'or-tour-words', 'aria-live': 'polite' }, this.title, this.text),
      h('div', { class: 'or-tour-bar' }, this.count, h('span', { class: 'or-spring' }), this.skip, this.next),
    );
    this.element.addEventListener('keydown', (event) => event.key === 'Escape' && this.end());
  }

  begin(container) {
    container.append(this.element);
    this.#go(0);
  }

  #mark() {
    for (const { at } of STEPS) document.querySelector(at)?.classList.remove('or-toured');
    if (this.#step in STEPS) document.querySelector(STEPS[this.#step].at)?.classList.add('or-toured');
  }

  #go(step) {
    if (step >= STEPS.length) {
      this.end();
      return;
    }
    this.#step = step;
    const last = step === STEPS.length - 1;
    setText(this.title, STEPS[step].title);
    setText(this.text, STEPS[step].text);
    setText(this.count, `${step + 1} of ${STEPS.length}`);
    setText(this.next, last ? 'Done' : 'Next');
    show(this.skip, !last);
    this.#mark();
  }

  end() {
    this.#step = -1;
    this.#mark();
    this.element.remove();
    try {
      localStorage.setItem(KEY, 'seen');
    } catch {
      // it comes again
    }
  }
}

/** Shows the tour on a first visit. */
export function offerTour() {
  const container = document.querySelector('.gradio-container');
  if (!container || seen() || document.querySelector('.or-tour')) return;
  new Tour().begin(container);
}
