// The stepper beside Reason: how many samples of the question, 1 … 16.

import { h, setAttr, setText, show } from '../shared/dom.js';

export const MOST = 16;

/** A whole number from 1 to 16; 1 for anything else. Pure, for tests. */
export function countOf(text) {
  const value = Math.round(Number(text));
  return Number.isFinite(value) ? Math.min(MOST, Math.max(1, value)) : 1;
}

export class Samples {
  /** note: a line that says what the number applies to. */
  constructor(element, note) {
    this.note = note;
    const step = (by, label, face) =>
      h(
        'button',
        { type: 'button', class: 'or-round', 'aria-label': label, onclick: () => this.#set(this.value + by) },
        face,
      );
    this.less = step(-1, 'Fewer samples', '−');
    this.more = step(1, 'More samples', '+');
    this.field = h('input', {
      type: 'text',
      inputmode: 'numeric',
      role: 'spinbutton',
      value: '1',
      class: 'or-samples-field',
      autocomplete: 'off',
      'aria-label': 'Samples',
      'aria-valuemin': 1,
      'aria-valuemax': MOST,
    });
    this.field.addEventListener('change', () => this.#set(countOf(this.field.value)));
    this.field.addEventListener('focus', () => this.field.select());
    this.field.addEventListener('keydown', (event) => {
      const by = { ArrowUp: 1, ArrowDown: -1, Home: -MOST, End: MOST }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      this.#set(this.value + by);
    });
    element.replaceChildren(
      h(
        'div',
        {
          class: 'or-samples',
          role: 'group',
          'aria-label': 'Number of samples',
          title: 'How many samples Reason draws',
        },
        this.less,
        this.field,
        this.more,
      ),
    );
    this.#set(1);
  }

  get value() {
    return countOf(this.field.value);
  }

  #set(value) {
    const count = countOf(value);
    this.field.value = String(count);
    setAttr(this.field, 'aria-valuenow', count);
    setAttr(this.field, 'aria-valuetext', count === 1 ? '1 sample' : `${count} samples`);
    this.less.disabled = count === 1;
    this.more.disabled = count === MOST;
    show(this.note, count > 1); // before the text: then screen readers announce it
    setText(this.note, count > 1 ? `Reason draws ${count} samples; Step draws one.` : '');
  }
}
