// Activates a checkpoint while the server keeps serving; shows progress and allows switching back.
//
// The weights are loaded next to the running ones; running traces keep theirs. If memory cannot hold both, the server
// reports its numbers, and the user chooses to wait for running traces or to cancel them.

import { api } from '../shared/api.js';
import { h, setText, show } from '../shared/dom.js';
import { refreshCheckpoints } from '../studio/header.js';

const LOOK_EVERY_MS = 250;
const PREVIOUS = 'omni-r1-previous-checkpoint';

/** The active checkpoint before the last activation in this browser. */
export function previous() {
  try {
    return localStorage.getItem(PREVIOUS);
  } catch {
    return null;
  }
}

function remember(name) {
  try {
    localStorage.setItem(PREVIOUS, name);
  } catch {
    // without storage there is no shortcut back
  }
}

const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

export class Activation {
  #busy = false;
  #watch = 0; // timer that polls the progress; 0 = show no results any more

  /** changed(): the active checkpoint has changed. */
  constructor({ changed }) {
    this.changed = changed;
    this.text = h('span', { class: 'or-activation-text' });
    this.bar = h('span', { class: 'or-activation-bar', 'aria-hidden': 'true' }, h('span'));
    this.choices = h('span', { class: 'or-row' });
    this.element = h(
      'div',
      { class: 'or-activation', role: 'status', 'aria-live': 'polite', hidden: true },
      this.bar,
      this.text,
      this.choices,
    );
  }

  get busy() {
    return this.#busy;
  }

  #say(tone, text, ...choices) {
    this.element.dataset.tone = tone;
    show(this.element, true);
    show(this.bar, tone === 'run');
    setText(this.text, text);
    this.choices.replaceChildren(...choices);
  }

  /** Activates `name`. `from` is the currently active checkpoint. */
  async activate(name, from, drain = null) {
    if (this.#busy) return;
    this.#busy = true;
    this.#say('run', `Checking ${name} …`);
    const began = performance.now();
    const watch = setInterval(() => this.#look(name, began, watch), LOOK_EVERY_MS);
    this.#watch = watch;
    const settled = () => {
      clearInterval(watch);
      this.#watch = 0;
    };
    try {
      const answer = await api.activate(name, drain ? { drain } : {}).finally(settled);
      if (from && from !== name) remember(from);
      const version = answer?.weight_version ? ` (version ${answer.weight_version})` : '';
      const seconds = ((performance.now() - began) / 1000).toFixed(1);
      this.#say('done', `${name}${version} is active; it took ${seconds} s. Running traces keep their weights.`);
      await refreshCheckpoints({ forget: true });
      this.changed();
    } catch (error) {
      this.#failed(error, name, from);
    } finally {
      this.#busy = false;
    }
  }

  async #look(name, began, watch) {
    try {
      const { detail } = await api.ready();
      if (this.#watch !== watch) return;
      const seconds = Math.round((performance.now() - began) / 1000);
      const what = detail || `loading ${name}`;
      this.#say('run', `${what[0].toUpperCase()}${what.slice(1)}${seconds > 1 ? ` · ${seconds} s` : ''}`);
    } catch {
      // the activation's own response reports the outcome
    }
  }

  #failed(error, name, from) {
    if (error.status === 507 && error.code !== 'disk_full') {
      this.#say(
        'fail',
        `${sentence(error.message)} Nothing has changed. It can replace the running weights instead:`,
        this.#button('Wait for running traces, then replace', () => this.activate(name, from, 'wait')),
        this.#button('Stop running traces and replace', () => this.activate(name, from, 'cancel')),
      );
      return;
    }
    const what =
      error.status === 409 ? sentence(error.message) : `${sentence(error.message)} The previous weights stay active.`;
    this.#say('fail', what);
  }

  #button(label, act) {
    return h('button', { type: 'button', class: 'or-secondary', onclick: act }, label);
  }
}
