// "Why?" in an ended trace: what its answer owes to its images, in a panel under the answer.

import { h, icon, setAttr, show } from '../shared/dom.js';
import { listenForKeys } from '../viewer/keys.js';
import { onBack } from '../viewer/server.js';
import { isTerminal } from '../viewer/state.js';
import { Interventions } from './interventions.js';
import { Layers } from './layers.js';
import { Reliance } from './reliance.js';

export class Why {
  #viewer;
  #traceId = null;

  /** onOpen(traceId): shows another trace; onCompare(left, right): two of them. */
  constructor(viewer, { onOpen, onCompare }) {
    this.#viewer = viewer;
    this.reliance = new Reliance(viewer);
    this.layers = new Layers(viewer);
    this.interventions = new Interventions(viewer, { onOpen, onCompare });
    const close = h(
      'button',
      { type: 'button', class: 'or-round', 'aria-label': 'Close', title: 'Close (Esc)', onclick: () => this.#leave() },
      icon('close'),
    );
    this.panel = h(
      'section',
      { class: 'or-why', id: 'or-why', 'aria-label': 'Why this answer?', hidden: true },
      h('div', { class: 'or-why-top' }, h('h2', {}, 'Why this answer?'), h('span', { class: 'or-spring' }), close),
      this.reliance.element,
      this.layers.element,
      this.interventions.element,
    );
    this.button = h(
      'button',
      {
        type: 'button',
        class: 'or-chipbutton or-why-button',
        'aria-expanded': 'false',
        'aria-controls': 'or-why',
        title: 'How much the answer depends on its images (w)',
        hidden: true,
        onclick: () => this.toggle(),
      },
      'Why?',
    );
    viewer.tools.buttons.prepend(this.button);
    viewer.answer.element.after(this.panel);
    onBack(() => {
      if (this.#open) for (const { trouble } of [this.reliance, this.layers]) trouble.back();
    });
    listenForKeys(viewer.root, { why: () => this.toggle() });
    this.panel.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape' || event.shiftKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.#leave();
    });
  }

  get #open() {
    return !this.panel.hidden;
  }

  toggle() {
    if (this.button.hidden) return false;
    if (this.#open) this.#close();
    else {
      show(this.panel, true);
      setAttr(this.button, 'aria-expanded', 'true');
      this.#begin();
      this.reliance.element.scrollIntoView({ block: 'nearest' });
    }
    return true;
  }

  #begin() {
    for (const part of [this.reliance, this.layers, this.interventions]) part.open(this.#traceId);
    this.follow();
  }

  #leave() {
    this.#close();
    this.button.focus({ preventScroll: true });
  }

  #close() {
    show(this.panel, false);
    setAttr(this.button, 'aria-expanded', 'false');
    this.reliance.close();
    this.layers.close();
  }

  /** After every change of the viewer: the panel stays while the trace does. */
  follow() {
    const { state } = this.#viewer;
    if (state.traceId !== this.#traceId) {
      if (this.#open) this.#close();
      for (const part of [this.reliance, this.layers, this.interventions]) part.reset();
      this.#traceId = state.traceId;
    }
    show(this.button, state.traceId !== null && isTerminal(state) && state.hasAnswer);
    if (!this.#open) return;
    this.reliance.follow();
    this.layers.follow();
  }
}
