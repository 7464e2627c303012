// The tree under the timeline: the first trace at the top, one row per branch, edited steps ringed, answers at the end.

import { h, setAttr, setText, show } from '../shared/dom.js';
import { endOf, nameOf, partingOf, rowsOf, withoutInterventions } from './layout.js';

const NS = 'http://www.w3.org/2000/svg';
const COLUMN = 22; // px per step
const MARGIN = 12;
const MOST_COLUMNS = 12;

const svg = (tag, attributes) => {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
};

export class Tree {
  #shown = ''; // what is drawn
  #rows = [];
  #items = [];
  #current = null; // the trace that the viewer shows

  /** onOpen(traceId): a row was chosen. onCompare(left, right): compare two traces. */
  constructor({ onOpen, onCompare }) {
    this.onOpen = onOpen;
    this.list = h('ul', { class: 'or-tree', role: 'tree', 'aria-label': 'Branches of this trace' });
    this.rails = svg('svg', { class: 'or-tree-rails', 'aria-hidden': 'true' });
    this.word = h('p', { class: 'or-quiet or-tree-word', 'aria-live': 'polite' });
    this.compare = h(
      'button',
      { type: 'button', class: 'or-link', onclick: () => onCompare(this.#parent, this.#current) },
      'compare with parent',
    );
    this.element = h(
      'section',
      { class: 'or-relatives', 'aria-label': 'Branches', hidden: true },
      h('div', { class: 'or-tree-frame' }, this.rails, this.list),
      h('div', { class: 'or-tree-foot' }, this.word, this.compare),
    );
    this.list.addEventListener('keydown', (event) => this.#key(event));
    this.list.addEventListener('focusout', () => this.#say(this.#current));
    this.list.addEventListener('mouseleave', () => this.#say(this.#current));
  }

  get #parent() {
    return this.#rows.find((row) => row.node.id === this.#current)?.node.parent_id ?? null;
  }

  /** tree: of GET …/tree, or null; current: the id of the shown trace. */
  update(tree, current) {
    const nodes = tree ? withoutInterventions(tree.nodes, current) : [];
    const rows = nodes.length > 1 ? rowsOf({ ...tree, nodes }) : [];
    show(this.element, rows.length > 0);
    const drawn = JSON.stringify([rows, current]);
    if (drawn === this.#shown) return;
    this.#shown = drawn;
    this.#rows = rows;
    this.#current = current;
    const focused = this.#items.findIndex((item) => item === document.activeElement);
    this.#items = rows.map((row) => this.#item(row));
    this.list.replaceChildren(...this.#items);
    if (focused >= 0) this.#items[Math.min(focused, rows.length - 1)]?.focus({ preventScroll: true });
    this.#drawRails();
    const parent = rows.find((row) => row.node.id === this.#parent);
    show(this.compare, parent !== undefined && parent.node.status !== 'deleted');
    this.#say(current);
    this.#reveal();
  }

  // Scrolls the list, not the page, to the shown trace.
  #reveal() {
    const item = this.#items.find((one) => one.dataset.trace === this.#current);
    const frame = this.list.parentElement;
    if (item) frame.scrollTop = item.offsetTop - (frame.clientHeight - item.offsetHeight) / 2;
  }

  #item(row) {
    const { node } = row;
    const { text, answered, verdict, mark } = endOf(node);
    const current = node.id === this.#current;
    const item = h(
      'li',
      {
        class: 'or-tree-row',
        role: 'treeitem',
        'aria-level': row.level,
        'aria-posinset': row.position,
        'aria-setsize': row.of,
        'aria-selected': current,
        'aria-current': current ? 'true' : null,
        'aria-disabled': node.status === 'deleted' ? 'true' : null,
        'aria-label': nameOf(row),
        'data-trace': node.id,
        title: partingOf(row),
        tabindex: current ? '0' : '-1',
      },
      h('span', { class: answered ? 'or-tree-answer' : 'or-quiet', dir: 'auto' }, text),
      mark ? h('span', { class: 'or-verdict', 'data-tone': verdict }, mark) : null,
    );
    item.addEventListener('click', () => this.#open(row.row));
    item.addEventListener('mouseenter', () => this.#say(node.id));
    item.addEventListener('focus', () => this.#focused(row.row));
    return item;
  }

  #open(k) {
    const { node } = this.#rows[k];
    if (node.status !== 'deleted' && node.id !== this.#current) this.onOpen(node.id);
  }

  #focused(k) {
    for (const [at, item] of this.#items.entries()) setAttr(item, 'tabindex', at === k ? '0' : '-1');
    this.#say(this.#rows[k].node.id);
  }

  #say(traceId) {
    const row = this.#rows.find(({ node }) => node.id === traceId);
    setText(this.word, row ? partingOf(row) : '');
  }

  #key(event) {
    const at = this.#items.indexOf(event.target);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const { parentRow } = this.#rows[at];
    const child = this.#rows.findIndex((row) => row.parentRow === at);
    const target = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      Home: 0,
      End: this.#rows.length - 1,
      ArrowLeft: parentRow ?? at,
      ArrowRight: child < 0 ? at : child,
    }[event.key];
    if (target !== undefined) this.#items[target]?.focus();
    else if (event.key === 'Enter' || event.key === ' ') this.#open(at);
    else return;
    event.preventDefault();
    event.stopPropagation(); // the viewer's keys go through the steps
  }

  // One line per trace from where it leaves its parent; a dot where it begins, a ring per edited step.
  #drawRails() {
    const last = Math.max(
      1,
      ...this.#rows.flatMap(({ node, from }) => [from, node.after_step ?? 0, ...node.edited_steps]),
    );
    const column = Math.min(COLUMN, (COLUMN * MOST_COLUMNS) / last);
    const width = 2 * MARGIN + (last + 1) * column;
    const high = matchMedia('(pointer: coarse)').matches ? 44 : 34;
    const x = (step) => MARGIN + step * column;
    const y = (row) => (row + 0.5) * high;
    const drawn = this.#rows.flatMap(({ node, row, stem, from }) => {
      const current = node.id === this.#current ? { 'data-current': 'true' } : {};
      const bend = Math.min(column, 14);
      const begin = x(from);
      const path =
        stem === null
          ? `M${begin} ${y(row)}H${width}`
          : `M${begin} ${y(stem)}V${y(row) - bend}q0 ${bend} ${bend} ${bend}H${width}`;
      const rings = node.edited_steps.map((step) =>
        svg('circle', { cx: x(step), cy: y(row), r: 6, class: 'or-tree-ring', ...current }),
      );
      const dot = svg('circle', { cx: begin, cy: y(stem ?? row), r: 3.5, class: 'or-tree-dot' });
      return [svg('path', { d: path, class: 'or-tree-rail', ...current }), dot, ...rings];
    });
    for (const [name, value] of Object.entries({ width, height: high * this.#rows.length }))
      this.rails.setAttribute(name, String(value));
    this.rails.replaceChildren(...drawn);
    this.list.style.setProperty('--row', `${high}px`);
  }
}
