// The leaderboard: results of benchmarks on the same questions, best first. Rows as of GET /v1/leaderboard.

import { h, setText, show } from '../shared/dom.js';
import { short } from '../shared/series.js';
import { whenOf } from '../shared/when.js';
import { boardsOf } from './lineage.js';

const share = (value) => (typeof value === 'number' ? short(value) : '–');

/** A table of results; `named` with the names of the checkpoints, otherwise of their data. */
export function resultTable(rows, label, named) {
  const head = [
    named ? 'Checkpoint' : 'Questions',
    'Accuracy',
    '95 % interval',
    'Drawings right',
    'Malformed',
    'Tasks',
    'When',
  ];
  return h(
    'div',
    { class: 'or-scroll', tabindex: '0', role: 'region', 'aria-label': label },
    h(
      'table',
      { class: 'or-table' },
      h('thead', {}, h('tr', {}, ...head.map((text) => h('th', { scope: 'col' }, text)))),
      h(
        'tbody',
        {},
        ...rows.map((row) =>
          h(
            'tr',
            { 'data-checkpoint': row.checkpoint },
            h(
              'th',
              { scope: 'row' },
              h(
                'a',
                {
                  class: 'or-link',
                  href: `/training?job=${encodeURIComponent(row.job_id)}`,
                  title: 'Open the benchmark',
                },
                named ? row.checkpoint : row.board,
              ),
            ),
            h('td', {}, share(row.accuracy)),
            h('td', {}, row.accuracy_ci95 ? row.accuracy_ci95.map(share).join(' – ') : '–'),
            h('td', {}, share(row.drawings_right)),
            h('td', {}, share(row.malformed)),
            h('td', {}, row.tasks.toLocaleString('en')),
            h('td', {}, h('time', { datetime: row.finished_at, title: row.finished_at }, whenOf(row.finished_at))),
          ),
        ),
      ),
    ),
  );
}

export class Board {
  #boards = [];

  constructor() {
    this.select = h('select', { 'aria-label': 'Questions', onchange: () => this.#draw() });
    this.table = h('div', {});
    this.word = h('p', { class: 'or-quiet' });
    this.element = h(
      'section',
      { class: 'or-block or-board', 'aria-label': 'Leaderboard', hidden: true },
      h(
        'div',
        { class: 'or-block-head' },
        h('h3', {}, 'Leaderboard'),
        h('span', { class: 'or-spring' }),
        h('label', { class: 'or-field' }, h('span', {}, 'Questions'), this.select),
      ),
      this.word,
      this.table,
    );
  }

  update(rows) {
    const chosen = this.select.value;
    this.#boards = boardsOf(rows);
    this.select.replaceChildren(
      ...this.#boards.map(({ label, rows: all }) => h('option', { value: label }, `${label} (${all.length})`)),
    );
    if (this.#boards.some(({ label }) => label === chosen)) this.select.value = chosen;
    show(this.element, this.#boards.length > 0);
    this.#draw();
  }

  #draw() {
    const board = this.#boards.find(({ label }) => label === this.select.value) ?? this.#boards[0];
    if (!board) return;
    setText(this.word, 'Same questions, same settings. Overlapping intervals are no proof of a difference.');
    this.table.replaceChildren(resultTable(board.rows, 'Results', true));
  }
}
