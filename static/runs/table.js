// The table of runs: sorted by any column, filtered by words, chosen by check boxes.

import { h, setAttr, setText, show } from '../shared/dom.js';
import { short } from '../shared/series.js';
import { whenOf } from '../shared/when.js';
import { METHODS, dataOf, duration, statusOf, tookOf } from '../training/words.js';
import { lessIsBetter, sorted } from './scale.js';

const stepOf = (job) => job.progress?.step ?? job.result?.steps ?? null;
const bestOf = (job, numbers, key) => numbers.get(job.id)?.[lessIsBetter(key) ? 'min' : 'max'] ?? null;

// name, title, value to sort by, and text if it differs
const COLUMNS = [
  ['run', 'Run', (job, { labels }) => labels.get(job.id)],
  ['status', 'Status', (job) => statusOf(job).text],
  ['method', 'Method', (job) => METHODS[job.method] ?? job.method],
  ['base', 'From', (job) => job.spec?.base_checkpoint ?? ''],
  ['data', 'Data', (job) => dataOf(job.spec ?? {})],
  ['tags', 'Tags', (job) => (job.tags ?? []).join(', ')],
  ['steps', 'Steps', stepOf, (job) => (stepOf(job) === null ? '' : stepOf(job).toLocaleString('en'))],
  ['took', 'Time', tookOf, (job) => duration(tookOf(job))],
  ['best', 'Best', (job, { numbers, key }) => bestOf(job, numbers, key)?.value ?? null, bestText],
  ['last', 'Last', (job, { numbers }) => numbers.get(job.id)?.last?.value ?? null, lastText],
  ['created', 'Created', (job) => job.created_at, (job) => whenOf(job.created_at)],
];
const NUMBERS = new Set(['steps', 'took', 'best', 'last']);

function bestText(job, { numbers, key }) {
  const best = bestOf(job, numbers, key);
  return best ? `${short(best.value)} at ${best.step.toLocaleString('en')}` : '';
}

function lastText(job, { numbers }) {
  const found = numbers.get(job.id);
  if (!found?.last) return found?.nulls ? 'not finite' : '';
  return found.nulls ? `${short(found.last.value)} (${found.nulls} not finite)` : short(found.last.value);
}

export class RunTable {
  #jobs = [];
  #about = { labels: new Map(), numbers: new Map(), key: '' };
  #chosen = new Set();
  #order = { column: 'created', descending: true };
  #boxes = new Map();

  /** handlers: choose(id, chosen), edit(job), more(). */
  constructor(handlers) {
    this.handlers = handlers;
    this.words = h('input', { type: 'search', class: 'or-input', 'aria-label': 'Filter runs', placeholder: 'Filter' });
    this.words.addEventListener('input', () => this.#draw());
    this.head = h('tr', {});
    this.body = h('tbody', {});
    this.table = h('table', { class: 'or-table or-runs-table' }, h('thead', {}, this.head), this.body);
    this.word = h('p', { class: 'or-quiet', role: 'status' });
    this.more = h(
      'button',
      { type: 'button', class: 'or-secondary', hidden: true, onclick: () => handlers.more() },
      'show more',
    );
    this.buttons = new Map(
      COLUMNS.map(([name, title]) => [
        name,
        h('button', { type: 'button', class: 'or-sort', onclick: () => this.#sort(name) }, title),
      ]),
    );
    this.head.append(
      h('th', { scope: 'col' }, h('span', { class: 'or-sr' }, 'In the chart')),
      ...COLUMNS.map(([name]) => h('th', { scope: 'col', 'data-column': name }, this.buttons.get(name))),
      h('th', { scope: 'col' }, h('span', { class: 'or-sr' }, 'Change')),
    );
    this.element = h(
      'section',
      { class: 'or-block', 'aria-label': 'All runs' },
      h('div', { class: 'or-block-head' }, h('h3', {}, 'All runs'), h('span', { class: 'or-spring' }), this.words),
      this.word,
      h('div', { class: 'or-scroll' }, this.table),
      this.more,
    );
  }

  /** about: `{labels, numbers, key}`: texts by id, the numbers of the shown metric by id, and its name. */
  update(jobs, chosen, about, hasMore) {
    this.#jobs = jobs;
    this.#chosen = chosen;
    this.#about = about;
    show(this.more, hasMore);
    this.#draw();
  }

  say(text) {
    setText(this.word, text);
    show(this.word, Boolean(text));
  }

  #sort(column) {
    const again = this.#order.column === column;
    this.#order = { column, descending: again ? !this.#order.descending : NUMBERS.has(column) };
    this.#draw();
  }

  #draw() {
    const [, , of] = COLUMNS.find(([name]) => name === this.#order.column);
    const words = this.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (job) => [...COLUMNS.slice(0, 6).map(([, , one]) => one(job, this.#about)), job.note].join(' ');
    const kept = this.#jobs.filter((job) => words.every((word) => text(job).toLowerCase().includes(word)));
    for (const [name] of COLUMNS) {
      const th = this.head.querySelector(`[data-column=${name}]`);
      const active = name === this.#order.column;
      setAttr(th, 'aria-sort', active ? (this.#order.descending ? 'descending' : 'ascending') : null);
    }
    const focused = document.activeElement?.closest?.('[data-job]')?.dataset.job;
    const control = document.activeElement?.dataset.control;
    const rows = sorted(kept, (job) => of(job, this.#about), this.#order.descending).map((job) => this.#row(job));
    this.body.replaceChildren(...rows);
    if (focused) this.body.querySelector(`[data-job="${focused}"] [data-control=${control}]`)?.focus();
    this.say(
      this.#jobs.length ? (kept.length ? '' : 'No run matches.') : 'No runs yet. Start one on the Training page.',
    );
  }

  #row(job) {
    const label = this.#about.labels.get(job.id);
    const box = h('input', {
      type: 'checkbox',
      'data-control': 'choose',
      'aria-label': `Show ${label} in the chart`,
      onchange: (event) => this.handlers.choose(job.id, event.target.checked),
    });
    box.checked = this.#chosen.has(job.id);
    this.#boxes.set(job.id, box);
    const edit = h(
      'button',
      { type: 'button', class: 'or-chipbutton', 'data-control': 'edit', onclick: () => this.handlers.edit(job) },
      'Edit',
    );
    edit.setAttribute('aria-label', `Edit ${label}`);
    const cells = COLUMNS.slice(1).map(([name, , of, textOf]) => {
      const content = String((textOf ?? of)(job, this.#about) ?? '');
      return h('td', { class: NUMBERS.has(name) ? 'or-num' : null, title: name === 'data' ? content : null }, content);
    });
    const link = h('a', { href: `/training?job=${encodeURIComponent(job.id)}`, title: job.note ?? null }, label);
    return h(
      'tr',
      { 'data-job': job.id, 'data-status': job.status },
      h('td', {}, h('label', { class: 'or-check' }, box)),
      h('th', { scope: 'row' }, link),
      ...cells,
      h('td', {}, edit),
    );
  }
}
