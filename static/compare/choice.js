// Choosing two traces to compare on the wall.

import { h, setAttr, setText, show } from '../shared/dom.js';

export class Choice {
  #chosen = new Map(); // trace id -> its button

  /** onCompare(left, right). */
  constructor({ onCompare }) {
    this.word = h('span', { class: 'or-quiet' });
    this.go = h(
      'button',
      { type: 'button', class: 'or-secondary', onclick: () => onCompare(...this.#chosen.keys()) },
      'Compare the two',
    );
    this.element = h('div', { class: 'or-choice', role: 'status' }, this.word, this.go);
    this.#draw();
  }

  /** A third choice replaces the first one. */
  toggle(traceId, button) {
    if (this.#chosen.has(traceId)) this.#drop(traceId);
    else {
      if (this.#chosen.size === 2) this.#drop(this.#chosen.keys().next().value);
      this.#chosen.set(traceId, button);
      setAttr(button, 'aria-pressed', true);
    }
    this.#draw();
  }

  #drop(traceId) {
    setAttr(this.#chosen.get(traceId), 'aria-pressed', false);
    this.#chosen.delete(traceId);
  }

  clear() {
    for (const traceId of [...this.#chosen.keys()]) this.#drop(traceId);
    this.#draw();
  }

  #draw() {
    setText(this.word, this.#chosen.size === 1 ? 'Choose another one to compare' : '');
    show(this.go, this.#chosen.size === 2);
  }
}
