// Four example tasks, one per slice, from the API by fixed seeds; and a dice button for a random held-out task.

import { api } from '../shared/api.js';
import { h, icon, setAttr } from '../shared/dom.js';

// Held-out tasks (seeds from 1,000,000,000) that illustrate their slice.
export const EXAMPLES = [
  { slice: 'natural', seed: 1000000004, name: 'objects' },
  { slice: 'structured', seed: 1000000021, name: 'charts' },
  { slice: 'diagrammatic', seed: 1000000018, name: 'diagrams' },
  { slice: 'operational', seed: 1000000035, name: 'grids' },
];

export class Examples {
  #cards;

  /** onPick(task) with a task of GET /v1/tasks; onError(error). */
  constructor(element, { onPick, onError }) {
    this.onPick = onPick;
    this.onError = onError;
    this.#cards = EXAMPLES.map((example) => {
      const image = h('img', { alt: '', class: 'or-pixels', hidden: true });
      const button = h(
        'button',
        { type: 'button', class: 'or-example', 'aria-pressed': 'false', disabled: true },
        h('span', { class: 'or-example-picture' }, image),
        h('span', { class: 'or-example-name' }, example.name),
      );
      const card = { example, image, button, task: null };
      button.addEventListener('click', () => this.pick(card));
      return card;
    });
    this.dice = h(
      'button',
      { type: 'button', class: 'or-example or-dice', title: 'A new held-out task' },
      h('span', { class: 'or-example-picture' }, icon('dice')),
      h('span', { class: 'or-example-name' }, 'surprise'),
    );
    this.dice.addEventListener('click', () => this.surprise());
    element.replaceChildren(
      h(
        'div',
        { class: 'or-examples', role: 'group', 'aria-label': 'Example questions' },
        this.#cards.map((card) => card.button),
        this.dice,
      ),
    );
  }

  /** Fetches all missing tasks; resolves when each has loaded or failed. */
  async load() {
    const all = this.#cards.map(async (card) => {
      if (card.task) return card;
      const { slice, seed } = card.example;
      card.task = await api.task({ slice, seed });
      card.image.src = card.task.image.url;
      card.image.hidden = false;
      card.button.disabled = false;
      card.button.title = card.task.question;
      setAttr(card.button, 'aria-label', `Example, ${card.example.name}: ${card.task.question}`);
      return card;
    });
    const settled = Promise.allSettled(all);
    try {
      await all[0];
    } catch (error) {
      this.onError(error);
    }
    await settled;
  }

  pickFirst() {
    if (this.#cards[0].task) this.pick(this.#cards[0]);
  }

  pick(card) {
    this.mark(card.task?.task_id);
    this.onPick(card.task);
  }

  /** Marks the chosen example, if any. */
  mark(taskId) {
    for (const { button, task } of this.#cards)
      setAttr(button, 'aria-pressed', Boolean(taskId) && task?.task_id === taskId);
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
