// The candidates of a step's image with their scores, shown on demand below the image.

import { h, openDialog, setAttr, show } from '../shared/dom.js';

/** Scores as text, the best of them marked: [{label, chosen, url}]. Pure, for tests. */
export function candidatesOf(step) {
  const { images = [], scores = [], chosen = 0 } = step?.candidates ?? {};
  return images.map((image, k) => {
    const score = Number.isFinite(scores[k]) ? scores[k].toFixed(2).replace('-', '−') : 'no score';
    return { url: image.url, score, chosen: k === chosen, label: `Candidate ${k + 1} of ${images.length}` };
  });
}

export class Candidates {
  #key = '';

  constructor() {
    this.list = h('ol', { class: 'or-candidate-list' });
    this.strip = h(
      'div',
      { class: 'or-candidates', role: 'group', 'aria-label': 'Candidates' },
      h('p', { class: 'or-quiet' }, 'Drawn for this step. The score says how well an image fits its words.'),
      this.list,
    );
    this.button = h(
      'button',
      { type: 'button', class: 'or-chipbutton', 'aria-expanded': 'false', title: 'Candidates (c)' },
      'candidates',
    );
    this.button.addEventListener('click', () => this.toggle());
    show(this.button, false);
    show(this.strip, false);
  }

  /** False if this step has none. */
  toggle() {
    if (this.button.hidden) return false;
    show(this.strip, this.strip.hidden);
    setAttr(this.button, 'aria-expanded', !this.strip.hidden);
    return true;
  }

  /** True if Escape closed them. */
  close() {
    if (this.strip.hidden) return false;
    this.toggle();
    this.button.focus();
    return true;
  }

  update(step) {
    const found = candidatesOf(step);
    show(this.button, found.length > 1);
    if (found.length < 2 && !this.strip.hidden) {
      show(this.strip, false);
      setAttr(this.button, 'aria-expanded', 'false');
    }
    const key = JSON.stringify(found);
    if (key === this.#key) return;
    this.#key = key;
    this.list.replaceChildren(...found.map((one) => this.#item(one)));
  }

  #item({ url, score, chosen, label }) {
    const words = `${label}, ${score}${chosen ? ', chosen' : ''}`;
    const image = h('img', { src: url, alt: label, class: 'or-pixels' });
    const button = h(
      'button',
      { type: 'button', class: 'or-candidate', 'data-chosen': chosen },
      image,
      h('span', { class: 'or-num' }, score),
      h('span', { class: 'or-candidate-word' }, chosen ? 'chosen' : ''),
    );
    button.addEventListener('click', () => {
      const full = h('img', { src: url, alt: words, class: 'or-full or-pixels' });
      openDialog(words, h('figure', { class: 'or-full-figure' }, full, h('figcaption', {}, words)));
    });
    return h('li', {}, button);
  }
}
