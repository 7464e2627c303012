// What went wrong in a part of the panel, in words, and a button where trying again can help.

import { h, setText, show } from '../shared/dom.js';

const canHelp = ({ status }) => status === 0 || status === 429 || status >= 500;

export class Trouble {
  #retry = null;
  #error = null;

  constructor() {
    this.text = h('span', {});
    this.again = h('button', { type: 'button', class: 'or-link', onclick: () => this.#retry() }, 'try again');
    this.element = h('p', { class: 'or-error', role: 'alert', hidden: true }, this.text, ' ', this.again);
  }

  /** error: an ApiError, or null; retry(), optional: asks again. */
  show(error, retry = null) {
    this.#retry = retry;
    this.#error = error;
    setText(this.text, error?.message ?? '');
    show(this.again, Boolean(error && retry) && canHelp(error));
    show(this.element, Boolean(error));
  }

  /** The server is back. */
  back() {
    if (this.#error && canHelp(this.#error)) this.#retry?.();
  }
}
