// Two traces side by side: their steps aligned, other images outlined, the first step with another text marked.

import { h, setAttr, setText, show } from '../shared/dom.js';
import { Notice } from '../viewer/notice.js';
import { Viewer } from '../viewer/viewer.js';
import { differencesOf, wordsOf } from './differences.js';
import { missingOf, wrongAddress } from './trouble.js';

const NONE = { text: null, images: [], missing: [] };
const SIDES = ['left', 'right'];
const LABELS = { left: 'First trace', right: 'Second trace' };

export class Compare {
  #viewers = null;
  #ids = [];
  #warned = 'null';

  /** onClose(): back to a single trace. */
  constructor({ onClose }) {
    this.word = h('p', { class: 'or-compare-word', role: 'status' });
    const close = h('button', { type: 'button', class: 'or-secondary', onclick: onClose }, 'Close');
    this.places = Object.fromEntries(SIDES.map((side) => [side, h('div', { class: 'or-compare-viewer' })]));
    const column = (side) => h('div', { class: 'or-compare-column', 'data-side': side }, this.places[side]);
    this.columns = Object.fromEntries(SIDES.map((side) => [side, column(side)]));
    this.notice = new Notice();
    this.notice.update(null);
    this.pair = h('div', { class: 'or-compare-pair' }, Object.values(this.columns));
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
      this.notice.element,
      this.word,
      this.pair,
    );
  }

  /** ids: those of the address, of which there should be two. */
  open(ids) {
    this.#ids = ids;
    setText(this.word, '');
    this.#warn(wrongAddress(ids));
    show(this.pair, ids.length === 2);
    if (ids.length !== 2) return;
    this.#viewers ??= this.#make();
    SIDES.forEach((side, k) => this.#viewers[side].open(ids[k]));
  }

  /** The trace to show alone, if there is one. */
  get one() {
    const known = this.#ids.filter((id, k) => !this.#viewers?.[SIDES[k]].state.missing);
    return known[known.length - 1] ?? null;
  }

  // An alert is read out when it changes: the same one stays.
  #warn(notice) {
    const said = JSON.stringify(notice);
    if (said === this.#warned) return;
    this.#warned = said;
    this.notice.update(notice);
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
    const states = [left.state, right.state];
    this.#warn(missingOf(...states));
    SIDES.forEach((side, k) => show(this.columns[side], !states[k].missing));
    const ready = states.every(({ traceId, status }) => traceId && status !== 'loading');
    const { text, images, missing } = ready ? differencesOf(...states) : NONE;
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
    setText(this.word, ready ? wordsOf(...states) : '');
  }
}
