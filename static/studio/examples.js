// Example tasks from the API: a row with one of each slice and a random one, and below it a panel with one of each
// family, fetched when it is opened first.

import { api } from '../shared/api.js';
import { h, icon, setAttr, setText, show } from '../shared/dom.js';
import { FAMILIES, FIRST } from './families.js';

const CARDS = FAMILIES.flatMap(({ slice, name, tasks }) => tasks.map((task) => ({ slice, name, ...task })));

export class Examples {
  #cards; // of both: {example, task, row: {button, image} or null, line: {button, image, words}}
  #loading = null; // of the panel

  /** onPick(task) with a task of GET /v1/tasks; onError(error). */
  constructor(element, { onPick, onError }) {
    this.onPick = onPick;
    this.onError = onError;
    this.#cards = CARDS.map((example) => {
      const card = { example, task: null, row: null, line: null };
      if (FIRST[example.slice] === example.family) card.row = this.#inRow(card);
      card.line = this.#inPanel(card);
      return card;
    });
    this.dice = h(
      'button',
      { type: 'button', class: 'or-example or-dice', title: 'A new held-out task', onclick: () => this.surprise() },
      h('span', { class: 'or-example-picture' }, icon('dice')),
      h('span', { class: 'or-example-name' }, 'surprise'),
    );
    this.word = h('p', { class: 'or-quiet', role: 'status' });
    this.panel = h(
      'details',
      { class: 'or-families', ontoggle: () => this.panel.open && this.#fill() },
      h('summary', {}, 'What can I ask?'),
      this.word,
      h(
        'div',
        { class: 'or-families-list' },
        FAMILIES.map(({ slice, name }) =>
          h(
            'section',
            { 'aria-label': name },
            h('h2', {}, name),
            this.#cards.filter(({ example }) => example.slice === slice).map(({ line }) => line.button),
          ),
        ),
      ),
    );
    element.replaceChildren(
      h(
        'div',
        { class: 'or-examples', role: 'group', 'aria-label': 'Example questions' },
        this.#first.map(({ row }) => row.button),
        this.dice,
      ),
      this.panel,
    );
  }

  get #first() {
    return this.#cards.filter(({ row }) => row);
  }

  #inRow(card) {
    const image = h('img', { alt: '', class: 'or-pixels', hidden: true });
    const button = h(
      'button',
      {
        type: 'button',
        class: 'or-example',
        'aria-pressed': 'false',
        disabled: true,
        onclick: () => this.pick(card),
      },
      h('span', { class: 'or-example-picture' }, image),
      h('span', { class: 'or-example-name' }, card.example.name),
    );
    return { button, image };
  }

  #inPanel(card) {
    const image = h('img', { alt: '', class: 'or-pixels', hidden: true, width: 40, height: 40 });
    const words = h('span', {}, '…');
    const button = h(
      'button',
      {
        type: 'button',
        class: 'or-family',
        'data-family': card.example.family,
        'aria-pressed': 'false',
        disabled: true,
        onclick: () => this.pick(card),
      },
      h('span', { class: 'or-family-picture' }, image),
      words,
    );
    return { button, image, words };
  }

  async #fetch(card) {
    const { slice, seed, name } = card.example;
    card.task ??= await api.task({ slice, seed });
    const { question, image } = card.task;
    for (const place of [card.row, card.line]) {
      if (!place?.button.disabled) continue;
      setAttr(place.image, 'src', image.url);
      show(place.image, true);
      place.button.disabled = false;
    }
    if (card.row) {
      setAttr(card.row.button, 'title', question);
      setAttr(card.row.button, 'aria-label', `Example, ${name}: ${question}`);
    }
    setText(card.line.words, question);
  }

  /** Fetches the missing tasks of the row, and of the panel if it is open; resolves when all have loaded or failed. */
  async load() {
    const all = this.#first.map((card) => this.#fetch(card));
    const settled = Promise.allSettled(all);
    try {
      await all[0];
    } catch (error) {
      this.onError(error);
    }
    await settled;
    if (this.panel.open) await this.#fill();
  }

  #fill() {
    this.#loading ??= Promise.allSettled(this.#cards.map((card) => this.#fetch(card))).then((all) => {
      this.#loading = null;
      setText(this.word, all.find(({ reason }) => reason)?.reason.message ?? '');
      show(this.word, this.word.textContent !== '');
    });
    return this.#loading;
  }

  pickFirst() {
    const [first] = this.#first;
    if (first.task) this.pick(first);
  }

  pick(card) {
    this.mark(card.task?.task_id);
    this.onPick(card.task);
  }

  /** Marks the chosen example, if any. */
  mark(taskId) {
    for (const { task, row, line } of this.#cards) {
      const chosen = Boolean(taskId) && task?.task_id === taskId;
      for (const place of [row, line]) if (place) setAttr(place.button, 'aria-pressed', chosen);
    }
  }

  async surprise() {
    this.dice.disabled = true;
    try {
      const task = await api.task({});
      this.mark(task.task_id);
      this.onPick(task);
    } catch (error) {
      this.onError(error);
    } finally {
      this.dice.disabled = false;
      this.dice.focus({ preventScroll: true });
    }
  }
}
