// One image at a time is replaced and the model goes on: a table that fills while the branches run.

import { ApiError, api } from '../shared/api.js';
import { h, setAttr, setText, show } from '../shared/dom.js';
import { EventStream, groupSource } from '../shared/events.js';
import { GROUP_END, TRACE_ENDS } from '../shared/contract.js';
import { Table } from './table.js';
import { Trouble } from './trouble.js';
import { MOST_MEMBERS, REPLACEMENTS, rowsOf, skippedOf, tallyOf } from './words.js';

const WORD = 'Replace one image at a time and let the model continue from there: does its answer change?';
const ENDS = new Set(TRACE_ENDS);
const KINDS = ['previous', 'blank', 'other', 'reference'];

/** The body of POST …/interventions: a sampled trace gets the control. Pure, for tests. */
export const requestOf = (kinds, temperature) => ({ with: temperature > 0 ? [...kinds, 'none'] : kinds });

export class Interventions {
  #viewer;
  #groups = new Map(); // trace -> its newest group, as long as this page lives
  #group = null; // shown
  #stream = null;
  #traceId = null;
  #busy = false;
  #reading = 0;

  /** onOpen(traceId); onCompare(left, right). */
  constructor(viewer, { onOpen, onCompare }) {
    this.#viewer = viewer;
    this.boxes = Object.fromEntries(
      KINDS.map((kind) => [
        kind,
        h('input', { type: 'checkbox', class: 'or-why-box', value: kind, checked: kind === 'previous' }),
      ]),
    );
    this.labels = Object.fromEntries(
      KINDS.map((kind) => [kind, h('label', { class: 'or-why-choice' }, this.boxes[kind], REPLACEMENTS[kind].choice)]),
    );
    this.choice = h(
      'fieldset',
      { class: 'or-why-choices', onchange: () => this.#label() },
      h('legend', {}, 'Replace it with'),
      Object.values(this.labels),
    );
    this.control = h('p', { class: 'or-quiet', hidden: true });
    this.go = h('button', { type: 'button', class: 'or-secondary', onclick: () => this.#start() }, 'Try it');
    this.stop = h(
      'button',
      { type: 'button', class: 'or-link', hidden: true, onclick: () => this.#cancel() },
      'Cancel',
    );
    this.count = h('span', { class: 'or-quiet' });
    this.trouble = new Trouble();
    this.tally = h('p', { class: 'or-why-found', role: 'status' });
    this.table = new Table({ onOpen, onCompare: (id) => onCompare(this.#traceId, id) });
    this.skipped = h('ul', { class: 'or-why-skipped', 'aria-label': 'Not replaced' });
    this.element = h(
      'section',
      { class: 'or-why-part or-why-wide' },
      h('h3', {}, 'Replace an image'),
      h('p', { class: 'or-quiet' }, WORD),
      this.choice,
      this.control,
      h('div', { class: 'or-why-bar' }, this.go, this.stop, this.count),
      this.trouble.element,
      this.tally,
      this.table.element,
      this.skipped,
    );
  }

  get #temperature() {
    return this.#viewer.state.sampling?.temperature ?? 0;
  }

  get #request() {
    const kinds = KINDS.filter((kind) => this.boxes[kind].checked && !this.labels[kind].hidden);
    return requestOf(kinds, this.#temperature);
  }

  #label() {
    const { state } = this.#viewer;
    const images = state.steps.filter((step) => step.image).length;
    const kinds = KINDS.some((kind) => this.boxes[kind].checked && !this.labels[kind].hidden);
    const members = images * this.#request.with.length;
    let word = `${members} ${members === 1 ? 'continuation' : 'continuations'}`;
    if (!images) word = 'No step has an image.';
    else if (!kinds) word = 'Choose at least one.';
    else if (members > MOST_MEMBERS)
      word = `${members} continuations; at most ${MOST_MEMBERS} run at once: choose fewer.`;
    this.go.disabled = !images || !kinds || members > MOST_MEMBERS;
    setText(this.count, this.#running ? '' : word);
    setAttr(this.go, 'aria-disabled', this.#busy || this.#running ? 'true' : null);
    show(this.stop, this.#running);
  }

  get #running() {
    return this.#group !== null && this.#group.status !== 'completed';
  }

  async #start() {
    if (this.#busy || this.#running) return;
    const traceId = this.#traceId;
    this.#busy = true;
    this.#label();
    this.trouble.show(null);
    try {
      const group = await api.intervene(traceId, this.#request);
      this.#groups.set(traceId, group.id);
      if (this.#traceId !== traceId) return;
      this.#leave();
      this.#draw(group);
      this.#follow(group, true);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (this.#traceId === traceId) this.trouble.show(error, () => this.#start());
    } finally {
      this.#busy = false;
      this.#label();
    }
  }

  async #cancel() {
    const { id } = this.#group;
    if (document.activeElement === this.stop) this.go.focus({ preventScroll: true });
    try {
      const group = await api.cancelGroup(id);
      if (this.#group?.id === id && this.#running) this.#draw(group);
    } catch (error) {
      this.trouble.show(error);
    }
  }

  // One stream for all; each branch that ends fills its row.
  #follow(group, fresh) {
    if (group.status === 'completed') return;
    this.#stream = new EventStream({
      source: groupSource(group.id),
      fresh,
      onEvents: (events) => {
        const end = events.find(({ type }) => type === GROUP_END);
        if (end) {
          this.#stream = null;
          this.#draw({ ...this.#group, ...end.data });
        } else if (events.some(({ type }) => ENDS.has(type))) this.#read(group.id);
      },
      onConnection: (word) => word === 'ended' && this.#read(group.id),
    });
  }

  async #read(groupId) {
    const turn = (this.#reading += 1);
    try {
      const group = await api.group(groupId);
      if (turn === this.#reading && this.#group?.id === groupId && this.#running) this.#draw(group);
    } catch {
      // the next one that ends asks again, and the last event has everything
    }
  }

  #draw(group) {
    this.#group = group;
    const rows = rowsOf(group, this.#viewer.state.steps);
    this.table.update(rows, this.#traceId);
    setAttr(this.table.element, 'aria-busy', this.#running);
    setText(this.tally, rows.length ? tallyOf(rows) : 'No image could be replaced.');
    this.skipped.replaceChildren(...skippedOf(group).map((text) => h('li', {}, text)));
    this.#label();
  }

  /** The panel is open on this trace; shows what this page found earlier. */
  async open(traceId) {
    if (this.#traceId !== traceId) {
      this.#traceId = traceId;
      const { taskId } = this.#viewer.state;
      show(this.labels.reference, Boolean(taskId));
      const sampled = this.#temperature > 0;
      show(this.control, sampled);
      setText(
        this.control,
        sampled
          ? `This trace was sampled (temperature ${this.#temperature}); the continuations are not. So the control ` +
              'continues with nothing replaced: if the answer changes there as well, the image is not the reason.'
          : '',
      );
      this.#label();
    }
    const known = this.#groups.get(traceId);
    if (!known || this.#stream || this.#group?.status === 'completed') return;
    try {
      const group = await api.group(known);
      if (this.#traceId !== traceId || this.#stream) return;
      this.#draw(group);
      this.#follow(group, false);
    } catch {
      this.#groups.delete(traceId); // deleted in the meantime
    }
  }

  #leave() {
    const stream = this.#stream;
    this.#stream = null;
    stream?.close();
    this.#reading += 1;
  }

  /** Another trace; what runs goes on. */
  reset() {
    this.#leave();
    this.#traceId = null;
    this.#group = null;
    this.table.update([], null);
    this.skipped.replaceChildren();
    setText(this.tally, '');
    this.trouble.show(null);
  }
}
