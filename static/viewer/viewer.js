// The trace viewer: shows one trace, live or ended (in Studio, Gallery, Training, Checkpoints).
//
//   const viewer = mount(element, {traceId})        follow or show a stored trace
//   const viewer = mount(element, {trace, events})  show a recorded trace without a server
//
// It holds no state of its own: everything is derived from the trace's row and its events.

import { studioUrl } from '../shared/address.js';
import { ApiError, api } from '../shared/api.js';
import { copyButton, h, icon, setAttr, setText, show } from '../shared/dom.js';
import { Answer, Bar, Steps, Timeline } from './draw.js';
import { TraceStream } from '../shared/events.js';
import { listenForKeys, openHelp } from './keys.js';
import { Notice, unknownTrace } from './notice.js';
import { ImageView, loadImage } from './image.js';
import { fetchReference } from './reference.js';
import { onBack } from './server.js';
import { fromTrace, initialState, isLive, isTerminal, phaseOf, reduceAll, withTrace } from './state.js';
import { Tools } from './tools.js';
import { announcementOf } from '../shared/words.js';

const HINT = 'The model’s images appear here, step by step.';

export class Viewer {
  #state = initialState(null);
  #cursor = null; // null = live: the latest step; else a position 0 … n+1
  #stream = null;
  #replay = null; // the state built from stored events while the row is shown
  #opening = null;
  #connection = 'closed';
  #notice = null; // {text, links: [[label, href]], retry}
  #reference = null;
  #busy = false;
  #given = null; // a trace passed in by the page: it has no URL and no row
  #stopListening;
  #options;

  constructor(element, options = {}) {
    this.#options = options;
    const label = options.label ?? 'Trace';
    const button = (kind, content, onclick, title = null) =>
      h(
        'button',
        { type: 'button', class: kind, 'aria-label': kind === 'or-round' ? title : null, title, onclick },
        content,
      );
    const say = (text) => this.#say(text);
    this.previous = button('or-round', icon('left'), () => this.step(-1), 'Previous step (←)');
    this.next = button('or-round', icon('right'), () => this.step(1), 'Next step (→)');
    this.live = button('or-chipbutton or-live', 'live', () => this.follow(), 'Follow the latest step (End)');
    this.help = button('or-round', '?', openHelp, 'Keyboard (?)');
    this.link = copyButton('copy link', () => this.address(), say);
    this.bar = new Bar([this.link]);
    this.timeline = new Timeline(label, (at) => this.go(at));
    this.imageView = new ImageView();
    this.words = new Steps(label, (at) => this.go(at), options.onEdit);
    this.tools = new Tools({
      say,
      json: () => this.json(),
      onError: (error) => this.#trouble(error),
      onAnother: options.onAnother,
    });
    this.answer = new Answer(this.tools.elements);
    this.notice = new Notice();
    this.spoken = h('div', { class: 'or-sr', role: 'status', 'aria-live': 'polite' });
    this.root = h(
      'section',
      { class: 'or-viewer', tabindex: '-1', 'aria-label': label },
      this.bar.element,
      h(
        'div',
        { class: 'or-line' },
        this.timeline.element,
        h('div', { class: 'or-nav' }, this.previous, this.next, this.live, this.help),
      ),
      this.notice.element,
      h('div', { class: 'or-main' }, this.imageView.element, this.words.element),
      this.answer.element,
      this.spoken,
    );
    listenForKeys(this.root, {
      previous: () => this.step(-1),
      next: () => this.step(1),
      live: () => this.follow(),
      help: openHelp,
      toggle: () => this.toggle(),
      stop: () => (phaseOf(this.#state) === 'running' || this.#state.status === 'paused' ? this.stop() : false),
      close: () => this.imageView.closeTop(),
      candidates: () => this.imageView.candidates.toggle(),
    });
    element.replaceChildren(this.root);
    this.#stopListening = onBack(() => this.#notice?.retry?.());
    if (options.events) this.record(options.trace, options.events);
    else if (options.traceId) this.open(options.traceId);
    else this.#draw();
  }

  get state() {
    return this.#state;
  }

  get phase() {
    return this.#busy ? 'running' : phaseOf(this.#state);
  }

  address() {
    return `${studioUrl()}/?trace=${encodeURIComponent(this.#state.traceId)}`;
  }

  async json() {
    return JSON.stringify(this.#given ?? (await api.trace(this.#state.traceId)), null, 2);
  }

  // ---- content

  /** Show only the question and its image. */
  preview({ question = '', images = [] }) {
    if (this.#state.traceId) return;
    this.#set({ ...initialState(null), question, images });
  }

  /** Show no trace. */
  clear() {
    this.#leave();
    this.#set(initialState(null));
  }

  /** Show a recorded trace; only its images are fetched. */
  record(trace, events) {
    this.#leave();
    const start = trace ? withTrace(initialState(trace.id), trace) : initialState('recorded');
    this.#set(reduceAll(start, events));
  }

  /** Show a trace that no server stores, such as a job's sample; `reference` is the correct answer. */
  show(trace, { reference = null } = {}) {
    this.#leave();
    this.#given = trace;
    this.#reference = reference;
    this.#set(fromTrace(trace));
  }

  /** Show a stored trace, and follow it while it is live. */
  async open(traceId) {
    this.#leave();
    this.#set(initialState(traceId));
    const opening = new AbortController();
    this.#opening = opening;
    try {
      const trace = await api.trace(traceId, { signal: opening.signal });
      if (this.#opening === opening) this.#begin(trace, false);
    } catch (error) {
      if (opening.signal.aborted) return;
      this.#trouble(error, traceId);
    }
  }

  /** Follow a trace that this page has just created: `trace` is the response of the POST. */
  started(trace) {
    this.#leave();
    this.#begin(trace, true);
    this.root.focus({ preventScroll: true });
  }

  #begin(trace, fresh) {
    this.#notice = null;
    const ended = fromTrace(trace);
    if (isTerminal(ended)) {
      this.#set(ended);
      this.#fetchReferenceAnswer();
      return;
    }
    // the row is drawn first; the stored events follow and take over once they have caught up
    this.#replay = fresh ? null : withTrace(initialState(trace.id), trace);
    this.#set(fresh ? withTrace(initialState(trace.id), trace) : ended);
    this.#stream = new TraceStream({
      traceId: trace.id,
      fresh,
      onEvents: (events) => this.#receive(events),
      onConnection: (word) => this.#connected(word, trace.id),
    });
  }

  #leave() {
    this.#opening?.abort();
    this.#opening = null;
    const stream = this.#stream;
    this.#stream = null;
    this.#replay = null;
    stream?.close();
    this.#cursor = null;
    this.#notice = null;
    this.#reference = null;
    this.#given = null;
    this.#busy = false;
    this.timeline.reset();
    this.words.reset();
  }

  destroy() {
    this.#leave();
    this.#stopListening();
    this.bar.stop();
    this.root.remove();
  }

  #receive(events) {
    for (const { type, data } of events) {
      if ((type === 'image.partial' || type === 'image.completed') && data.url) loadImage(data.url).catch(() => {});
    }
    const before = this.#state;
    const after = reduceAll(this.#replay ?? before, events);
    if (this.#replay && after.steps.length < before.steps.length && !isTerminal(after)) {
      this.#replay = after;
      return;
    }
    this.#replay = null;
    this.#set(after, announcementOf(before, after, this.#options.again));
    if (isTerminal(after)) this.#refresh(after.traceId);
  }

  #connected(word, traceId) {
    this.#connection = word;
    if (word === 'unknown') this.#trouble(new ApiError('', { status: 404 }), traceId);
    if (word === 'ended' && !isTerminal(this.#state)) this.open(traceId);
    this.#draw();
  }

  // only the row has the verdict, skills and exact usage
  async #refresh(traceId) {
    try {
      const trace = await api.trace(traceId);
      if (this.#state.traceId !== traceId) return;
      const row = fromTrace(trace);
      this.#set({ ...row, lastSeq: this.#state.lastSeq, cancelReason: this.#state.cancelReason });
      this.#fetchReferenceAnswer();
    } catch {
      // keep what the events reported
    }
  }

  async #fetchReferenceAnswer() {
    const { taskId, verdict, traceId } = this.#state;
    if (!taskId || verdict?.answer !== 'wrong') return;
    try {
      const task = await fetchReference(taskId);
      if (this.#state.traceId === traceId) this.#reference = task?.answer ?? null;
      this.#draw();
    } catch {
      // show the verdict alone
    }
  }

  #trouble(error, traceId = null) {
    if (error.status === 404 && traceId) {
      this.#notice = unknownTrace(traceId);
      this.#state = { ...initialState(null), missing: traceId };
    } else {
      const again = error.status === 0 && traceId;
      this.#notice = { text: error.message, links: [], retry: again ? () => this.open(traceId) : null };
    }
    this.#draw();
  }

  // ---- navigation

  get #newest() {
    const last = this.#state.steps[this.#state.steps.length - 1]?.index ?? 0;
    return this.#state.hasAnswer ? last + 1 : last;
  }

  get at() {
    return this.#cursor === null ? this.#newest : Math.min(this.#cursor, this.#newest);
  }

  go(at) {
    if (at < 0 || at > this.#newest) return;
    this.#cursor = at === this.#newest ? null : at;
    this.#draw();
    this.#options.onGo?.(this.#cursor);
  }

  /** Follow another viewer's position (null = the latest), as far as this trace has come; emits no event. */
  keepStep(at) {
    this.#cursor = at === null || at >= this.#newest ? null : at;
    this.#draw();
  }

  step(by) {
    this.go(Math.max(0, Math.min(this.#newest, this.at + by)));
  }

  follow() {
    this.#cursor = null;
    this.#draw();
    this.#options.onGo?.(null);
  }

  // ---- actions

  async #act(call) {
    if (this.#busy || !this.#state.traceId) return;
    this.#busy = true;
    this.#draw();
    try {
      const trace = await call(this.#state.traceId);
      this.#notice = null;
      if (trace.id === this.#state.traceId) {
        this.#stream?.wake();
        if (!isTerminal(this.#state)) this.#state = { ...this.#state, mode: trace.mode };
      }
    } catch (error) {
      this.#trouble(error);
    } finally {
      this.#busy = false;
      this.#draw();
    }
  }

  pause() {
    return this.#act((id) => api.pause(id));
  }

  /** Run one more step. */
  proceed() {
    this.follow();
    return this.#act((id) => api.resume(id, 'step'));
  }

  /** Run to the end. */
  finish() {
    this.follow();
    return this.#act((id) => api.resume(id, 'auto'));
  }

  stop() {
    return this.#act((id) => api.cancel(id));
  }

  toggle() {
    if (this.#state.status === 'paused') return this.finish();
    return isLive(this.#state) ? this.pause() : false;
  }

  // ---- rendering

  #say(text) {
    if (text) setText(this.spoken, text);
  }

  #set(state, announcement = '') {
    this.#state = state;
    this.#say(announcement);
    this.#draw();
  }

  #draw() {
    const state = this.#state;
    const at = this.at;
    const picked = state.traceId !== null;
    const stored = picked && !this.#given && state.traceId !== 'recorded';
    const fresh = picked ? state : { ...state, status: 'idle' };
    const hint = this.#options.hint ?? HINT;
    setAttr(this.root, 'data-status', fresh.status);
    setAttr(this.root, 'data-connection', this.#connection);
    setAttr(this.root, 'data-seq', state.lastSeq);
    this.bar.update(fresh, isTerminal(state) ? 'closed' : this.#connection);
    this.timeline.update(fresh, at);
    this.words.update(fresh, at, hint);
    // the answer has no image: keep the last one
    this.imageView.update(fresh, Math.min(at, state.steps[state.steps.length - 1]?.index ?? 0), hint);
    this.answer.update(fresh, this.#reference, this.#options.again);
    show(this.link, stored);
    this.tools.update(state, { stored });
    this.previous.disabled = at <= 0;
    this.next.disabled = at >= this.#newest;
    setAttr(this.live, 'aria-pressed', this.#cursor === null);
    this.live.disabled = this.#newest === 0;
    this.notice.update(this.#notice);
    this.#options.onState?.(this);
  }
}

export const mount = (element, options) => new Viewer(element, options);

/** For the gr.HTML component: its value is a trace id, which Python may change later. */
export function mountComponent(element, props, watch) {
  const holder = element.querySelector('[data-viewer]');
  const viewer = mount(holder, { traceId: props.value || null });
  watch('value', () => props.value && viewer.open(props.value));
  return viewer;
}
