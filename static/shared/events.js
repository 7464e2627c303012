// The events of a trace or job: in order, without gaps or duplicates.
//
// Browsers allow six connections per server. So only the most recently used tab holds an EventSource (see turn.js);
// other visible tabs poll about once a second, less often while nothing is new, and hidden tabs not at all. The stream
// closes after the terminal event and when the trace has been paused for 30 s; missed events are read from the stored
// log (`after=`) on waking up.

import { urlOf } from './address.js';
import { api, reach } from './api.js';
import { GROUP_END, TRACE_ENDS, TRACE_EVENTS } from './contract.js';
import { parser } from './sse.js';
import { TERMINAL } from '../viewer/state.js';
import { Turn } from '../viewer/turn.js';

const ENDS = new Set(TRACE_ENDS);

/** The URL of a trace's events, their types, and the events that end or pause the stream. */
export const traceSource = (traceId) => ({
  types: TRACE_EVENTS,
  url: (after) => api.eventsUrl(traceId, after),
  row: `/v1/traces/${encodeURIComponent(traceId)}`,
  over: (row) => TERMINAL.has(row.status),
  ends: ({ type }) => ENDS.has(type),
  rests: ({ type }) => type === 'trace.paused',
});

/** The same for a group: one stream for all its members, each event's data with its `trace_id`. */
export const groupSource = (groupId) => ({
  types: [...TRACE_EVENTS, GROUP_END],
  url: (after) => api.groupEventsUrl(groupId, after),
  row: `/v1/groups/${encodeURIComponent(groupId)}`,
  over: (row) => row.status === 'completed',
  ends: ({ type }) => type === GROUP_END,
  rests: () => false,
});

const CHANNEL = 'omni-r1-live';
export const PAUSED_MS = 30_000;
const LOOK_IN_EVERY_MS = 800;
const LOOK_IN_RARELY_MS = 3200; // while nothing is new
const LOOK_IN_PATIENCE_MS = 600; // for the first events of a poll
const LOOK_IN_QUIET_MS = 150;
const LOOK_IN_MOST_MS = 400; // a busy trace must not hold its connection
const SUCCEED_MS = 300; // within this time a waiting tab takes a free turn
const CATCH_UP_QUIET_MS = 40;
const CATCH_UP_MAX_MS = 250;
const RETRY_MS = [100, 500, 1000, 2000, 4000, 8000];

const browser = () => ({
  document,
  window,
  channel: () => (typeof BroadcastChannel === 'undefined' ? null : new BroadcastChannel(CHANNEL)),
  EventSource,
  fetch: reach,
  frame: (callback) => requestAnimationFrame(callback),
  setTimeout: (...args) => setTimeout(...args),
  clearTimeout: (timer) => clearTimeout(timer),
});

export class EventStream {
  #env;
  #source; // traceSource or jobSource
  #onEvents;
  #onConnection;
  #after;
  #buffer = [];
  #flushing = false;
  #catchUp; // collect stored events first, to render them at once
  #wire = null;
  #turn;
  #look = null; // AbortController of the running poll
  #lookEvery = LOOK_IN_EVERY_MS;
  #timers = new Map();
  #tries = 0;
  #holes = 0;
  #paused = false;
  #mode = 'new'; // new | live | looking | asleep | lost | closed
  #listeners = [];

  /**
   * onEvents(events): called per frame, with events `{seq, type, data}` in order.
   * onConnection(word): 'live' | 'looking' | 'asleep' | 'lost' | 'unknown' | 'ended' | 'closed'.
   */
  constructor({ source, after = 0, fresh = false, onEvents, onConnection = () => {}, env = browser() }) {
    this.#source = source;
    this.#after = after;
    this.#catchUp = !fresh;
    this.#onEvents = onEvents;
    this.#onConnection = onConnection;
    this.#env = env;
    this.#turn = new Turn({
      channel: env.channel?.() ?? null,
      now: env.now,
      onTaken: () => this.#taken(),
      onFree: () =>
        this.#mode === 'looking' && this.#timer('succeed', Math.random() * SUCCEED_MS, () => this.#goLive()),
    });
    const listen = (target, type, handler) => {
      target.addEventListener(type, handler, { passive: true });
      this.#listeners.push(() => target.removeEventListener(type, handler));
    };
    listen(env.document, 'visibilitychange', () => (this.#hidden() ? this.#sleep() : this.wake()));
    for (const type of ['pointerdown', 'keydown']) listen(env.document, type, () => this.#used());
    listen(env.window, 'focus', () => this.#used());
    listen(env.window, 'pagehide', () => this.#sleep());
    listen(env.window, 'pageshow', () => this.wake());
    if (this.#hidden()) this.#say('asleep');
    else this.#goLive();
  }

  get after() {
    return this.#after;
  }

  /** Resume reading: after Continue, or when the page is visible again. */
  wake() {
    if (this.#mode === 'closed' || this.#mode === 'live' || this.#hidden()) return;
    this.#clear('paused');
    this.#goLive();
  }

  close(word = 'closed') {
    if (this.#mode === 'closed') return;
    this.#hangUp();
    this.#flush();
    this.#turn.close();
    for (const stop of this.#listeners) stop();
    this.#say('closed', word);
  }

  #hidden() {
    return this.#env.document.visibilityState === 'hidden';
  }

  #say(mode, word = mode) {
    if (this.#mode === mode) return;
    this.#mode = mode;
    this.#onConnection(word);
  }

  #used() {
    if (this.#mode === 'looking' || this.#mode === 'asleep') this.wake();
    else if (this.#mode === 'lost' && this.#timers.has('retry')) {
      this.#clear('retry');
      this.#retry(1);
    }
  }

  #sleep() {
    if (this.#mode === 'closed') return;
    this.#hangUp();
    this.#flush();
    this.#say('asleep');
  }

  #timer(name, ms, callback) {
    this.#clear(name);
    this.#timers.set(
      name,
      this.#env.setTimeout(() => {
        this.#timers.delete(name);
        callback();
      }, ms),
    );
  }

  #clear(name) {
    if (this.#timers.has(name)) this.#env.clearTimeout(this.#timers.get(name));
    this.#timers.delete(name);
  }

  #hangUp() {
    for (const name of [...this.#timers.keys()]) this.#clear(name);
    this.#closeSource();
    this.#look?.abort();
    this.#look = null;
    this.#turn.release();
  }

  #closeSource() {
    this.#wire?.close();
    this.#wire = null;
  }

  // ---- turn for the stream

  #taken() {
    this.#clear('succeed');
    if (this.#mode !== 'live' && this.#mode !== 'lost') return;
    this.#clear('retry');
    this.#closeSource();
    this.#lookEvery = LOOK_IN_EVERY_MS;
    this.#lookIn();
  }

  #goLive() {
    this.#look?.abort();
    this.#look = null;
    for (const name of ['look', 'quiet', 'long', 'succeed']) this.#clear(name);
    this.#turn.take();
    this.#say('live');
    this.#open();
  }

  // ---- stream

  #open() {
    this.#closeSource();
    this.#restWhenPaused();
    const wire = new this.#env.EventSource(urlOf(this.#source.url(this.#after)));
    this.#wire = wire;
    const receive = (message) => {
      if (wire === this.#wire) this.#receive(message.type, message.lastEventId, message.data);
    };
    for (const type of this.#source.types) wire.addEventListener(type, receive);
    wire.onopen = () => {
      this.#tries = 0;
      this.#say('live');
    };
    wire.onerror = () => wire === this.#wire && this.#lost();
  }

  #lost() {
    this.#closeSource();
    this.#flush();
    if (this.#mode === 'closed') return;
    const tries = this.#tries++;
    this.#timer('retry', RETRY_MS[Math.min(tries, RETRY_MS.length - 1)], () => this.#retry(tries));
  }

  async #retry(tries) {
    const stopped = () => this.#mode === 'closed' || this.#mode === 'asleep';
    try {
      // an EventSource does not report why it ended; the row of the trace or job does
      const response = await this.#env.fetch(this.#source.row);
      if (stopped()) return;
      if (response.status === 404) return this.close('unknown');
      if (!response.ok) throw new Error(String(response.status));
      if (this.#source.over(await response.json()) && tries > 0) return this.close('ended');
    } catch {
      if (stopped()) return;
      this.#say('lost');
      return this.#lost();
    }
    if (!stopped()) this.#open();
  }

  // ---- polling from unused tabs

  #lookIn() {
    if (this.#mode !== 'looking') this.#restWhenPaused();
    this.#say('looking');
    const look = new AbortController();
    this.#look = look;
    const before = this.#after;
    const again = () => {
      if (this.#look !== look || this.#hidden()) return;
      this.#lookEvery = this.#after > before ? LOOK_IN_EVERY_MS : Math.min(2 * this.#lookEvery, LOOK_IN_RARELY_MS);
      this.#timer('look', this.#lookEvery, () => this.#lookIn());
    };
    this.#read(look).then((ended) => (ended && this.#look === look ? this.close('ended') : again()), again);
  }

  async #read(look) {
    const response = await this.#env.fetch(this.#source.url(this.#after), {
      signal: look.signal,
      headers: { Accept: 'text/event-stream' },
    });
    if (response.status === 204 || response.status === 404) return true;
    if (!response.ok) return false;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const feed = parser(({ id, event, data }) => this.#receive(event, id, data));
    const stop = () => reader.cancel().catch(() => {});
    this.#timer('quiet', LOOK_IN_PATIENCE_MS, stop);
    for (let first = true; ; first = false) {
      const { done, value } = await reader.read();
      if (done) break;
      feed(value);
      if (first) this.#timer('long', LOOK_IN_MOST_MS, stop);
      this.#timer('quiet', LOOK_IN_QUIET_MS, stop);
    }
    this.#clear('quiet');
    this.#clear('long');
    return false;
  }

  // ---- ordering

  #receive(type, id, text) {
    if (this.#mode === 'closed') return;
    let data;
    try {
      data = JSON.parse(text);
    } catch {
      return;
    }
    this.#buffer.push({ seq: Number(id), type, data });
    if (this.#catchUp) {
      if (!this.#timers.has('most')) this.#timer('most', CATCH_UP_MAX_MS, () => this.#caughtUp());
      this.#timer('quietly', CATCH_UP_QUIET_MS, () => this.#caughtUp());
      if (this.#source.ends({ type, data })) this.#caughtUp();
      return;
    }
    if (this.#flushing) return;
    this.#flushing = true;
    this.#env.frame(() => this.#flush());
  }

  #caughtUp() {
    this.#catchUp = false;
    this.#clear('most');
    this.#clear('quietly');
    this.#flush();
  }

  #flush() {
    this.#flushing = false;
    const batch = [];
    for (const event of this.#buffer.splice(0)) {
      if (!(event.seq > this.#after)) continue;
      if (event.seq > this.#after + 1 && this.#wire && this.#holes < 1) {
        this.#holes += 1; // an event is missing: read again from the last known one
        this.#open();
        break;
      }
      // still missing after a retry: a type that this page does not know
      for (let seq = this.#after + 1; seq < event.seq; seq += 1) batch.push({ seq, type: 'unknown', data: {} });
      this.#holes = 0;
      this.#after = event.seq;
      batch.push(event);
    }
    if (!batch.length) return;
    this.#onEvents(batch);
    const last = batch[batch.length - 1];
    if (batch.some((event) => this.#source.ends(event))) this.close('ended');
    this.#paused = this.#source.rests(last);
    this.#restWhenPaused();
  }

  #restWhenPaused() {
    if (this.#paused && this.#mode !== 'closed') this.#timer('paused', PAUSED_MS, () => this.#sleep());
    else this.#clear('paused');
  }
}

/** The stream of one trace. */
export class TraceStream extends EventStream {
  constructor({ traceId, ...options }) {
    super({ source: traceSource(traceId), ...options });
  }
}
