// Two buttons that rate a trace as good or bad; pressing one again removes the rating.

import { h, icon, setAttr } from '../shared/dom.js';

const KINDS = [
  { value: 1, name: 'Good', picture: 'star' },
  { value: -1, name: 'Bad', picture: 'down' },
];

export class Rating {
  #value = null;

  /** onRate(value): 1, -1 or null. */
  constructor({ onRate }) {
    this.buttons = KINDS.map(({ value, name, picture }) =>
      h(
        'button',
        {
          type: 'button',
          class: 'or-round or-rate',
          'data-rating': value,
          'aria-label': name,
          'aria-pressed': 'false',
          onclick: () => onRate(this.#value === value ? null : value),
        },
        icon(picture),
      ),
    );
    this.element = h('div', { class: 'or-rating', role: 'group', 'aria-label': 'Rating' }, this.buttons);
  }

  update(value) {
    this.#value = value;
    KINDS.forEach((kind, k) => {
      const pressed = kind.value === value;
      setAttr(this.buttons[k], 'aria-pressed', pressed);
      setAttr(this.buttons[k], 'title', pressed ? `${kind.name}: remove this rating` : kind.name);
    });
  }
}
