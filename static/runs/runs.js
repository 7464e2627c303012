// The Runs page: a table of all jobs, and one chart of those that are chosen. `?runs=ID,ID&metric=KEY` or
// `?sweep=ID` selects them.
//
// It holds no state of its own: everything comes from GET /v1/jobs and GET /v1/jobs/metrics.

import { urlOf } from '../shared/address.js';
import { api } from '../shared/api.js';
import { serve } from '../shared/bridge.js';
import { Place, h, setAttr, setText, show } from '../shared/dom.js';
import { short } from '../shared/series.js';
import { isLive } from '../training/state.js';
import { METHODS, stageName } from '../training/words.js';
import { onBack } from '../viewer/server.js';
import { openEdit } from './edit.js';
import { Plot } from './plot.js';
import { MOST_RUNS, labelsOf, lookOf, smoothed } from './scale.js';
import { RunTable } from './table.js';

const PAGE = 100;
const LOOK_EVERY_MS = 5000;
const POINTS = [1000, 600]; // of a run, and of each of many
const MANY = 20;
const FIRST_CHOICES = ['loss/ce', 'reward/total', 'accuracy/all'];

class Runs {
  #jobs = [];
  #hasMore = false;
  #chosen = new Set();
  #series = []; // of the chosen runs
  #numbers = new Map(); // of the metric, by job id
  #keys = [];
  #key = '';
  #unknown = ''; // what to say of ids in the address
  #timer = 0;
  #turn = 0;
  #place = new Place();

  mount(element) {
    return this.#place.into(element, () => this.#begin(element));
  }

  async #begin(element) {
    this.plot = new Plot({ onView: () => this.#zoom(), onCursor: () => this.#read() });
    this.table = new RunTable({
      choose: (id, chosen) => this.#choose(id, chosen),
      edit: (job) => this.#edit(job),
      more: () => this.#page(),
    });
    element.replaceChildren(this.#chart(), this.table.element);
    document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && this.refresh());
    onBack(() => this.refresh());
    const asked = new URLSearchParams(location.search);
    this.#key = asked.get('metric') ?? '';
    const ids = (asked.get('runs') ?? '').split(',').filter(Boolean);
    const sweep = asked.get('sweep');
    if (sweep) ids.push(...(await this.#ofSweep(sweep)));
    this.#chosen = new Set(ids.slice(0, MOST_RUNS));
    await this.refresh();
    document.documentElement.dataset.runs = 'ready';
  }

  #chart() {
    this.metric = h('select', { 'aria-label': 'Metric', onchange: () => this.#pick(this.metric.value) });
    this.smooth = h('input', { type: 'range', min: 0, max: 0.99, step: 0.01, value: 0, oninput: () => this.#draw() });
    this.log = h('input', { type: 'checkbox', onchange: () => this.#draw() });
    this.whole = h(
      'button',
      { type: 'button', class: 'or-secondary', hidden: true, onclick: () => this.plot.reset() },
      'All steps',
    );
    this.none = h('button', { type: 'button', class: 'or-secondary', onclick: () => this.#clear() }, 'Clear');
    this.where = h('p', { class: 'or-quiet or-num' });
    this.note = h('p', { class: 'or-quiet', role: 'status' });
    this.legend = h('ul', { class: 'or-runs-legend', 'aria-label': 'Values at the cursor' });
    return h(
      'section',
      { class: 'or-block', 'aria-label': 'Chart' },
      h(
        'div',
        { class: 'or-block-head' },
        h('h2', {}, 'Runs'),
        h('span', { class: 'or-spring' }),
        h('label', { class: 'or-field or-runs-metric' }, h('span', {}, 'Metric'), this.metric),
        h('label', { class: 'or-field' }, h('span', {}, 'Smoothing'), this.smooth),
        h('label', { class: 'or-check' }, this.log, 'Log axis'),
        this.whole,
        this.none,
      ),
      this.note,
      this.plot.element,
      this.where,
      this.legend,
    );
  }

  // ---- data

  /** Reloads the latest jobs and the metrics; repeats while a run is live and the page is visible. */
  async refresh() {
    clearTimeout(this.#timer);
    const turn = ++this.#turn;
    try {
      const { data, has_more: hasMore } = await api.jobs({ limit: PAGE });
      const older = this.#jobs.slice(PAGE).filter((job) => !data.some((one) => one.id === job.id));
      if (turn !== this.#turn) return;
      this.#jobs = [...data, ...older];
      if (!older.length) this.#hasMore = hasMore;
      await this.#chosenElsewhere();
      await this.#load();
    } catch (error) {
      if (turn === this.#turn) this.table.say(error.message);
    }
    if (document.visibilityState === 'visible' && this.#jobs.some(isLive)) {
      this.#timer = setTimeout(() => this.refresh(), LOOK_EVERY_MS);
    }
  }

  // runs of the address that are older than the first page
  async #chosenElsewhere() {
    const missing = [...this.#chosen].filter((id) => !this.#jobs.some((job) => job.id === id));
    const found = await Promise.all(missing.map((id) => api.job(id).catch(() => null)));
    this.#jobs.push(...found.filter(Boolean));
    const unknown = missing.filter((id, k) => !found[k]);
    for (const id of unknown) this.#chosen.delete(id);
    if (unknown.length) this.#unknown = `Not on this server: ${unknown.join(', ')}. `;
  }

  // the ids of a sweep's runs
  async #ofSweep(sweepId) {
    try {
      const { data } = await api.jobs({ limit: PAGE, sweep: sweepId });
      return data.map((job) => job.id).reverse();
    } catch (error) {
      setText(this.note, error.message);
      return [];
    }
  }

  async #page() {
    const last = this.#jobs.at(-1);
    try {
      const { data, has_more: hasMore } = await api.jobs({ limit: PAGE, after: last.id });
      this.#jobs = [...this.#jobs, ...data.filter((job) => !this.#jobs.some((one) => one.id === job.id))];
      this.#hasMore = hasMore;
      await this.#load();
    } catch (error) {
      this.table.say(error.message);
    }
  }

  /** The chosen metric of all runs for the table, and at the same time in detail of the chosen ones. */
  async #load() {
    if (!this.#jobs.length) return this.#draw();
    const groups = [];
    for (let k = 0; k < this.#jobs.length; k += PAGE) groups.push(this.#jobs.slice(k, k + PAGE).map((job) => job.id));
    const [known] = await Promise.all([
      Promise.all(groups.map((ids) => api.series(ids, this.#key ? [this.#key] : [], { points: 5 }))),
      this.#fetch(),
    ]);
    this.#keys = [...new Set(known.flatMap(({ keys }) => keys.map(({ key }) => key)))].sort();
    if (!this.#keys.includes(this.#key) && this.#keys.length) {
      this.#key = FIRST_CHOICES.find((key) => this.#keys.includes(key)) ?? this.#keys[0];
      return this.#load();
    }
    this.#numbers = new Map();
    for (const one of known.flatMap(({ data }) => data)) {
      // a comparison within a benchmark is no result of the run
      if (!one.stage.includes(':')) this.#numbers.set(one.job_id, one);
    }
    return this.#draw();
  }

  async #fetch() {
    const [first, last] = this.plot.zoomed ? this.plot.view.map(Math.round) : [null, null];
    const ids = [...this.#chosen];
    const range = {
      points: POINTS[ids.length > MANY ? 1 : 0],
      ...(first === null ? {} : { from: Math.max(0, first - 1), to: last + 1 }),
    };
    const { data } = ids.length && this.#key ? await api.series(ids, [this.#key], range) : { data: [] };
    this.#series = data;
    this.#draw();
  }

  async #zoom() {
    show(this.whole, this.plot.zoomed);
    try {
      await this.#fetch();
    } catch (error) {
      setText(this.note, error.message);
    }
  }

  // ---- choices

  #choose(id, chosen) {
    this.#unknown = '';
    if (chosen && this.#chosen.size >= MOST_RUNS) {
      this.table.say(`A chart shows at most ${MOST_RUNS} runs.`);
      return this.#draw();
    }
    if (chosen) this.#chosen.add(id);
    else this.#chosen.delete(id);
    this.#address();
    return this.#reload();
  }

  #clear() {
    this.#chosen.clear();
    this.#address();
    return this.#reload();
  }

  #pick(key) {
    this.#key = key;
    this.#address();
    return this.#load().catch((error) => setText(this.note, error.message));
  }

  #reload() {
    return this.#fetch().catch((error) => setText(this.note, error.message));
  }

  #address() {
    const query = new URLSearchParams();
    if (this.#chosen.size) query.set('runs', [...this.#chosen].join(','));
    if (this.#key) query.set('metric', this.#key);
    history.replaceState(null, '', urlOf(`/runs?${query}`));
  }

  #edit(job) {
    openEdit(job, labelsOf(this.#jobs, METHODS).get(job.id), {
      onChange: (changed) => {
        this.#jobs = this.#jobs.map((one) => (one.id === changed.id ? changed : one));
        this.#draw();
      },
      onJob: () => this.refresh(),
    });
  }

  // ---- drawing

  #draw() {
    const labels = labelsOf(this.#jobs, METHODS);
    const weight = Number(this.smooth.value);
    const many = new Set(this.#series.map(({ stage }) => stage)).size > 1;
    const order = [...this.#chosen];
    this.lines = this.#series.map((one) => {
      const label = `${labels.get(one.job_id) ?? one.job_id}${many ? `, ${stageName(one.stage)}` : ''}`;
      const look = lookOf(order.indexOf(one.job_id));
      return { ...one, id: one.job_id, label, look, raw: one.values, values: smoothed(one.values, weight) };
    });
    this.metric.replaceChildren(
      ...this.#keys.map((key) => h('option', { value: key, selected: key === this.#key }, key)),
    );
    this.metric.disabled = !this.#keys.length;
    this.none.disabled = !this.#chosen.size;
    this.#drawLegend();
    this.plot.show(this.lines, { log: this.log.checked });
    show(this.whole, this.plot.zoomed);
    this.table.update(this.#jobs, this.#chosen, { labels, numbers: this.#numbers, key: this.#key }, this.#hasMore);
    setText(this.note, this.#unknown + this.#noteText());
  }

  #noteText() {
    if (!this.#chosen.size) return 'Choose runs in the table.';
    if (!this.lines.length) return `None of these runs has ${this.#key || 'a metric'}.`;
    const sampled = this.lines.some(({ exact }) => !exact);
    const bad = this.lines.filter(({ nulls }) => nulls).map(({ label, nulls }) => `${label}: ${nulls} values`);
    const words = sampled ? 'A sample with all peaks: zoom in to see every value.' : 'Every value is shown.';
    return bad.length ? `${words} Not finite, marked with crosses: ${bad.join(', ')}.` : words;
  }

  #drawLegend() {
    this.values = this.lines.map((line) => {
      const swatch = h('span', {
        class: 'or-runs-swatch',
        'aria-hidden': 'true',
        'data-dash': line.look.dash.join('-'),
      });
      swatch.style.setProperty('--or-run', `var(--or-run-${line.look.colour})`);
      const value = h('span', { class: 'or-num' });
      return { line, value, item: h('li', {}, swatch, h('span', {}, line.label), value) };
    });
    this.legend.replaceChildren(...this.values.map(({ item }) => item));
  }

  // the values under the cursor
  #read() {
    if (!this.values) return;
    const { cursor } = this.plot;
    setText(this.where, this.lines.length ? `Step ${cursor.toLocaleString('en')}` : '');
    for (const { line, value, item } of this.values) {
      const point = this.plot.at(line);
      setText(value, point ? (point.value === null ? 'not finite' : short(point.value)) : '');
      setAttr(item, 'data-step', point?.step ?? null);
    }
  }
}

export const runs = new Runs();

serve('runs', runs);

/** For the gr.HTML component. */
export function mountRuns(element) {
  return runs.mount(element.querySelector('[data-runs]'));
}
