// The Studio page: connects its components with the REST API. One click, one POST.
//
// Gradio renders the page and owns question, sampling and buttons; its buttons call `window.omniStudio` in the browser
// (`js=` of their events), with nothing between click and request. The text in the question box is what is sent. No
// trace state lives here: the viewer shows the server's.

import { api, PARTIAL_IMAGES } from '../shared/api.js';
import { Place, appears, setAttr, setText, show } from '../shared/dom.js';
import { onBack } from '../viewer/server.js';
import { Viewer } from '../viewer/viewer.js';
import { Views } from '../compare/views.js';
import { offerTour } from '../tour/tour.js';
import { Samples } from '../wall/samples.js';
import { phaseOf } from '../viewer/state.js';
import { budgetWords, budgetError } from './budget.js';
import { Examples } from './examples.js';
import { chosenCheckpoint, onCheckpoint, rememberTrace } from './header.js';
import { wordsOf } from '../shared/notes.js';
import { Well } from './well.js';

const BUDGET_WAIT_MS = 150;
const QUESTION = '#or-question textarea';
const HINT =
  'Press Reason: the model reasons in images, which appear here while they are generated. Step pauses after each one. ' +
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
    if (!Number.isFinite(value)) throw new Error(`Sampling: “${text}” is not a number (${name.replaceAll('_', ' ')}).`);
    given[name] = value;
  }
  return given;
}

class Studio {
  #image = null; // {image, own}
  #task = null; // {task_id, question, image_id}: the task, valid while image and question are unchanged
  #starting = false;
  #budget = { timer: 0, turn: 0, tooLong: false };
  #parts = Object.fromEntries(PARTS.map((name) => [name, new Place()]));
  #begun = null;

  /** Called by each Gradio component when it is created, in any order and possibly again; starts once all exist. */
  mount(name, element) {
    this.#parts[name].into(element, () => {});
    if (PARTS.every((one) => this.#parts[one].element)) this.#begun ??= this.#begin();
    return this.#begun;
  }

  get line() {
    return this.#parts.line.element;
  }

  get textarea() {
    return document.querySelector(QUESTION);
  }

  async #begin() {
    await appears(QUESTION);
    const { well, examples, viewer, samples } = Object.fromEntries(
      PARTS.map((name) => [name, this.#parts[name].element]),
    );
    this.well = new Well(well, {
      onImage: (image) => this.#ownImage(image),
      onFit: () => {},
    });
    this.examples = new Examples(examples, {
      onPick: (task) => this.#pickTask(task),
      onError: (error) => this.fail(error),
    });
    this.samples = new Samples(samples);
    this.viewer = new Viewer(viewer, {
      label: 'Trace of this question',
      hint: HINT,
      onEdit: (index) => this.views.branches.edit(index),
      onState: (one) => this.#follow(one),
    });
    this.views = new Views(this.viewer, {
      onTrace: () => this.#fromTrace(),
      onState: () => this.#follow(this.viewer),
    });
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
    onBack(() => this.#back());
    const ready = this.examples.load();
    await this.views.open();
    await ready;
    this.#offerFirst();
    if (!location.search) offerTour();
    document.documentElement.dataset.studio = 'ready';
  }

  #offerFirst() {
    if (!this.#image && !this.textarea.value) this.examples.pickFirst();
  }

  // After an outage: load what is missing.
  async #back() {
    if (!this.#starting) this.fail(null);
    await this.examples.load();
    this.#offerFirst();
    this.#count();
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
    this.#preview();
    this.#count();
  }

  #ownImage(image) {
    const task = this.#task;
    this.#task = null;
    this.#image = { image, own: true };
    this.examples.mark(null);
    if (task && this.textarea.value === task.question) this.#setQuestion('');
    this.textarea.focus();
    this.#preview();
    this.#count();
  }

  #questionChanged() {
    this.fail(null);
    this.#budget.tooLong = false; // until it is counted
    this.#preview();
    this.#count();
  }

  // A trace opened by link also fills the question, so that Reason repeats it.
  #fromTrace() {
    const { state } = this.viewer;
    const [image] = state.images;
    if (!state.traceId || !image) return;
    const own = !state.taskId;
    this.#task = own ? null : { task_id: state.taskId, question: state.question, image_id: image.image_id };
    this.#image = { image, own };
    this.well.show(image, { own });
    this.examples.mark(state.taskId);
    this.#setQuestion(state.question);
    this.#count();
  }

  #preview() {
    const images = this.#image ? [this.#image.image] : [];
    this.viewer.preview({ question: this.textarea.value, images });
  }

  // ---- token budget

  #count() {
    const { timer } = this.#budget;
    clearTimeout(timer);
    this.#budget.timer = setTimeout(() => this.#askBudget(), BUDGET_WAIT_MS);
  }

  async #askBudget() {
    const turn = ++this.#budget.turn;
    const question = this.textarea.value;
    let said = null;
    if (question.trim()) {
      try {
        said = budgetWords(await api.budget(question, this.#image ? 1 : 0));
      } catch (error) {
        said = budgetError(error);
      }
    }
    if (turn !== this.#budget.turn) return;
    this.#budget.tooLong = said?.tooLong ?? false;
    const line = this.line.querySelector('.or-budget');
    setText(line, said?.text ?? '');
    setAttr(line, 'data-over', said?.over ? 'true' : null);
  }

  async #checkpoint(name) {
    let notes = '';
    try {
      notes = wordsOf((await api.checkpoint(name)).card_notes);
    } catch {
      // the budget line is optional
    }
    this.well.setCheckpoint(name, notes);
  }

  // ---- buttons

  /** Starts a trace; `sampling` holds the texts of its fields, empty for defaults. */
  async start(mode, sampling) {
    if (this.#starting || ['running', 'paused'].includes(this.views.phase ?? this.viewer.phase)) return;
    const question = this.textarea.value;
    if (!question.trim()) {
      this.fail('Write a question first, or choose an example.');
      this.textarea.focus();
      return;
    }
    if (this.#budget.tooLong) {
      this.textarea.focus(); // the line below gives the reason
      return;
    }
    const request = { question, images: [], mode, partial_images: PARTIAL_IMAGES, background: true };
    if (this.#image) {
      const { image, own } = this.#image;
      request.images.push(
        own && image.width !== image.height
          ? { image_id: image.image_id, fit: this.well.fit }
          : { image_id: image.image_id },
      );
      if (this.#task && this.#task.question === question && this.#task.image_id === image.image_id) {
        request.task_id = this.#task.task_id;
      }
    }
    if (mode === 'auto' && this.samples.value > 1) request.n = this.samples.value;
    const checkpoint = chosenCheckpoint();
    if (checkpoint) request.checkpoint = checkpoint;
    try {
      const given = numbersOf(sampling);
      if (Object.keys(given).length) request.sampling = given;
    } catch (error) {
      this.fail(error);
      return;
    }
    this.#starting = true;
    this.fail(null);
    this.#setPhase('running', 'auto');
    try {
      const trace = await api.create(request);
      this.views.started(trace);
      if (this.views.view === 'trace' && matchMedia('(max-width: 900px)').matches)
        this.viewer.root.scrollIntoView({ block: 'start' });
    } catch (error) {
      if (error.code === 'prompt_too_long') await this.#askBudget(); // one message, in its own place
      if (!this.#budget.tooLong) this.fail(error);
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

  fail(error) {
    const line = this.line.querySelector('.or-error');
    setText(line, error ? (error.message ?? String(error)) : '');
    show(line, Boolean(error));
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
    document.title = state.status === 'running' ? '● Omni-R1 Studio' : 'Omni-R1 Studio';
  }
}

export const studio = (window.omniStudio = new Studio());
