// One question, two checkpoints, two synchronised viewers: the same image and seed, different weights.
//
// Two traces, each with its own log. Only one of the viewers holds the page's EventSource; the other polls its log (see
// shared/events.js). Selecting a step in one selects it in the other.

import { Examples } from '../studio/examples.js';
import { Well } from '../studio/well.js';
import { api } from '../shared/api.js';
import { wordsOf } from '../shared/notes.js';
import { h, setText, show } from '../shared/dom.js';
import { requestOf } from '../shared/request.js';
import { isLive } from '../viewer/state.js';
import { Viewer } from '../viewer/viewer.js';
import { outcomeOf } from './lineage.js';

const SIDES = ['left', 'right'];

export class Compare {
  #task = null;
  #image = null; // {image, own}
  #names = [];
  #viewers = {};
  #starting = false;
  #turn = 0;
  #begun = false;

  constructor() {
    this.selects = Object.fromEntries(
      SIDES.map((side) => [
        side,
        h('select', {
          'aria-label': side === 'left' ? 'First checkpoint' : 'Second checkpoint',
          onchange: () => this.#notes(),
        }),
      ]),
    );
    this.wellPlace = h('div', { class: 'or-part-well' });
    this.examples = h('div', {});
    this.question = h('textarea', {
      class: 'or-input or-compare-question',
      rows: 3,
      'aria-label': 'The question for both',
      placeholder: 'One question for both',
    });
    this.ask = h('button', { type: 'button', class: 'or-primary', onclick: () => this.#ask() }, 'Ask both');
    this.stop = h(
      'button',
      { type: 'button', class: 'or-secondary', hidden: true, onclick: () => this.#stop() },
      'Stop',
    );
    this.close = h('button', { type: 'button', class: 'or-secondary', onclick: () => this.hide() }, 'Close');
    this.error = h('p', { class: 'or-error', role: 'alert', hidden: true });
    this.outcome = h('p', { class: 'or-quiet', role: 'status' });
    this.places = Object.fromEntries(SIDES.map((side) => [side, h('div', { class: 'or-compare-viewer' })]));
    const column = (side) =>
      h(
        'div',
        { class: 'or-compare-column', 'data-side': side },
        h('label', { class: 'or-field' }, h('span', {}, side === 'left' ? 'first' : 'second'), this.selects[side]),
        this.places[side],
      );
    this.element = h(
      'section',
      { class: 'or-block or-compare-page', 'aria-label': 'Compare two checkpoints', hidden: true },
      h(
        'div',
        { class: 'or-block-head' },
        h('h2', {}, 'Compare'),
        h('span', { class: 'or-quiet' }, 'one question, the same seed, two checkpoints'),
        h('span', { class: 'or-spring' }),
        this.close,
      ),
      h(
        'div',
        { class: 'or-compare-ask' },
        this.wellPlace,
        h(
          'div',
          { class: 'or-compare-words' },
          this.examples,
          this.question,
          this.error,
          h('div', { class: 'or-row' }, this.ask, this.stop, this.outcome),
        ),
      ),
      h('div', { class: 'or-compare-pair' }, SIDES.map(column)),
    );
    this.question.addEventListener('input', () => {
      this.fail(null);
      this.#mark();
    });
    this.question.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.#ask();
    });
  }

  /** The available names; keeps the selection. */
  names(names) {
    this.#names = names;
    for (const side of SIDES) {
      const select = this.selects[side];
      const chosen = select.value;
      select.replaceChildren(...names.map((name) => h('option', { value: name }, name)));
      if (names.includes(chosen)) select.value = chosen;
    }
  }

  get open() {
    return !this.element.hidden;
  }

  async show(left, right) {
    show(this.element, true);
    if (this.#names.includes(left)) this.selects.left.value = left;
    if (this.#names.includes(right)) this.selects.right.value = right;
    this.#begin();
    this.#notes();
    this.element.scrollIntoView({ block: 'start' });
    this.question.focus({ preventScroll: true });
  }

  hide() {
    this.#stop();
    show(this.element, false);
  }

  #begin() {
    if (this.#begun) return;
    this.#begun = true;
    this.well = new Well(this.wellPlace, { onImage: (image) => this.#ownImage(image), onFit: () => {} });
    this.list = new Examples(this.examples, {
      onPick: (task) => this.#pick(task),
      onError: (error) => this.fail(error),
    });
    for (const side of SIDES) {
      const other = side === 'left' ? 'right' : 'left';
      this.#viewers[side] = new Viewer(this.places[side], {
        label: side === 'left' ? 'Trace of the first checkpoint' : 'Trace of the second checkpoint',
        again: 'press Ask both to ask again',
        hint: 'Press Ask both: both reason about the same question.',
        onGo: (at) => this.#viewers[other].keepStep(at),
        onState: () => this.#follow(),
      });
    }
    this.list.load().then(() => this.#image ?? this.list.pickFirst());
  }

  #pick(task) {
    if (!task) return;
    this.#task = { task_id: task.task_id, question: task.question, image_id: task.image.image_id };
    this.#image = { image: task.image, own: false };
    this.well.show(task.image, { own: false, alt: `Image of the task: ${task.question}` });
    this.question.value = task.question;
    this.fail(null);
    this.#mark();
  }

  // An edited question is no longer the example's.
  #mark() {
    this.list?.mark(this.#task?.question === this.question.value ? this.#task.task_id : null);
  }

  // What the cards of both say about images outside their world; the image is shown as the first one sees it.
  async #notes() {
    const turn = ++this.#turn;
    const names = [...new Set(SIDES.map((side) => this.selects[side].value))];
    const cards = await Promise.allSettled(names.map((name) => api.checkpoint(name)));
    if (turn !== this.#turn) return;
    const notes = cards.map(({ value }) => wordsOf(value?.card_notes)).filter(Boolean);
    this.well.setCheckpoint(names[0], [...new Set(notes)].join(' '));
  }

  #ownImage(image) {
    this.#task = null;
    this.#image = { image, own: true };
    this.#mark();
    this.question.focus();
  }

  fail(error) {
    setText(this.error, error?.message ?? '');
    show(this.error, Boolean(error));
  }

  async #ask() {
    if (this.#starting) return;
    const question = this.question.value;
    if (!question.trim()) {
      this.fail({ message: 'Write a question first, or choose an example.' });
      this.question.focus();
      return;
    }
    const asked = {
      ...this.#image,
      question,
      fit: this.well.fit,
      task: this.#task,
      sampling: { seed: Math.floor(Math.random() * 2 ** 31) },
    };
    this.#starting = true;
    this.fail(null);
    this.ask.disabled = true;
    try {
      const created = await Promise.allSettled(
        SIDES.map((side) => api.create(requestOf({ ...asked, checkpoint: this.selects[side].value }))),
      );
      const failed = created.find((one) => one.status === 'rejected');
      if (failed) {
        // half a comparison is useless: cancel the other trace
        for (const one of created) if (one.status === 'fulfilled') api.cancel(one.value.id).catch(() => {});
        this.fail(failed.reason);
        return;
      }
      for (const [k, side] of SIDES.entries()) this.#viewers[side].started(created[k].value);
    } finally {
      this.#starting = false;
      this.ask.disabled = false;
      this.#follow();
    }
  }

  #stop() {
    for (const side of SIDES) {
      const viewer = this.#viewers[side];
      if (viewer && isLive(viewer.state)) viewer.stop();
    }
  }

  #follow() {
    const [left, right] = SIDES.map((side) => this.#viewers[side]?.state);
    if (!left || !right || this.#starting) return;
    show(
      this.stop,
      [left, right].some((state) => state.traceId && isLive(state)),
    );
    setText(this.outcome, outcomeOf(left, right));
  }
}
