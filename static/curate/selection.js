// Selecting many traces in the gallery, and what can be done with them: export, train, compare, delete.
//
// While it is on, a card is one checkbox: a click, Space or Shift with either selects, Ctrl+A selects all, Escape ends.

import { api } from '../shared/api.js';
import { h, saveBlob, setAttr, setText, show, sureButton } from '../shared/dom.js';
import { exportTrouble, exportable, rangeOf, skippedWords } from './choose.js';
import { FORMATS, Fold } from './fold.js';
import { openTraining } from './train.js';

export class Selection {
  #cards = new Map(); // item -> {check, label, traces}
  #on = false;
  #last = null; // the item that was clicked last
  #busy = false;

  /**
   * grid: the list of cards. onCompare(left, right). onDelete(item): deletes what the card stands for, and the card.
   * say(text): an error or a remark.
   */
  constructor({ grid, onCompare, onDelete, say }) {
    this.grid = grid;
    this.onDelete = onDelete;
    this.say = say;
    const button = (label, onclick) => h('button', { type: 'button', class: 'or-secondary', onclick }, label);
    this.toggle = button('Select', () => this.turn(!this.#on));
    this.count = h('span', { class: 'or-select-count', role: 'status' });
    this.all = button('All', () => this.#set(this.#items, true));
    this.none = button('None', () => this.#set(this.#items, false));
    const formats = FORMATS.map(([format, label, title]) =>
      h('button', { type: 'button', class: 'or-link', title, onclick: () => this.#export(format) }, label),
    );
    this.export = new Fold('Export', 'or-secondary', formats);
    this.train = button('Train', () => this.#withTraces((traces) => openTraining(traces)));
    this.compare = button('Compare', () => this.#withTraces(([one, other]) => onCompare(one.id, other.id)));
    this.remove = sureButton('Delete the selected traces', 'delete?', () => this.#delete(), 'Delete');
    const gap = h('span', { class: 'or-spring' });
    this.parts = [this.count, this.all, this.none, gap, this.export.element, this.train, this.compare, this.remove];
    this.bar = h('div', { class: 'or-select-bar', role: 'group', 'aria-label': 'Selected traces', hidden: true });
    grid.addEventListener('click', (event) => this.#click(event));
    for (const element of [grid, this.bar, this.toggle])
      element.addEventListener('keydown', (event) => this.#key(event));
  }

  /** item: a card; name: what it shows; traces(): resolves to the traces that it stands for. */
  adopt(item, { name, traces }) {
    const check = h('input', { type: 'checkbox', 'aria-label': `Select: ${name}` });
    const label = h('label', { class: 'or-card-check' }, check, h('span', { 'aria-hidden': 'true' }, 'select'));
    item.append(label);
    this.#cards.set(item, { check, traces });
    this.#mark(item);
  }

  /** The card is gone. */
  drop(item) {
    this.#cards.delete(item);
    if (this.#last === item) this.#last = null;
    this.#draw();
  }

  /** All cards are replaced. */
  clear() {
    this.#cards.clear();
    this.#last = null;
    this.#draw();
  }

  turn(on) {
    this.#on = on;
    setText(this.toggle, on ? 'Done' : 'Select');
    this.grid.classList.toggle('or-selecting', on);
    show(this.bar, on);
    this.bar.replaceChildren(...(on ? this.parts : []));
    this.export.open(false);
    if (!on) this.#set(this.#items, false);
    for (const item of this.#cards.keys()) this.#mark(item);
    this.#draw();
    if (on) this.#items[0] && this.#cards.get(this.#items[0]).check.focus({ preventScroll: true });
    else this.toggle.focus({ preventScroll: true });
  }

  get #items() {
    return [...this.grid.children].filter((item) => this.#cards.has(item));
  }

  get #selected() {
    return this.#items.filter((item) => this.#cards.get(item).check.checked);
  }

  // Nothing else on a card can be used meanwhile.
  #mark(item) {
    for (const part of item.children) part.inert = this.#on && !part.classList.contains('or-card-check');
    setAttr(item, 'data-selected', this.#on && this.#cards.get(item).check.checked ? 'true' : null);
  }

  #click(event) {
    if (!this.#on) return;
    const item = event.target.closest('li');
    if (!this.#cards.has(item)) return;
    const { check } = this.#cards.get(item);
    const onLabel = event.target.closest('label') && event.target !== check;
    if (onLabel) {
      if (!event.shiftKey) return; // the browser's click on the checkbox follows
      event.preventDefault();
    }
    if (event.target !== check) check.checked = !check.checked;
    const items = this.#items;
    const from = event.shiftKey && this.#last ? items.indexOf(this.#last) : null;
    const range = rangeOf(from === -1 ? null : from, items.indexOf(item)).map((at) => items[at]);
    this.#last = item;
    this.#set(range, check.checked);
    check.focus({ preventScroll: true }); // keys work after a click on the card, too
  }

  #key(event) {
    if (!this.#on) return;
    if (event.key === 'Escape') {
      event.preventDefault();
      this.turn(false);
    } else if (event.key === 'a' && (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      this.#set(this.#items, true);
    }
  }

  #set(items, checked) {
    for (const item of items) {
      this.#cards.get(item).check.checked = checked;
      this.#mark(item);
    }
    this.#draw();
  }

  #draw() {
    const count = this.#selected.length;
    setText(this.count, this.#on ? `${count} selected` : '');
    for (const button of [this.export.button, this.train, this.remove]) button.disabled = !count || this.#busy;
    const two = count === 2 && this.#selected.every((item) => item.dataset.trace);
    this.compare.disabled = !two || this.#busy;
    if (!count) this.export.open(false);
  }

  /** Calls `act` with the selected traces; reports what goes wrong. */
  async #withTraces(act) {
    const items = this.#selected;
    if (this.#busy || !items.length) return;
    this.#busy = true;
    this.say('');
    try {
      const traces = await Promise.all(items.map((item) => this.#cards.get(item).traces()));
      await act(traces.flat());
    } catch (error) {
      this.say(error.message);
    } finally {
      this.#busy = false;
      this.#draw();
    }
  }

  #export(format) {
    return this.#withTraces(async (traces) => {
      const trouble = exportTrouble(traces, format);
      if (trouble) return this.say(trouble);
      const chosen = exportable(traces);
      const { blob, name, skipped } = await api.exportMany(
        chosen.map(({ id }) => id),
        format,
      );
      saveBlob(blob, name);
      return this.say(skippedWords(skipped + traces.length - chosen.length));
    });
  }

  async #delete() {
    const items = this.#selected;
    if (this.#busy) return;
    this.#busy = true;
    try {
      for (const item of items) await this.onDelete(item);
    } catch (error) {
      this.say(error.message);
    } finally {
      this.#busy = false;
      this.#draw();
      (this.#items[0] ? this.#cards.get(this.#items[0]).check : this.toggle).focus({ preventScroll: true });
    }
  }
}
