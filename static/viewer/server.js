// Monitors whether the server is reachable and still serves the version of this page.
//
// Checks after every failed request, and regularly while the page is visible. While the server is unreachable it keeps
// retrying; `onBack` listeners can then reload what is missing. They are called, too, if the server is ready again at
// the first check: what failed in between is still missing.

import { urlOf } from '../shared/address.js';
import { onUnreachable } from '../shared/api.js';

const LOOK_EVERY_MS = 30_000;
const TRY_EVERY_MS = [500, 1000, 2000, 4000];
const PATIENCE_MS = 8000;
const LEAVING_MS = 300; // a page being closed loses its requests, too
const MOST_DOUBLINGS = 6; // of that time, while single requests keep failing on a ready server

const backs = new Set();

/**
 * Calls `listener(outage)` when the server is ready after a request has failed; returns an unsubscribe function.
 * outage: whether the page has reported one.
 */
export function onBack(listener) {
  backs.add(listener);
  return () => backs.delete(listener);
}

const browser = () => ({
  document,
  window,
  fetch: (path) => fetch(urlOf(path), { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE_MS) }),
  onUnreachable,
  setTimeout: (...args) => setTimeout(...args),
  clearTimeout: (timer) => clearTimeout(timer),
});

/** The message for a state; empty while all is well. */
export function wordsOf(state, detail = '') {
  const why = detail ? `: ${detail.replace(/[.\s]+$/, '')}` : '';
  if (state === 'gone') return 'The server is unreachable. This page keeps trying.';
  if (state === 'starting') return `The server is not ready yet${why}.`;
  if (state === 'stopping') return 'The server is stopping. This page waits for it to come back.';
  if (state === 'failed') return `The server has a problem${why}.`;
  if (state === 'updated') return 'The studio was updated. Reload this page to use the new version.';
  return '';
}

export class ServerWatch {
  #env;
  #version;
  #onState;
  #timer = 0;
  #looking = false;
  #tries = 0;
  #text = '';
  #missed = false; // a request has failed since the last check
  #misses = 0; // consecutive checks of a ready server after failed requests

  /**
   * version: of the server that served this page.
   * onState(state, text): ready | starting | stopping | failed | gone | updated.
   */
  constructor({ version, onState, env = browser() }) {
    this.#version = version;
    this.#onState = onState;
    this.#env = env;
    this.state = 'ready';
    env.document.addEventListener('visibilitychange', () => env.document.visibilityState === 'visible' && this.look());
    env.window.addEventListener('pageshow', (event) => event.persisted && this.look());
    env.window.addEventListener('online', () => this.look());
    env.window.addEventListener('pagehide', () => env.clearTimeout(this.#timer));
    this.#later(LOOK_EVERY_MS);
    env.onUnreachable(() => this.#failed());
  }

  #failed() {
    if (this.state !== 'ready' || this.#missed) return;
    this.#missed = true;
    this.#later(LEAVING_MS * 2 ** Math.min(this.#misses, MOST_DOUBLINGS));
  }

  #later(ms) {
    this.#env.clearTimeout(this.#timer);
    this.#timer = this.#env.setTimeout(() => this.look(), ms);
  }

  async look() {
    if (this.#looking || this.state === 'updated') return;
    this.#looking = true;
    this.#env.clearTimeout(this.#timer);
    let ready = null;
    try {
      ready = await (await this.#env.fetch('/readyz')).json();
    } catch {
      // unreachable, or a proxy's page
    }
    this.#looking = false;
    if (ready?.version && ready.version !== this.#version) return this.#become('updated');
    this.#become(ready?.phase ?? 'gone', ready?.detail);
    if (this.state === 'ready') this.#tries = 0;
    if (this.#env.document.visibilityState === 'hidden') return; // resumes when the page is visible
    const wait = TRY_EVERY_MS[Math.min(this.#tries++, TRY_EVERY_MS.length - 1)];
    this.#later(this.state === 'ready' ? LOOK_EVERY_MS : wait);
  }

  #become(state, detail) {
    const before = this.state;
    const text = wordsOf(state, detail);
    this.state = state;
    if (before !== state || text !== this.#text) this.#onState(state, text);
    this.#text = text;
    if (state !== 'ready') return;
    const missed = this.#missed;
    this.#missed = false;
    this.#misses = missed ? this.#misses + 1 : 0;
    if (missed || before !== 'ready') for (const listener of backs) listener(before !== 'ready');
  }
}
