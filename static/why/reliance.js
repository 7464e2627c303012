// How much the answer relies on each image: a list with bars, which the timeline repeats, and the numbers of all steps.

import { api } from '../shared/api.js';
import { h, setText, show } from '../shared/dom.js';
import { Bars } from './bars.js';
import { lengthsOf } from './scale.js';
import { Trouble } from './trouble.js';
import { changeOf, natsOf, placesOf, relianceOf, summaryOf } from './words.js';

const WORD = 'How much less likely the answer becomes when the model cannot see an image.';
let made = 0;

export class Reliance {
  #viewer;
  #bars;
  #traceId = null; // whose reliance is shown or on its way
  #shown = [];
  #id = `or-reliance-${(made += 1)}`;

  constructor(viewer) {
    this.#viewer = viewer;
    this.#bars = new Bars(viewer.timeline);
    this.summary = h('p', { class: 'or-why-found', role: 'status' });
    this.trouble = new Trouble();
    this.list = h('ol', { class: 'or-reliance', 'aria-label': 'Reliance on each image' });
    this.table = h('table', { class: 'or-why-numbers' });
    this.numbers = h(
      'details',
      { class: 'or-why-more', hidden: true },
      h('summary', {}, 'each step’s reliance'),
      h('p', { class: 'or-quiet' }, 'In nats. A step has many words and codes, so its numbers are larger.'),
      h(
        'div',
        { class: 'or-why-scroll', tabindex: '0', role: 'region', 'aria-label': 'Each step’s reliance' },
        this.table,
      ),
    );
    this.element = h(
      'section',
      { class: 'or-why-part' },
      h('h3', {}, 'Reliance'),
      h('p', { class: 'or-quiet' }, WORD),
      this.summary,
      this.trouble.element,
      this.list,
      this.numbers,
    );
  }

  /** Measures once per trace. */
  async open(traceId) {
    if (this.#traceId === traceId) return;
    this.#traceId = traceId;
    this.trouble.show(null);
    setText(this.summary, 'measuring …');
    try {
      const { images } = await api.reliance(traceId);
      if (this.#traceId === traceId) this.#draw(images);
    } catch (error) {
      if (this.#traceId !== traceId) return;
      this.#traceId = null;
      setText(this.summary, '');
      this.trouble.show(error, () => this.open(traceId));
    }
  }

  #draw(images) {
    const places = placesOf(images);
    const lengths = lengthsOf(images.map((image) => image.reliance));
    this.#shown = images.map(({ step, reliance }, k) => ({
      step,
      length: lengths[k],
      words: relianceOf(places[k], reliance),
      id: `${this.#id}-${k}`,
    }));
    setText(this.summary, summaryOf(images));
    this.list.replaceChildren(
      ...images.map(({ reliance }, k) => {
        const bar = h('span', { class: 'or-reliance-bar', 'aria-hidden': 'true' });
        bar.style.setProperty('--length', String(lengths[k]));
        return h(
          'li',
          { id: `${this.#id}-${k}`, title: this.#shown[k].words },
          h('span', { class: 'or-sr' }, this.#shown[k].words),
          h('span', { 'aria-hidden': 'true' }, places[k]),
          bar,
          h('span', { class: 'or-num', 'aria-hidden': 'true' }, natsOf(reliance)),
          h('span', { class: 'or-quiet or-reliance-effect', 'aria-hidden': 'true' }, changeOf(reliance)),
        );
      }),
    );
    this.#drawNumbers(images, places);
    this.follow();
  }

  #drawNumbers(images, places) {
    const head = (text) => h('th', { scope: 'col' }, text);
    const row = (name, cells) => h('tr', {}, h('th', { scope: 'row' }, name), cells);
    const cell = (value) => h('td', {}, natsOf(value).replace(' nats', ''));
    const { steps } = this.#viewer.state;
    const rows = steps.map(({ index }, j) =>
      row(
        `step ${index}`,
        images.map((image) => (image.step < index ? cell(image.per_step[j] ?? 0) : h('td', {}, '–'))),
      ),
    );
    this.table.replaceChildren(
      h('thead', {}, h('tr', {}, h('td', {}), places.map(head))),
      h(
        'tbody',
        {},
        rows,
        row(
          'answer',
          images.map((image) => cell(image.reliance)),
        ),
      ),
    );
    show(this.numbers, images.length > 0 && steps.length > 0);
  }

  /** After every change of the viewer: the bars stay on their chips. */
  follow() {
    const longest = new Map(); // of several images of the question
    for (const bar of this.#shown) {
      if (!(longest.get(bar.step)?.length >= bar.length)) longest.set(bar.step, bar);
    }
    this.#bars.update([...longest.values()]);
  }

  /** The panel is closed: what was measured is kept. */
  close() {
    this.#bars.clear();
  }

  /** Another trace. */
  reset() {
    this.close();
    this.#traceId = null;
    this.#shown = [];
    this.list.replaceChildren();
    this.trouble.show(null);
    show(this.numbers, false);
    this.numbers.open = false;
  }
}
