// Your data: upload a file, see which methods can use it, every rejection, and the first rows; start a job from it.

import { api } from '../shared/api.js';
import { h, setText, show } from '../shared/dom.js';
import { METHODS } from './words.js';

const CHECKED = ['pesft', 'perpo', 'zero', 'benchmark'];
const count = (number, what) => `${number.toLocaleString('en')} ${what}${number === 1 ? '' : 's'}`;
const namesOf = (methods) =>
  methods.length === CHECKED.length ? 'every method' : methods.map((one) => METHODS[one]).join(', ');

/** One sentence about a check (pure). */
export function summaryOf({ rows, complete, rejected, method }) {
  const until = complete ? '' : ' The check ran out of time: later rows were not read.';
  const by = method ? METHODS[method] : 'at least one method';
  const how = rejected.rows ? `${count(rejected.rows, 'row')} rejected by ${by}` : 'all can be used';
  return `${count(rows, 'row')}; ${how}.${until}`;
}

/** The text of rejections that are not listed (pure). */
export function moreOf({ reasons, first }) {
  const left = Object.values(reasons).reduce((a, b) => a + b, 0) - first.length;
  return left > 0 ? `${left.toLocaleString('en')} more are in the complete list.` : '';
}

function imageOf(image, label) {
  if (!image) return null;
  if (image.url) return h('img', { src: image.url, alt: label, loading: 'lazy', width: 96, height: 96 });
  return h('span', { class: 'or-data-ids' }, `${image.token_ids} token ids`);
}

function imagesOf(row) {
  const left = row.images_total - row.images.length;
  return h(
    'div',
    { class: 'or-data-images' },
    row.images.map((image, k) => imageOf(image, `Image ${k + 1} of the question`)),
    left > 0 ? h('span', { class: 'or-quiet' }, `and ${count(left, 'more image')}`) : null,
  );
}

function stepsOf(row) {
  if (!row.steps.length) return null;
  const left = row.steps_total - row.steps.length;
  return h(
    'ol',
    { class: 'or-data-steps' },
    row.steps.map((step, k) => h('li', {}, imageOf(step.image, `Image of step ${k + 1}`), h('p', {}, step.text))),
    left > 0 ? h('li', { class: 'or-quiet' }, `${count(left, 'more step')}`) : null,
  );
}

const rowOf = (row) =>
  h(
    'li',
    { class: 'or-data-row' },
    row.images.length ? imagesOf(row) : null,
    h(
      'div',
      { class: 'or-data-text' },
      h('p', { class: 'or-data-question' }, row.question),
      stepsOf(row),
      h('p', {}, h('span', { class: 'or-quiet' }, 'answer '), h('strong', {}, row.answer)),
      h('p', { class: 'or-quiet' }, `${row.where.replace(/^[0-9a-f]{32}\.\w+:/, 'row ')} · ${namesOf(row.usable_for)}`),
    ),
  );

const rejectionsOf = ({ first, url, reasons }) => [
  h('h3', {}, 'Rejected rows'),
  h(
    'div',
    { class: 'or-scroll', tabindex: '0', role: 'region', 'aria-label': 'Rejected rows' },
    h(
      'table',
      { class: 'or-table or-data-rejections' },
      h(
        'thead',
        {},
        h(
          'tr',
          {},
          ['row', 'reason', 'detail', 'rejected by'].map((one) => h('th', { scope: 'col' }, one)),
        ),
      ),
      h(
        'tbody',
        {},
        first.map((one) =>
          h(
            'tr',
            {},
            h('th', { scope: 'row', title: one.where }, String(one.row)),
            h('td', {}, h('code', {}, one.code)),
            h('td', { class: 'or-data-detail' }, one.detail),
            h('td', {}, namesOf(one.methods)),
          ),
        ),
      ),
    ),
  ),
  h(
    'p',
    { class: 'or-quiet' },
    moreOf({ reasons, first }),
    ' ',
    h('a', { class: 'or-link', href: url, download: '' }, 'complete list'),
  ),
];

export class DataPanel {
  #turn = 0;
  #id = null;

  /** onUse(method, data): start a job of this method from this `data`. */
  constructor({ onUse }) {
    this.onUse = onUse;
    this.file = h('input', { type: 'file', class: 'or-input', accept: '.jsonl,.parquet,.zip' });
    this.method = h(
      'select',
      {},
      h('option', { value: '' }, 'any method'),
      CHECKED.map((one) => h('option', { value: one }, METHODS[one])),
    );
    this.error = h('div', { class: 'or-error', role: 'alert', hidden: true });
    this.says = h('p', { class: 'or-data-says', role: 'status' });
    this.body = h('div', { class: 'or-data-report', hidden: true });
    const field = (label, input) => h('label', { class: 'or-field' }, h('span', {}, label), input);
    this.element = h(
      'section',
      { class: 'or-block or-data', 'aria-label': 'Your data' },
      h('h2', {}, 'Your data'),
      h(
        'p',
        { class: 'or-quiet' },
        'Upload questions with images and answers, or traces, as jsonl, parquet or zip. Every row is checked against what each method needs, before any job starts. Benchmarks and PeRPO need no traces.',
      ),
      h('div', { class: 'or-data-form' }, field('file', this.file), field('check for', this.method)),
      this.says,
      this.error,
      this.body,
    );
    this.file.addEventListener('change', () => this.#upload());
    this.method.addEventListener('change', () => (this.#id ? this.#again() : undefined));
  }

  #upload() {
    const [file] = this.file.files;
    if (!file) return undefined;
    this.#id = null; // stored without a method: the select filters what is shown
    return this.#run(`Checking ${file.name} …`, () => api.uploadDataset(file));
  }

  #again() {
    return this.#run('Reading the check …', () => api.dataset(this.#id, this.method.value));
  }

  async #run(words, ask) {
    const turn = ++this.#turn;
    setText(this.says, words);
    show(this.error, false);
    show(this.body, false);
    try {
      let report = await ask();
      if (this.method.value && report.method !== this.method.value)
        report = await api.dataset(report.id, this.method.value);
      if (turn === this.#turn) this.#show(report);
    } catch (error) {
      if (turn !== this.#turn) return;
      setText(this.says, '');
      setText(this.error, error.message);
      show(this.error, true);
    } finally {
      if (turn === this.#turn) this.file.value = ''; // the same file can be chosen again
    }
  }

  #show(report) {
    this.#id = report.id;
    setText(this.says, summaryOf(report));
    const data = { source: 'jsonl', path: report.path };
    const counts = CHECKED.map((method) => {
      const usable = report.usable_for[method];
      const start = h(
        'button',
        {
          type: 'button',
          class: 'or-secondary',
          disabled: usable === 0,
          'aria-label': `Use this data for ${METHODS[method]}`,
          onclick: () => this.onUse(method, data),
        },
        'Use',
      );
      const number = h('span', { class: 'or-num' }, `${count(usable, 'usable row')}`);
      return h('li', { 'data-method': method }, h('strong', {}, METHODS[method]), number, start);
    });
    this.body.replaceChildren(
      h('ul', { class: 'or-data-counts', 'aria-label': 'Usable rows by method' }, counts),
      ...(report.preview.length
        ? [h('h3', {}, 'First rows'), h('ul', { class: 'or-data-rows' }, report.preview.map(rowOf))]
        : []),
      ...(report.rejected.rows ? rejectionsOf(report.rejected) : []),
    );
    show(this.body, true);
  }
}
