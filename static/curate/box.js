// Under an ended trace: its rating, tags and note, and its exports.

import { api } from '../shared/api.js';
import { h, setAttr, setText, show } from '../shared/dom.js';
import { isTerminal } from '../viewer/state.js';
import { trainable } from './choose.js';
import { FORMATS, Fold } from './fold.js';
import { Rating } from './rating.js';
import { curate } from './save.js';
import { Tags } from './tags.js';

const LONGEST_NOTE = 2000; // as the server has it

export class CurationBox {
  #traceId = null;
  #seen = null; // the state's tags that are shown: another list means another row
  #values = { rating: null, tags: [], note: '' };
  #changes = 0;

  constructor() {
    this.rating = new Rating({ onRate: (rating) => this.#save({ rating }) });
    this.tags = new Tags({ onChange: (tags) => this.#save({ tags }) });
    this.note = h('textarea', {
      class: 'or-input or-note',
      'aria-label': 'Note',
      placeholder: 'What is good or bad about this trace?',
      maxlength: LONGEST_NOTE,
      rows: 2,
      dir: 'auto',
      hidden: true,
      onchange: () => this.#save({ note: this.note.value.trim() }),
      onkeydown: (event) => {
        if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.#save({ note: this.note.value.trim() });
      },
    });
    this.noteButton = h(
      'button',
      { type: 'button', class: 'or-link', 'aria-expanded': 'false', onclick: () => this.#toggleNote() },
      'note',
    );
    this.links = FORMATS.map(([format, label, title]) =>
      h('a', { class: 'or-link', title, download: true, 'data-format': format }, label),
    );
    this.exports = new Fold('export', 'or-link', this.links);
    this.word = h('span', { class: 'or-quiet or-curate-word', role: 'status' });
    this.element = h(
      'div',
      { class: 'or-curate', role: 'group', 'aria-label': 'Keep this trace', hidden: true },
      h(
        'div',
        { class: 'or-curate-row' },
        this.rating.element,
        this.tags.element,
        this.noteButton,
        this.exports.element,
        this.word,
      ),
      this.note,
    );
  }

  /** stored: the server has this trace. */
  update(state, { stored }) {
    const shown = stored && isTerminal(state);
    show(this.element, shown);
    if (!shown) return;
    if (state.traceId !== this.#traceId) this.#begin(state);
    if (state.tags !== this.#seen) {
      this.#seen = state.tags;
      this.#values = { rating: state.rating, tags: state.tags, note: state.note };
      this.#draw();
    }
  }

  #begin(state) {
    this.#traceId = state.traceId;
    this.#seen = null;
    this.tags.reset();
    this.exports.open(false);
    setText(this.word, '');
    this.#openNote(state.note !== '');
    for (const link of this.links) {
      const { format } = link.dataset;
      setAttr(link, 'href', api.exportUrl(state.traceId, format));
      show(link, format !== 'jsonl' || trainable([state]).length > 0);
    }
  }

  #toggleNote() {
    this.#openNote(this.note.hidden);
    if (!this.note.hidden) this.note.focus();
  }

  #openNote(open) {
    show(this.note, open);
    setAttr(this.noteButton, 'aria-expanded', open);
  }

  #draw() {
    const { rating, tags, note } = this.#values;
    this.rating.update(rating);
    this.tags.update(tags);
    if (this.note.value.trim() !== note) this.note.value = note;
  }

  async #save(change) {
    const traceId = this.#traceId;
    const before = this.#values;
    const same = Object.entries(change).every(([name, value]) => before[name] === value);
    if (same) return;
    this.#values = { ...before, ...change };
    this.#changes += 1;
    const number = this.#changes;
    this.#draw();
    setText(this.word, '');
    try {
      await curate(traceId, change);
      // not while a later change is on its way
      if (traceId === this.#traceId && number === this.#changes) setText(this.word, 'saved');
    } catch (error) {
      if (traceId !== this.#traceId) return;
      const undone = Object.fromEntries(Object.keys(change).map((name) => [name, before[name]]));
      this.#values = { ...this.#values, ...undone };
      this.#draw();
      setText(this.word, error.message);
    }
  }
}
