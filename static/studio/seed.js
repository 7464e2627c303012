// The seed field after a trace whose seed the server drew: it gets that seed, so that Reason repeats the trace.
//
// A note says so, because the field is folded away, and offers a random seed again. Another question, or the user's own
// value, ends it.

import { appears, h, show } from '../shared/dom.js';

const FIELD = '#or-seed input, #or-seed textarea';

export class Seed {
  #copied = null; // the seed in the field, if this class has put it there
  #drawn = null; // id of the running trace whose seed the server draws

  constructor(note) {
    this.note = note;
    document.addEventListener('input', ({ target }) => {
      if (target.matches(FIELD) && target.value !== this.#copied) this.#say(null);
    });
  }

  /** The values of the sampling fields; Gradio draws the seed's only when they are unfolded. */
  in(sampling) {
    return this.#copied === null ? sampling : { ...sampling, seed: this.#copied };
  }

  /** A trace has been started; drawn: the server draws its seed. */
  started(traceId, drawn) {
    this.#drawn = drawn ? traceId : null;
  }

  /** A trace has ended: copies its seed if it was drawn. */
  ended(traceId, seed) {
    if (traceId !== this.#drawn || seed === null) return;
    this.#drawn = null;
    this.#write(String(seed));
  }

  /** Another question: its seed is drawn again. */
  forget() {
    this.#drawn = null;
    if (this.#copied !== null) this.#write(null);
  }

  async #write(seed) {
    this.#say(seed);
    let field = document.querySelector(FIELD);
    if (!field) {
      field = await appears(FIELD); // once the fields are unfolded
      for (let k = 0; k < 2; k += 1) await new Promise(requestAnimationFrame); // Gradio sets its first value
    }
    if (this.#copied !== seed) return;
    field.value = seed ?? '';
    field.dispatchEvent(new Event('input', { bubbles: true }));
  }

  #say(seed) {
    if (seed === this.#copied) return;
    this.#copied = seed;
    show(this.note, seed !== null);
    if (seed === null) return this.note.replaceChildren();
    const again = h('button', { type: 'button', class: 'or-link', onclick: () => this.forget() }, 'new seed');
    return this.note.replaceChildren(h('span', { title: `Seed ${seed}` }, 'Reason repeats it'), again);
  }
}
