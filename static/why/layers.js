// What can lie over the viewer's image and words: how likely each word and code was, or where the attention goes.

import { api } from '../shared/api.js';
import { h, setAttr, setText, show } from '../shared/dom.js';
import { stageOf } from '../viewer/image.js';
import { Overlay } from './overlay.js';
import { BINS, attended, piecesOf, unlikely } from './scale.js';
import { Strip } from './strip.js';
import { tint, untint, word } from './tint.js';
import { Trouble } from './trouble.js';
import { attentionOf, codeWordsOf, codesOf, givenOf, leastLikely, percentOf, placesOf, shareOf } from './words.js';

const NOTHING = 'attention of step 0'; // the question is given: it has none
const WORDS = {
  likelihood:
    'How probable each word and each code of an image was when the model chose it. The stronger the tint, the less likely.',
  attention:
    'Where the model looks while it writes. Attention is not causation: an image can get much of it and still not matter.',
};

export class Layers {
  #viewer;
  #kind = null; // likelihood | attention
  #found = new Map(); // of this trace: what -> response
  #asked = new Set();
  #failed = new Map(); // what -> error
  #overlays;
  #drawn = ''; // what the strip shows
  #traceId = null;

  constructor(viewer) {
    this.#viewer = viewer;
    const { imageView } = viewer;
    this.#overlays = Object.fromEntries(
      ['before', 'after'].map((name) => [name, new Overlay(imageView.figures[name], imageView[name])]),
    );
    imageView.slider.addEventListener('input', () => this.#overlays.after.place());
    this.buttons = Object.fromEntries(
      Object.keys(WORDS).map((kind) => [
        kind,
        h(
          'button',
          { type: 'button', class: 'or-chipbutton', 'aria-pressed': 'false', onclick: () => this.#toggle(kind) },
          kind,
        ),
      ]),
    );
    this.from = h(
      'select',
      { 'aria-label': 'Attention of', onchange: () => this.#show() },
      h('option', { value: 'answer' }, 'of the answer'),
      h('option', { value: 'step' }, 'of the step shown'),
    );
    this.fromField = h('div', { class: 'or-field' }, this.from);
    this.word = h('p', { class: 'or-quiet' });
    this.legend = h('div', { class: 'or-why-legend', role: 'group', 'aria-label': 'Legend' });
    this.trouble = new Trouble();
    this.facts = h('p', { class: 'or-why-found', role: 'status' });
    this.least = h('p', { class: 'or-why-least' });
    this.strip = new Strip((step) => viewer.go(step));
    this.element = h(
      'section',
      { class: 'or-why-part or-why-layers' },
      h('h3', {}, 'On the image and the words'),
      h('div', { class: 'or-why-bar' }, Object.values(this.buttons), this.fromField),
      this.word,
      this.trouble.element,
      this.facts,
      this.strip.element,
      this.least,
      this.legend,
    );
    this.#arrange();
  }

  #toggle(kind) {
    this.#kind = this.#kind === kind ? null : kind;
    this.#arrange();
    this.#show();
  }

  #arrange() {
    for (const [kind, button] of Object.entries(this.buttons)) setAttr(button, 'aria-pressed', kind === this.#kind);
    show(this.fromField, this.#kind === 'attention');
    setText(this.word, this.#kind ? WORDS[this.#kind] : 'Two overlays on the image and the words above.');
    this.legend.replaceChildren(...(this.#kind ? { likelihood: likelihoods, attention: amounts }[this.#kind]() : []));
    show(this.legend, this.#kind !== null);
    this.#drawn = '';
    this.strip.clear();
    setText(this.facts, '');
    setText(this.least, '');
  }

  // The step whose attention is wanted: null = the answer's; 0 = the question, which has none.
  get #step() {
    const { state, at } = this.#viewer;
    const last = state.steps[state.steps.length - 1]?.index ?? 0;
    return this.from.value === 'answer' || at > last ? null : at;
  }

  get #what() {
    if (this.#kind !== 'attention') return this.#kind;
    return `attention of ${this.#step === null ? 'the answer' : `step ${this.#step}`}`;
  }

  // Draws what is known; asks once for the rest.
  #show() {
    const what = this.#what;
    this.#draw();
    if (what !== null && what !== NOTHING && !this.#found.has(what) && !this.#asked.has(what)) this.#ask(what);
  }

  async #ask(what) {
    const traceId = this.#traceId;
    this.#asked.add(what);
    this.#failed.delete(what);
    this.#draw();
    try {
      const response = await (what === 'likelihood' ? api.tokens(traceId) : api.attention(traceId, this.#step));
      if (this.#traceId === traceId) this.#found.set(what, response);
    } catch (error) {
      if (this.#traceId === traceId) this.#failed.set(what, error);
    }
    if (this.#traceId === traceId && this.#what === what) this.#draw();
  }

  // ---- drawing

  #draw() {
    const what = this.#what;
    const found = this.#found.get(what);
    this.#drawWords(what === 'likelihood' ? found : null);
    this.trouble.show(this.#failed.get(what) ?? null, () => this.#ask(what));
    if (!found) {
      for (const overlay of Object.values(this.#overlays)) overlay.update(null);
      if (what === NOTHING) this.#say('The question does not attend to anything: go to a step.', []);
      else setText(this.facts, what === null || this.#failed.has(what) ? '' : 'measuring …');
      return;
    }
    const { grids, items, facts } = this.#kind === 'likelihood' ? this.#likelihood(found) : this.#attention(found);
    this.#drawImages(grids);
    this.#say(facts, items);
  }

  #say(facts, items) {
    setText(this.facts, facts);
    const { state } = this.#viewer;
    const drawn = `${state.traceId} ${this.#what}`;
    if (drawn === this.#drawn) return; // a focused image keeps the focus
    this.#drawn = drawn;
    this.strip.update(state, items, this.#colour);
  }

  get #colour() {
    const name = this.#kind === 'likelihood' ? '--or-unsure' : '--or-attended';
    return getComputedStyle(this.element).getPropertyValue(name).trim();
  }

  get #stage() {
    const { state, at } = this.#viewer;
    return stageOf(state, Math.min(at, state.steps[state.steps.length - 1]?.index ?? 0));
  }

  /** grids: Map step -> alphas; 0: the question's first image, which the viewer shows. */
  #drawImages(grids) {
    const stage = this.#stage;
    const { fit = 'crop' } = this.#viewer.state.images[0] ?? {};
    for (const [name, overlay] of Object.entries(this.#overlays)) {
      const index = stage[name]?.index;
      const covered = name === 'after' || stage.mode === 'beside';
      overlay.update((covered && grids.get(index)) || null, this.#colour, index === 0 ? fit : 'crop');
    }
  }

  #likelihood(tokens) {
    const drawn = tokens.steps.filter((step) => step.image);
    const grids = new Map(drawn.map((step) => [step.index, unlikely(step.image)]));
    const items = drawn.map(({ index, image }) => {
      const { count, unsure, least } = codesOf(image);
      const figure = least ? `${unsure} of ${count} unsure` : 'given';
      return { step: index, place: `step ${index}`, grid: grids.get(index), figure };
    });
    const shown = this.#stage.after?.index ?? 0;
    const grid = tokens.steps.find((step) => step.index === shown)?.image;
    return { grids, items, facts: [codeWordsOf(shown, grid), givenOf(tokens)].join(' ').trim() };
  }

  #attention({ images }) {
    const places = placesOf(images);
    const alphas = attended(images.map((image) => image.grid));
    let asked = 0;
    const items = images.map(({ step, share }, k) => ({
      step,
      number: step ? null : asked++,
      place: places[k],
      grid: alphas[k],
      figure: shareOf(share),
    }));
    const grids = new Map(items.toReversed().map(({ step, grid }) => [step, grid]));
    const from = this.#step === null ? 'the answer' : `step ${this.#step}`;
    return { grids, items, facts: attentionOf(from, images) };
  }

  #drawWords(tokens) {
    const { state, words, answer } = this.#viewer;
    const parts = state.steps.map(({ index, text }) => ({
      place: `step ${index}`,
      element: words.rowOf(index)?.querySelector('.or-step-text'),
      text: text.trim(),
      tokens: tokens?.steps.find((step) => step.index === index)?.tokens ?? [],
    }));
    parts.push({ place: 'answer', element: answer.text, text: state.answer.trim(), tokens: tokens?.answer ?? [] });
    const pieces = parts.map((part) => ({ ...part, pieces: piecesOf(part.text, part.tokens) }));
    for (const part of pieces.filter(({ element }) => element)) {
      if (tokens && part.text) tint(part.element, part.pieces);
      else untint(part.element);
    }
    const least = tokens ? leastLikely(pieces) : [];
    const named = least.map(({ place, text, logprob }) => `“${text}” (${place}) ${percentOf(logprob)}`);
    if (tokens)
      setText(
        this.least,
        named.length ? `Least likely words: ${named.join(', ')}.` : `Every word was ${percentOf(0)} likely.`,
      );
  }

  // ---- life

  /** The panel is open on this trace: the layer that was chosen lies over it. */
  open(traceId) {
    this.#traceId = traceId;
    this.#show();
  }

  /** After every change of the viewer. */
  follow() {
    if (this.#kind) this.#show();
  }

  close() {
    this.#drawWords(null);
    for (const overlay of Object.values(this.#overlays)) overlay.update(null);
  }

  /** Another trace. */
  reset() {
    this.close();
    this.#kind = null;
    this.#traceId = null;
    this.#found.clear();
    this.#asked.clear();
    this.#failed.clear();
    this.#arrange();
  }
}

const likelihoods = () => [
  ...BINS.map(({ label }, bin) => h('span', { class: 'or-why-key' }, word(label, bin))),
  h('span', { class: 'or-why-key' }, word('given', null)),
];

const amounts = () => [
  h('span', {}, 'little'),
  h('span', { class: 'or-why-ramp', 'aria-hidden': 'true' }),
  h('span', {}, 'much'),
];
