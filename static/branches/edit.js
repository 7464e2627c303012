// One step of a trace under edit: its text in its row, its image under the ink tool, and the branch that follows.

import { ApiError, api } from '../shared/api.js';
import { h, setAttr, setText, show } from '../shared/dom.js';
import { stageOf } from '../viewer/image.js';
import { fetchReference } from '../viewer/reference.js';
import { isLive } from '../viewer/state.js';
import { InkTool } from './ink.js';

/**
 * The body of POST …/branches for an edited step; `text` and `image`: null = unchanged. Without a change the model goes
 * on with another seed. Pure, for tests.
 */
export function branchOf({ step, text = null, image = null }) {
  const edit = { step };
  if (text !== null) edit.text = text;
  if (image !== null) edit.image = image;
  const changed = text !== null || image !== null;
  return changed
    ? { after_step: step, edits: [edit], background: true }
    : { after_step: step, sampling: { seed: Math.floor(Math.random() * 2 ** 31) }, background: true };
}

export class StepEditor {
  #viewer = null;
  #step = null; // being edited
  #traceId = null;
  #opener = null; // gets the focus back
  #busy = false;
  #keys = (event) => this.#key(event); // wherever the focus is in the trace: a pen stroke moves it

  /** onBranch(trace, parent): a branch was created from the viewer's trace, whose state was `parent`. */
  constructor({ onBranch }) {
    this.onBranch = onBranch;
    this.tool = new InkTool({ onChange: () => this.#label() });
    this.text = h('textarea', { class: 'or-input or-edit-text', rows: 2, dir: 'auto' });
    this.error = h('p', { class: 'or-error', role: 'alert', hidden: true });
    this.go = h('button', { type: 'button', class: 'or-primary', onclick: () => this.#send() }, 'Go on from here');
    const cancel = h('button', { type: 'button', class: 'or-secondary', onclick: () => this.cancel() }, 'Cancel');
    this.hint = h('p', { class: 'or-quiet or-edit-hint' });
    this.form = h(
      'div',
      { class: 'or-edit', role: 'group' },
      this.text,
      this.error,
      h('div', { class: 'or-edit-bar' }, this.go, cancel),
      this.hint,
    );
    this.text.addEventListener('input', () => this.#label());
    this.form.addEventListener('click', (event) => event.stopPropagation()); // the row would select its step
  }

  get step() {
    return this.#step?.index ?? null;
  }

  #key(event) {
    if (event.key === 'Escape' && !event.shiftKey) {
      event.preventDefault();
      event.stopPropagation();
      this.cancel();
    } else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      event.stopPropagation();
      this.#send();
    }
  }

  /** Makes a step of the viewer's trace editable in place. */
  async open(viewer, index) {
    const { state } = viewer;
    const step = state.steps.find((one) => one.index === index);
    if (!step || this.#busy || (viewer === this.#viewer && step.index === this.step)) return;
    if (this.#changed && state.traceId === this.#traceId) {
      this.fail(new Error(`Step ${this.step} has changes: go on from it, or cancel, before you edit step ${index}.`));
      setTimeout(() => this.#viewer?.go(this.step)); // after the row's own click, which selects its step
      this.go.focus({ preventScroll: true });
      this.form.scrollIntoView({ block: 'nearest' });
      return;
    }
    this.#close();
    this.#viewer = viewer;
    this.#step = step;
    this.#traceId = state.traceId;
    this.#opener = viewer.words.rowOf(index).querySelector('.or-edit-button');
    this.fail(null);
    this.text.value = step.text.trim();
    setAttr(this.text, 'aria-label', `Text of step ${index}`);
    setAttr(this.form, 'aria-label', `Edit step ${index}`);
    viewer.root.addEventListener('keydown', this.#keys, true);
    const row = viewer.words.rowOf(index);
    row.append(this.form);
    setAttr(row, 'data-editing', 'true');
    const picture = viewer.imageView;
    picture.pane.append(this.tool.canvas);
    picture.element.append(this.tool.bar);
    const { before } = stageOf(state, index);
    const ready = this.tool.open({ step, before: before?.url });
    viewer.go(index);
    this.follow(viewer);
    this.form.scrollIntoView({ block: 'nearest' });
    // on a touch screen the keyboard would cover the image
    const touch = matchMedia('(pointer: coarse)').matches;
    (touch ? this.tool.first : this.text).focus({ preventScroll: true });
    if (touch) picture.element.scrollIntoView({ block: 'nearest' });
    await Promise.all([ready, this.#reference(state, index)]);
  }

  // The right image: only of a task, and only of a step that the task has.
  async #reference(state, index) {
    if (!state.taskId) return;
    const step = this.#step;
    try {
      const task = await fetchReference(state.taskId);
      const right = task?.steps?.find((one) => one.index === index);
      if (right && this.#step === step) await this.tool.reference(right.image.url);
    } catch {
      // the button stays hidden
    }
  }

  /** After every change of the viewer: the ink tool covers only the step's own image, and a live trace is left alone. */
  follow(viewer) {
    if (!this.#step || viewer !== this.#viewer) return;
    const { state } = viewer;
    if (state.traceId !== this.#traceId || isLive(state)) {
      this.#close();
      return;
    }
    const at = Math.min(viewer.at, state.steps[state.steps.length - 1]?.index ?? 0);
    setAttr(viewer.imageView.element, 'data-editing', at === this.#step.index ? 'true' : null);
  }

  get #changed() {
    return Boolean(this.#step) && (this.tool.changed || this.text.value.trim() !== this.#step.text.trim());
  }

  #label() {
    const greedy = this.#viewer?.state.sampling?.temperature === 0;
    const same = greedy
      ? 'Without a change, the model repeats itself at temperature 0.'
      : 'Without a change, the model uses another seed.';
    setText(this.hint, this.#changed ? 'A new trace starts here; this one stays as it is.' : same);
  }

  fail(error) {
    setText(this.error, error?.message ?? '');
    show(this.error, Boolean(error));
  }

  /** Leaves nothing behind. */
  cancel() {
    const opener = this.#opener;
    this.#close();
    opener?.focus({ preventScroll: true });
  }

  #close() {
    if (!this.#viewer) return;
    this.#viewer.root.removeEventListener('keydown', this.#keys, true);
    setAttr(this.#viewer.imageView.element, 'data-editing', null);
    setAttr(this.form.parentElement ?? this.form, 'data-editing', null);
    for (const part of [this.form, this.tool.canvas, this.tool.bar]) part.remove();
    this.tool.close();
    this.#viewer = this.#step = this.#traceId = this.#opener = null;
  }

  async #send() {
    if (this.#busy) return;
    const parent = this.#viewer.state;
    const text = this.text.value.trim() === this.#step.text.trim() ? null : this.text.value.trim();
    const request = branchOf({ step: this.#step.index, text, image: this.tool.given() });
    this.#busy = true;
    this.go.disabled = true;
    this.fail(null);
    try {
      const { data } = await api.branch(this.#traceId, request);
      if (this.#viewer?.state.traceId !== parent.traceId) return; // left in the meantime
      this.#close();
      this.onBranch(data[0], parent);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.fail(error);
    } finally {
      this.#busy = false;
      this.go.disabled = false;
    }
  }
}
