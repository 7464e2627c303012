// The table of interventions: one row per replaced image.

import { h, setAttr, setText, show } from '../shared/dom.js';

const HEADS = ['Image', 'Replaced by', 'Answer', 'Later images', 'Branch'];
const STATUS = { changed: 'changed', same: 'same', running: 'running …', stopped: 'did not finish' };
const VERDICTS = { right: '✓ right', wrong: '✗ wrong' };
const traceHref = (id) => `/?trace=${encodeURIComponent(id)}`;
const plain = (event) => !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.button);

export class Table {
  #rows = new Map(); // trace -> row

  /** onOpen(traceId); onCompare(traceId): with the trace itself. */
  constructor({ onOpen, onCompare }) {
    this.onOpen = onOpen;
    this.onCompare = onCompare;
    this.body = h('tbody', { role: 'rowgroup' });
    // the roles survive the layout of narrow screens
    this.element = h(
      'table',
      { class: 'or-effects', role: 'table', 'aria-label': 'Replaced images', hidden: true },
      h(
        'thead',
        { role: 'rowgroup' },
        h(
          'tr',
          { role: 'row' },
          HEADS.map((text) => h('th', { role: 'columnheader', scope: 'col' }, text)),
        ),
      ),
      this.body,
    );
  }

  #link(text, label, href, act) {
    const onclick = (event) => {
      if (!plain(event)) return;
      event.preventDefault();
      act();
    };
    return h('a', { class: 'or-link', href, onclick }, text, h('span', { class: 'or-sr' }, label));
  }

  #row({ traceId, step, replacedBy }, parentId) {
    const cell = (kind, ...content) => h('td', { role: 'cell', class: `or-effect-${kind}` }, ...content);
    const row = {
      before: h('span', { dir: 'auto' }),
      arrow: h('span', {}, h('span', { 'aria-hidden': 'true' }, ' → '), h('span', { class: 'or-sr' }, ' becomes ')),
      after: h('strong', { dir: 'auto' }),
      verdict: h('span', { class: 'or-verdict' }),
      mark: h('span', { class: 'or-effect-mark' }),
      chance: h('span', { class: 'or-quiet or-effect-chance' }, 'also with nothing replaced'),
      later: cell('later'),
    };
    const about = ` step ${step}, ${replacedBy}`;
    const pair = `/?compare=${encodeURIComponent(parentId)},${encodeURIComponent(traceId)}`;
    row.element = h(
      'tr',
      { role: 'row', 'data-trace': traceId },
      cell('step', `step ${step}`),
      cell('with', replacedBy),
      cell('answer', row.before, row.arrow, row.after, ' ', row.mark, ' ', row.verdict, ' ', row.chance),
      row.later,
      cell(
        'links',
        this.#link('open', about, traceHref(traceId), () => this.onOpen(traceId)),
        this.#link('compare', about, pair, () => this.onCompare(traceId)),
      ),
    );
    return row;
  }

  /** rows: of `rowsOf`; parentId: the trace whose images were replaced. */
  update(rows, parentId) {
    const ids = new Set(rows.map((row) => row.traceId));
    if ([...this.#rows.keys()].some((id) => !ids.has(id))) this.#rows.clear();
    for (const one of rows) {
      if (!this.#rows.has(one.traceId)) this.#rows.set(one.traceId, this.#row(one, parentId));
      const row = this.#rows.get(one.traceId);
      const changed = one.status === 'changed';
      setAttr(row.element, 'data-status', one.status);
      setText(row.before, one.before);
      show(row.arrow, changed);
      setText(row.after, changed ? one.after : '');
      setText(row.mark, STATUS[one.status]);
      setText(row.verdict, one.verdict && changed ? VERDICTS[one.verdict] : '');
      setAttr(row.verdict, 'data-tone', one.verdict);
      show(row.chance, one.chance);
      setText(row.later, one.later);
    }
    const items = rows.map((one) => this.#rows.get(one.traceId).element);
    const same = items.length === this.body.children.length && items.every((item, k) => this.body.children[k] === item);
    if (!same) this.body.replaceChildren(...items);
    show(this.element, rows.length > 0);
  }
}
