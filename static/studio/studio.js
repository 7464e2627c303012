// The Studio page: connects its components with the REST API. One click, one POST.
//
// Gradio renders the page and owns question, sampling and buttons; app/ui/components.py describes the bridge. The text
// in the question box is what is sent. No trace state lives here: the viewer shows the server's.

import { api } from '../shared/api.js';
import { serve } from '../shared/bridge.js';
import { Place, appears } from '../shared/dom.js';
import { nameOf } from '../shared/fields.js';
import { wordsOf } from '../shared/notes.js';
import { requestOf, withAnotherSeed } from '../shared/request.js';
import { setTitle } from '../shared/title.js';
import { readQuestion } from '../shared/words.js';
import { onBack } from '../viewer/server.js';
import { isTerminal, phaseOf } from '../viewer/state.js';
import { Viewer } from '../viewer/viewer.js';
import { Views } from '../compare/views.js';
import { offerTour } from '../tour/tour.js';
import { Samples } from '../wall/samples.js';
import { Examples } from './examples.js';
import { chosenCheckpoint, forgetTrace, onCheckpoint, rememberTrace } from './header.js';
import { Line } from './line.js';
import { Seed } from './seed.js';
import { Well } from './well.js';

const QUESTION = '#or-question textarea';
const HINT =
  'Press Reason: the model reasons in images, which appear here as they are generated. Step pauses after each one. ' +
  'Afterwards you can edit any step, draw on its image, and let the model go on from there.';
const PARTS = ['well', 'examples', 'viewer', 'line', 'samples'];

/** The filled-in sampling fields as numbers; throws for anything else. */
export function numbersOf(fields) {
  const given = {};
  for (const [name, text] of Object.entries(fields)) {
    const written = String(text ?? '')
      .trim()
      .replace(',', '.');
    if (written === '') continue;
    const value = Number(written);
    if (!Number.isFinite(value)) throw new Error(`${nameOf(`body.sampling.${name}`)}: “${text}” is not a number.`);
    given[name] = value;
  }
  return given;
}

class Studio {
  #image = null; // {image, own}
  #task = null; // {task_id, question, image_id}: the task, valid while image and question are unchanged
  #starting = false;
  #checkpoints = 0; // number of checkpoints announced so far
  #parts = Object.fromEntries(PARTS.map((name) => [name, new Place()]));
  #begun = null;
  #offered = null; // resolves once there is an example to start with, or will be none

  /** Called by each Gradio component when it is created, in any order and possibly again; starts once all exist. */
  mount(name, element) {
    this.#parts[name].into(element, () => {});
    if (PARTS.every((one) => this.#parts[one].element)) this.#begun ??= this.#begin();
    return this.#begun;
  }

  get textarea() {
    return document.querySelector(QUESTION);
  }

  async #begin() {
    await appears(QUESTION);
    const { well, examples, viewer, line, samples } = Object.fromEntries(
      PARTS.map((name) => [name, this.#parts[name].element]),
    );
    this.line = new Line(line, {
      asked: () => ({
        question: this.textarea.value,
        images: this.#image ? 1 : 0,
        checkpoint: chosenCheckpoint(),
      }),
    });
    this.seed = new Seed(line.querySelector('.or-repeats'));
    this.well = new Well(well, {
      onImage: (image) => this.#ownImage(image),
      onFit: () => this.seed.forget(),
    });
    this.examples = new Examples(examples, {
      onPick: (task) => this.#pickTask(task),
      onError: (error) => this.line.fail(error),
    });
    this.samples = new Samples(samples, line.querySelector('.or-samples-note'));
    this.viewer = new Viewer(viewer, {
      label: 'Trace of this question',
      hint: HINT,
      onEdit: (index) => this.views.branches.edit(index),
      onState: (one) => this.#follow(one),
      onAnother: (state) => this.#another(state),
    });
    this.views = new Views(this.viewer, {
      onTrace: () => (this.views.state.traceId ? this.#fromTrace() : this.#preview()),
      onState: () => this.#follow(this.viewer),
      onTravel: () => this.line.fail(null),
    });
    this.#listen();
    this.#offered = Promise.all([this.examples.load(), this.views.open()]).then(() => this.#offerFirst());
    serve('studio', this);
    await this.#offered;
    if (!location.search) offerTour();
    document.documentElement.dataset.studio = 'ready';
  }

  #listen() {
    // on the document: Gradio may recreate the box
    document.addEventListener('input', (event) => event.target.matches(QUESTION) && this.#questionChanged());
    document.addEventListener(
      'keydown',
      (event) => {
        if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && event.target.matches?.(QUESTION)) {
          event.preventDefault();
          event.stopPropagation();
          this.#press('#or-reason');
        }
      },
      true,
    );
    onCheckpoint((name) => this.#checkpoint(name));
    onBack((outage) => this.#back(outage));
    if (this.textarea.value) this.#questionChanged(); // written before this module was loaded
  }

  #offerFirst() {
    if (!this.#image && !this.textarea.value) this.examples.pickFirst();
  }

  // After failed requests: load what is missing.
  async #back(outage) {
    if (outage && !this.#starting) this.line.fail(null);
    await this.examples.load();
    this.#offerFirst();
    this.line.count();
  }

  #press(selector) {
    const button = document.querySelector(selector);
    if (button && getComputedStyle(button).display !== 'none') button.click();
  }

  // ---- question

  #setQuestion(text) {
    const area = this.textarea;
    if (area.value === text) return;
    area.value = text;
    area.dispatchEvent(new Event('input', { bubbles: true }));
  }

  #pickTask(task) {
    if (!task) return;
    this.#task = { task_id: task.task_id, question: task.question, image_id: task.image.image_id };
    this.#image = { image: task.image, own: false };
    this.well.show(task.image, { own: false, alt: `Image of the task: ${task.question}` });
    this.#setQuestion(task.question);
    this.#changed();
  }

  #ownImage(image) {
    const task = this.#task;
    this.#task = null;
    this.#image = { image, own: true };
    if (task && this.textarea.value === task.question) this.#setQuestion('');
    this.textarea.focus();
    this.#changed();
  }

  #questionChanged() {
    this.line.fail(null);
    this.line.changed();
    this.#changed();
  }

  // An edited question is no longer the example's, until its text is the same again.
  #changed() {
    const asked = this.#task?.question === this.textarea.value;
    this.examples.mark(asked ? this.#task.task_id : null);
    this.seed.forget();
    this.#preview();
    this.line.count();
  }

  // A trace or group opened by link also fills the question, so that Reason repeats it.
  #fromTrace() {
    const { state } = this.views;
    const [image] = state.images;
    if (!state.traceId || !image) return;
    const own = !state.taskId;
    this.#task = own ? null : { task_id: state.taskId, question: state.question, image_id: image.image_id };
    this.#image = { image, own };
    this.well.show(image, { own, fit: image.fit });
    this.#setQuestion(state.question);
    this.#changed();
  }

  #preview() {
    const images = this.#image ? [this.#image.image] : [];
    this.viewer.preview({ question: this.textarea.value, images });
  }

  async #checkpoint(name) {
    const turn = ++this.#checkpoints;
    let notes = '';
    try {
      notes = wordsOf((await api.checkpoint(name)).card_notes);
    } catch {
      // the note is optional
    }
    if (turn !== this.#checkpoints) return;
    this.well.setCheckpoint(name, notes);
    this.line.count();
  }

  // ---- traces

  /** Starts a trace; `sampling` holds the texts of its fields, empty for defaults. */
  async start(mode, sampling) {
    if (!this.textarea.value.trim()) await this.#offered; // a click that was faster than the first example
    if (this.#busy) return;
    const question = this.textarea.value;
    if (!question.trim()) {
      this.line.fail('Write a question first, or choose an example.');
      this.textarea.focus();
      return;
    }
    if (this.line.tooLong) {
      this.textarea.focus(); // the line below gives the reason
      return;
    }
    let given;
    try {
      given = numbersOf(this.seed.in(sampling));
    } catch (error) {
      this.line.fail(error);
      return;
    }
    const { candidates, ...sampled } = given;
    const request = requestOf({
      ...this.#image,
      question,
      fit: this.well.fit,
      task: this.#task,
      mode,
      checkpoint: chosenCheckpoint(),
      sampling: sampled,
      candidates,
    });
    if (mode === 'auto' && this.samples.value > 1) request.n = this.samples.value;
    await this.#create(request);
  }

  // The trace that is shown, not what may stand in the fields by now.
  async #another(state) {
    if (!this.#busy) await this.#create(withAnotherSeed(state));
  }

  get #busy() {
    return this.#starting || ['running', 'paused'].includes(this.views.phase ?? this.viewer.phase);
  }

  // Whether question and image on the left are those of the request.
  #isAsked({ question, images }) {
    return question === this.textarea.value && images[0]?.image_id === this.#image?.image.image_id;
  }

  async #create(request) {
    this.#starting = true;
    this.line.fail(null);
    this.#setPhase('running', 'auto');
    try {
      const trace = await api.create(request);
      this.seed.started(trace.id, request.sampling?.seed === undefined && this.#isAsked(request));
      this.views.started(trace);
    } catch (error) {
      if (error.code === 'prompt_too_long') await this.line.ask(); // one message, in its own place
      if (!this.line.tooLong) this.line.fail(error);
      this.#setPhase(phaseOf(this.viewer.state), 'auto');
    } finally {
      this.#starting = false;
      this.#follow(this.viewer);
    }
  }

  pause() {
    this.viewer.pause();
  }

  proceed() {
    this.viewer.proceed();
    this.viewer.root.focus({ preventScroll: true });
  }

  finish() {
    this.viewer.finish();
    this.viewer.root.focus({ preventScroll: true });
  }

  stop() {
    this.views.stop();
  }

  // The style sheet shows the buttons of each phase: idle | running | paused | ended.
  #setPhase(phase, mode) {
    document.documentElement.dataset.phase = phase;
    document.documentElement.dataset.mode = mode;
  }

  #follow(viewer) {
    if (this.#starting) return;
    const { state } = viewer;
    this.views?.follow();
    this.#setPhase(this.views?.phase ?? (state.traceId ? phaseOf(state) : 'idle'), state.mode);
    if (state.traceId && state.status !== 'loading') rememberTrace(state.traceId);
    if (state.traceId && isTerminal(state)) this.seed.ended(state.traceId, state.seed);
    if (state.missing) forgetTrace(state.missing);
    const shown = this.views?.state ?? state;
    const question = shown.traceId ? readQuestion(shown.question) : '';
    setTitle({ question, live: shown.status === 'running' });
  }
}

export const studio = new Studio();
