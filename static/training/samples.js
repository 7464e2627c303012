// The latest sampled traces of a job, in the trace viewer, with the parts of their reward.

import { h, setAttr, setText, show } from '../shared/dom.js';
import { Viewer } from '../viewer/viewer.js';
import { short } from '../shared/series.js';
import { traceOf } from './state.js';
import { readQuestion } from '../shared/words.js';
import { rewardRows, stageName, whereOf } from './words.js';

const SHOWN = 12;
const STAYS_MS = 1500;

export class Samples {
  #picked = null; // seq of the selected sample; null = follow the latest
  #shown = null;
  #samples = [];
  #since = 0; // when the latest was shown
  #timer = 0;

  constructor() {
    this.list = h('ul', { class: 'or-sample-list', 'aria-label': 'Sampled traces, newest first' });
    this.live = h(
      'button',
      { type: 'button', class: 'or-chipbutton', 'aria-pressed': 'true', onclick: () => this.#pick(null) },
      'newest',
    );
    this.rewards = h('dl', { class: 'or-rewards' });
    this.advantage = h('p', { class: 'or-quiet or-advantage' });
    this.reference = h('p', { class: 'or-quiet' });
    this.place = h('div', { class: 'or-sample-viewer' });
    this.empty = h('p', { class: 'or-quiet' }, 'Sampled traces appear here while the job runs.');
    this.body = h(
      'div',
      { class: 'or-sample', hidden: true },
      this.place,
      h('div', { class: 'or-sample-side' }, h('h4', {}, 'Reward'), this.rewards, this.advantage, this.reference),
    );
    this.element = h(
      'section',
      { class: 'or-block', 'aria-label': 'Sampled traces' },
      h('div', { class: 'or-block-head' }, h('h3', {}, 'Sampled traces'), h('span', { class: 'or-spring' }), this.live),
      this.empty,
      this.list,
      this.body,
    );
    this.viewer = null;
  }

  reset() {
    clearTimeout(this.#timer);
    this.#picked = null;
    this.#shown = null;
    this.#samples = [];
  }

  /** If a job samples quickly, each latest sample is shown for a minimum time. */
  update(samples, live) {
    if (samples === this.#samples) return;
    clearTimeout(this.#timer);
    const left = STAYS_MS - (performance.now() - this.#since);
    if (live && this.#samples.length && left > 0) {
      this.#timer = setTimeout(() => this.update(samples, false), left);
      return;
    }
    this.#since = performance.now();
    this.#samples = samples;
    show(this.empty, samples.length === 0);
    show(this.live, samples.length > 0);
    this.#drawList();
    const newest = samples[samples.length - 1];
    const wanted = samples.find((one) => one.seq === this.#picked) ?? newest;
    show(this.body, Boolean(wanted));
    if (wanted && wanted.seq !== this.#shown) this.#show(wanted);
  }

  #pick(seq) {
    this.#picked = seq;
    setAttr(this.live, 'aria-pressed', seq === null);
    const samples = this.#samples;
    const wanted = samples.find((one) => one.seq === seq) ?? samples[samples.length - 1];
    if (wanted) this.#show(wanted);
    this.#drawList();
  }

  #drawList() {
    const shown = this.#samples.slice(-SHOWN).reverse();
    const current = this.#picked ?? shown[0]?.seq;
    const before = new Map([...this.list.children].map((item) => [item.dataset.seq, item]));
    this.list.replaceChildren(
      ...shown.map((sample) => {
        const item = before.get(String(sample.seq)) ?? this.#item(sample);
        setAttr(item.firstChild, 'aria-current', sample.seq === current ? 'true' : null);
        return item;
      }),
    );
  }

  #item(sample) {
    const trace = traceOf(sample);
    const last = [...trace.steps].reverse().find((step) => step.image)?.image ?? trace.images[0];
    const total = sample.rewards?.total;
    const unseen = (text) => h('span', { class: 'or-sr' }, text);
    const button = h(
      'button',
      { type: 'button', class: 'or-sample-chip' },
      h('span', { class: 'or-thumb' }, last ? h('img', { src: last.url, alt: '', class: 'or-pixels' }) : null),
      unseen(`Sample of ${stageName(sample.stage)}, `),
      h('span', {}, whereOf(sample)),
      ...(typeof total === 'number' ? [unseen(', reward '), h('strong', { class: 'or-num' }, short(total))] : []),
      unseen(`: ${readQuestion(sample.question ?? '')}`),
    );
    button.addEventListener('click', () => this.#pick(sample.seq));
    return h('li', { 'data-seq': sample.seq }, button);
  }

  #show(sample) {
    this.#shown = sample.seq;
    this.viewer ??= new Viewer(this.place, { label: 'Sampled trace', hint: 'This trace has no image.' });
    const words = `${stageName(sample.stage)}, ${whereOf(sample)}`;
    this.viewer.show({ ...traceOf(sample), sample: words }, { reference: sample.reference ?? null });
    this.rewards.replaceChildren(
      ...rewardRows(sample.rewards).flatMap(([name, value, share]) => [
        h('dt', {}, name),
        h(
          'dd',
          {},
          h('span', { class: 'or-meter', 'aria-hidden': 'true' }, h('span', { style: `width:${share * 100}%` })),
          h('span', { class: 'or-num' }, short(value)),
        ),
      ]),
    );
    const advantage = sample.advantage;
    setText(
      this.advantage,
      typeof advantage === 'number'
        ? `Advantage ${short(advantage)}: ${advantage > 0 ? 'better than its group; its probability is raised.' : advantage < 0 ? 'worse than its group; its probability is lowered.' : 'equal to its group; no update.'}`
        : '',
    );
    setText(
      this.reference,
      sample.reference !== null && sample.reference !== undefined ? `Reference answer: ${sample.reference}` : '',
    );
  }
}
