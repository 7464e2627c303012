// Two traces side by side: their steps aligned, other images outlined, the first step with another text marked.

import { h, setAttr, setText } from '../shared/dom.js';
import { Viewer } from '../viewer/viewer.js';
import { differencesOf, wordsOf } from './differences.js';

const SIDES = ['left', 'right'];
const LABELS = { left: 'First trace', right: 'Second trace' };

export class Compare {
  #viewers = null;
  #ids = [null, null];

  /** onClose(): back to a single trace. */
  constructor({ onClose }) {
    this.word = h('p', { class: 'or-compare-word', role: 'status' });
    const close = h('button', { type: 'button', class: 'or-secondary', onclick: onClose }, 'Close');
    this.places = Object.fromEntries(SIDES.map((side) => [side, h('div', { class: 'or-compare-viewer' })]));
    const column = (side) => h('div', { class: 'or-compare-column', 'data-side': side }, this.places[side]);
    this.element = h(
      'section',
      { class: 'or-compare-two', tabindex: '-1', 'aria-label': 'Two traces', hidden: true },
      h(
        'div',
        { class: 'or-wall-top' },
        h('h2', { class: 'or-wall-head' }, 'Two traces'),
        h('span', { class: 'or-spring' }),
        close,
      ),
      this.word,
      h('div', { class: 'or-compare-pair' }, SIDES.map(column)),
    );
  }

  open(left, right) {
    this.#viewers ??= this.#make();
    this.#ids = [left, right];
    SIDES.forEach((side, k) => this.#viewers[side].open(this.#ids[k]));
  }

  get ids() {
    return this.#ids;
  }

  #make() {
    const viewers = {};
    for (const side of SIDES) {
      const other = side === 'left' ? 'right' : 'left';
      viewers[side] = new Viewer(this.places[side], {
        label: LABELS[side],
        hint: 'No images.',
        again: 'open it alone to ask again',
        onGo: (at) => viewers[other]?.keepStep(at),
        onState: () => this.#mark(viewers),
      });
    }
    return viewers;
  }

  /** Stops following both. */
  rest() {
    if (!this.#viewers) return;
    for (const viewer of Object.values(this.#viewers)) viewer.destroy();
    this.#viewers = null;
  }

  #mark({ left, right }) {
    if (!left || !right) return;
    const { text, images, missing } = differencesOf(left.state, right.state);
    for (const viewer of [left, right]) {
      const { steps } = viewer.state;
      for (const { index } of steps) {
        const differs = images.includes(index) || missing.includes(index);
        setAttr(viewer.timeline.chipOf(index), 'data-differs', differs ? 'true' : null);
        setAttr(viewer.words.rowOf(index), 'data-parts', text === index ? 'true' : null);
      }
      const shown = Math.min(viewer.at, steps[steps.length - 1]?.index ?? 0);
      const other = images.includes(shown) || missing.includes(shown);
      setAttr(viewer.imageView.element, 'data-differs', other ? 'true' : null);
    }
    const ready = [left, right].every(({ state }) => state.traceId && state.status !== 'loading');
    setText(this.word, ready ? wordsOf(left.state, right.state) : '');
  }
}
