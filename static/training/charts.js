// The charts of one stage with a shared step axis and cursor, by pointer or arrow keys.

import { h, setText, show } from '../shared/dom.js';
import { Chart } from './chart.js';
import { nearest, short, stepsOf } from '../shared/series.js';

const unit = [0, 1];

// In display order; charts without values in a stage are hidden.
export const CHARTS = [
  {
    title: 'Loss',
    about: 'Cross-entropy of text and image codes, and the perception alignment loss',
    log: true,
    lines: [
      ['loss/text', 'text'],
      ['loss/image', 'image'],
      ['loss/perception', 'perception'],
    ],
  },
  {
    title: 'Reward',
    about: 'Means over the sampled traces of a step',
    within: unit,
    lines: [
      ['reward/accuracy', 'accuracy'],
      ['reward/format', 'format'],
      ['reward/perception', 'perception'],
      ['reward/total', 'total'],
    ],
  },
  {
    title: 'KL to the reference',
    about: 'How far the policy has moved from its start',
    zero: true,
    lines: [['policy/kl', 'KL']],
  },
  {
    title: 'Entropy',
    about: 'Entropy of the policy, for text and images',
    zero: true,
    lines: [
      ['policy/entropy_text', 'text'],
      ['policy/entropy_image', 'image'],
    ],
  },
  {
    title: 'Clip fraction',
    about: 'Share of tokens whose ratio was clipped',
    zero: true,
    lines: [['policy/clip_frac', 'clipped']],
  },
  {
    title: 'Groups dropped',
    about: 'Share of prompts whose answers all got the same reward',
    within: unit,
    lines: [['groups/dropped_share', 'dropped']],
  },
  {
    title: 'Suspicious images',
    about: 'Blank, copied, smoother than real images, or malformed',
    zero: true,
    lines: [
      ['pictures/blank_share', 'blank'],
      ['pictures/copied_share', 'copied'],
      ['pictures/capped_share', 'capped'],
      ['pictures/malformed_share', 'malformed'],
    ],
  },
  {
    title: 'Own images',
    about: 'Answers that change when an image is replaced, and the gain from reference images',
    zero: true,
    lines: [
      ['images/causal_share', 'causal share'],
      ['images/oracle_gain', 'oracle gain'],
    ],
  },
  { title: 'Speed', about: 'Tokens per second', zero: true, lines: [['speed/tokens_per_s', 'tokens/s']] },
];

export class Charts {
  #stage = null;
  #at = null;
  #x = [0, 1];
  #frame = 0;

  constructor() {
    this.charts = CHARTS.map((spec) => new Chart(spec, (step) => this.#cursor(step)));
    this.where = h('p', { class: 'or-quiet or-charts-where', 'aria-live': 'off' });
    this.grid = h(
      'div',
      {
        class: 'or-charts',
        tabindex: '0',
        role: 'region',
        'aria-label': 'Charts; the arrow keys move along the steps',
      },
      this.charts.map((chart) => chart.element),
    );
    this.table = h('table', { class: 'or-table' });
    this.all = h(
      'details',
      { class: 'or-details' },
      h('summary', {}, 'all values of the latest step'),
      h('div', { class: 'or-scroll', tabindex: '0', role: 'region', 'aria-label': 'All values' }, this.table),
    );
    this.empty = h('p', { class: 'or-quiet or-charts-empty' });
    this.element = h('div', {}, this.empty, this.where, this.grid, this.all);
    this.grid.addEventListener('keydown', (event) => this.#key(event));
    this.all.addEventListener('toggle', () => this.#drawTable());
  }

  /** Shows the values of one stage; `words` is the text without curves; `single`: it has values of one step only. */
  update(stage, words, single = false) {
    this.#stage = stage;
    // one point, as of a benchmark, is no curve: its report has the numbers
    const any = single ? [] : this.charts.filter((chart) => chart.has(stage));
    for (const chart of this.charts) show(chart.element, any.includes(chart));
    show(this.grid, any.length > 0);
    show(this.all, Boolean(stage) && Object.keys(stage.latest).length > 0);
    show(this.empty, !any.length);
    setText(this.empty, any.length ? '' : words);
    const steps = stage ? stepsOf(Object.values(stage.series)) : [];
    this.#x = steps.length ? [Math.min(steps[0], 1), steps[steps.length - 1]] : [0, 1];
    if (this.#at !== null && this.#at > this.#x[1]) this.#at = null;
    for (const chart of any) chart.update(stage, this.#x, this.#at);
    this.#say();
    this.#drawTable();
  }

  #cursor(step) {
    this.#at = step;
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      for (const chart of this.charts) chart.setCursor(this.#at);
      this.#say();
    });
  }

  #say() {
    const newest = this.#stage ? `step ${this.#x[1].toLocaleString('en')}` : '';
    const text = this.#at === null ? newest : `step ${this.#at.toLocaleString('en')}`;
    setText(this.where, text && `values at ${text}`);
    show(this.where, Boolean(text) && !this.grid.hidden);
  }

  #key(event) {
    const steps = this.#stage ? stepsOf(Object.values(this.#stage.series)) : [];
    if (!steps.length) return;
    const from = this.#at ?? steps[steps.length - 1];
    const moves = {
      ArrowLeft: () => [...steps].reverse().find((step) => step < from) ?? steps[0],
      ArrowRight: () => steps.find((step) => step > from) ?? null,
      Home: () => steps[0],
      End: () => null,
      Escape: () => null,
    };
    if (!moves[event.key] || (event.key === 'Escape' && this.#at === null)) return;
    event.preventDefault();
    this.where.setAttribute('aria-live', 'polite');
    this.#cursor(moves[event.key]());
  }

  #drawTable() {
    if (!this.all.open || !this.#stage) return;
    const names = Object.keys(this.#stage.latest).sort();
    const seen = new Map([...this.table.rows].map((row) => [row.dataset.metric, row]));
    const rows = names.map((name) => {
      const row =
        seen.get(name) ??
        h('tr', { 'data-metric': name }, h('th', { scope: 'row' }, name), h('td', { class: 'or-num' }));
      const point = nearest(this.#stage.series[name], Infinity);
      setText(row.lastChild, short(this.#stage.latest[name]));
      row.lastChild.title = point ? `step ${point.last}` : '';
      return row;
    });
    this.table.replaceChildren(...rows);
  }
}
