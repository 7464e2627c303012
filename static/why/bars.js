// The bar of each image under its chip of the timeline.

import { h, setAttr } from '../shared/dom.js';

export class Bars {
  #timeline;
  #bars = new Map(); // chip -> bar

  constructor(timeline) {
    this.#timeline = timeline;
  }

  #chip(step) {
    return step === 0 ? this.#timeline.list.querySelector('.or-chip') : this.#timeline.chipOf(step);
  }

  /** After every change of the viewer. bars: `[{step, length, words, id}]`; id: of the element with these words. */
  update(bars) {
    for (const { step, length, words, id } of bars) {
      const chip = this.#chip(step);
      if (!chip) continue;
      if (!this.#bars.has(chip)) {
        const bar = h('span', { class: 'or-chip-bar', 'aria-hidden': 'true' });
        chip.append(bar);
        this.#bars.set(chip, bar);
      }
      const bar = this.#bars.get(chip);
      bar.style.setProperty('--length', String(length));
      setAttr(bar, 'data-length', length.toFixed(3));
      setAttr(chip, 'aria-describedby', id);
      setAttr(chip, 'title', `${chip.getAttribute('aria-label')}. ${words}`);
    }
  }

  clear() {
    for (const [chip, bar] of this.#bars) {
      bar.remove();
      setAttr(chip, 'aria-describedby', null);
      setAttr(chip, 'title', chip.getAttribute('aria-label'));
    }
    this.#bars.clear();
  }
}
