// The image of the current step: updated without flashes, compared with the previous one.
//
// For box, line, mark and next state the two images overlap under a slider, and *changes* tints the pixels that differ.
// After a zoom or an unknown skill the pixels do not correspond, so the images are shown side by side.

import { urlOf } from '../shared/address.js';
import { Candidates } from './candidates.js';
import { altOf, factsOf } from '../shared/words.js';
import { h, icon, openDialog, setAttr, setText, show } from '../shared/dom.js';

const COMPARABLE = new Set(['box', 'line', 'mark', 'predict']);
const DIFFERS = 36; // sum over three channels (max. 765): above decoder noise
const ENLARGED = 3;
const TINT = [52, 82, 217]; // the accent colour: no skill draws in it

const loaded = new Map(); // url -> Promise<HTMLImageElement>, so that scrubbing never flickers

export function loadImage(url) {
  if (!loaded.has(url)) {
    const image = new Image();
    image.src = urlOf(url);
    const ready = image.decode().then(() => image);
    ready.catch(() => loaded.delete(url));
    loaded.set(url, ready);
    if (loaded.size > 256) loaded.delete(loaded.keys().next().value);
  }
  return loaded.get(url);
}

/** The images for position `at` (0 = the question, k = step k). Pure, for tests. */
export function stageOf(state, at) {
  const question = state.images[0] ?? null;
  const drawn = (index) => {
    for (let k = index; k >= 1; k -= 1) {
      const image = state.steps.find((step) => step.index === k)?.image;
      if (image) return { image, index: k };
    }
    return question ? { image: question, index: 0 } : null;
  };
  if (at === 0) return { after: question && { url: question.url, index: 0 }, before: null, step: null, waiting: false };
  const step = state.steps.find((one) => one.index === at) ?? null;
  const before = drawn(at - 1);
  const url = step?.image?.url ?? step?.partial?.url ?? null;
  if (!url)
    return { after: before && { url: before.image.url, index: before.index }, before: null, step, waiting: true };
  return {
    after: { url, index: at },
    before: before && { url: before.image.url, index: before.index },
    step,
    waiting: !step.image,
    mode: COMPARABLE.has(step.skill) ? 'slider' : 'beside',
  };
}

/** The name of the file of an image (0 = the question's). Pure, for tests. */
export const fileOf = ({ traceId }, index) =>
  `${traceId ?? 'omni-r1'}-${index === 0 ? 'question' : `step-${index}`}.png`;

/** The pixels of `after` that differ from `before`, as an RGBA overlay (pure). */
export function changesOf(before, after, [red, green, blue]) {
  const out = new Uint8ClampedArray(after.length);
  for (let i = 0; i < after.length; i += 4) {
    const differs =
      Math.abs(after[i] - before[i]) + Math.abs(after[i + 1] - before[i + 1]) + Math.abs(after[i + 2] - before[i + 2]);
    if (differs > DIFFERS) out.set([red, green, blue, 190], i);
    else out.set([128, 128, 128, 110], i);
  }
  return out;
}

export class ImageView {
  #url = { before: null, after: null };
  #images = { before: null, after: null };
  #divide = 100; // slider position in percent: the part of the newer image on top of the older one
  #tint = false;
  #stage = null;
  #names = { before: null, after: null }; // of the files

  constructor() {
    this.before = h('canvas', { class: 'or-canvas', role: 'img' });
    this.after = h('canvas', { class: 'or-canvas', role: 'img' });
    this.changes = h('canvas', { class: 'or-canvas or-changes', 'aria-hidden': 'true' });
    this.line = h('div', { class: 'or-canvas or-changes or-divide', 'aria-hidden': 'true' });
    this.empty = h('p', { class: 'or-stage-hint' });
    this.captions = { before: h('figcaption'), after: h('figcaption') };
    this.figures = {
      before: h('figure', { class: 'or-figure' }, this.before, this.captions.before),
      after: h('figure', { class: 'or-figure' }, this.after, this.changes, this.line, this.captions.after),
    };
    this.pane = h('div', { class: 'or-stage' }, this.figures.before, this.figures.after, this.empty);
    this.pane.addEventListener('click', (event) => event.target instanceof HTMLCanvasElement && this.#enlarge(event));
    this.slider = h('input', {
      type: 'range',
      min: 0,
      max: 100,
      value: 100,
      class: 'or-slider',
      'aria-label': 'From the previous image to the current one',
    });
    this.slider.addEventListener('input', () => {
      this.#divide = Number(this.slider.value);
      this.#lay();
    });
    this.tint = h('button', { type: 'button', class: 'or-chipbutton', 'aria-pressed': 'false' }, 'changes');
    this.tint.addEventListener('click', () => {
      this.#tint = !this.#tint;
      setAttr(this.tint, 'aria-pressed', this.#tint);
      this.#drawChanges();
    });
    this.facts = h('div', { class: 'or-facts', role: 'group', 'aria-label': 'Facts about this image' });
    this.factsButton = h('button', { type: 'button', class: 'or-chipbutton', 'aria-expanded': 'false' }, 'facts');
    this.factsButton.addEventListener('click', () => this.toggleFacts());
    this.full = h(
      'button',
      { type: 'button', class: 'or-round or-small', 'aria-label': 'Full size', title: 'Full size' },
      icon('full'),
    );
    this.full.addEventListener('click', (event) => this.#enlarge(event));
    this.save = h(
      'a',
      { class: 'or-round or-small', 'aria-label': 'Save this image', title: 'Save this image (PNG)' },
      icon('save'),
    );
    this.compare = h(
      'div',
      { class: 'or-compare' },
      h('span', { 'aria-hidden': 'true' }, 'before'),
      this.slider,
      h('span', { 'aria-hidden': 'true' }, 'after'),
    );
    this.candidates = new Candidates();
    this.tools = h(
      'div',
      { class: 'or-tools' },
      this.candidates.button,
      this.tint,
      this.factsButton,
      this.full,
      this.save,
    );
    this.element = h(
      'div',
      { class: 'or-picture' },
      h('div', { class: 'or-stage-frame' }, this.pane, this.facts),
      h('div', { class: 'or-picture-bar' }, this.compare, this.tools),
      this.candidates.strip,
    );
    for (const one of [this.facts, ...Object.values(this.figures)]) show(one, false);
    new ResizeObserver(() => this.#sharpen()).observe(this.pane);
  }

  /** True if Escape closed something. */
  closeTop() {
    if (this.facts.hidden) return this.candidates.close();
    this.toggleFacts();
    this.factsButton.focus();
    return true;
  }

  toggleFacts() {
    show(this.facts, this.facts.hidden);
    setAttr(this.factsButton, 'aria-expanded', !this.facts.hidden);
  }

  /** Draws position `at` of `state`; `hint` is shown while there is no image. */
  update(state, at, hint) {
    const stage = stageOf(state, at);
    this.#stage = stage;
    const slider = stage.mode === 'slider' && stage.before !== null;
    setAttr(this.element, 'data-mode', stage.mode === 'beside' && stage.before ? 'beside' : 'stack');
    setAttr(this.element, 'data-waiting', stage.waiting ? 'true' : 'false');
    setAttr(this.compare, 'data-off', slider ? null : 'true');
    this.slider.disabled = !slider;
    this.tint.disabled = !slider || stage.waiting;
    this.full.disabled = !stage.after;
    this.#offer(state, stage);
    setText(this.empty, stage.after ? '' : hint);
    this.candidates.update(stage.step);
    const rows = stage.step ? factsOf(stage.step) : [];
    this.factsButton.disabled = rows.length === 0;
    if (!rows.length && !this.facts.hidden) this.toggleFacts();
    this.#drawFacts(rows);
    const name = (index) => (index === 0 ? 'the question’s image' : `step ${index}`);
    setText(this.captions.before, stage.before ? `before: ${name(stage.before.index)}` : '');
    setText(
      this.captions.after,
      stage.after ? (stage.mode === 'beside' ? 'after: ' : '') + name(stage.after.index) : '',
    );
    setAttr(this.before, 'aria-label', stage.before ? `Before, ${name(stage.before.index)}` : null);
    setAttr(this.after, 'aria-label', this.#alt(state, stage));
    this.#load('before', stage.before?.url ?? null);
    this.#load('after', stage.after?.url ?? null);
  }

  // A preview of an image that is still being drawn is not offered.
  #offer(state, { before, after, step, waiting }) {
    this.#names = { before: before && fileOf(state, before.index), after: after && fileOf(state, after.index) };
    const done = after && !(waiting && step?.index === after.index);
    setAttr(this.save, 'href', done ? after.url : null);
    setAttr(this.save, 'download', done ? this.#names.after : null);
    setAttr(this.save, 'role', done ? null : 'link');
    setAttr(this.save, 'aria-disabled', done ? null : 'true');
  }

  #alt(state, stage) {
    if (!stage.after) return null;
    if (stage.after.index === 0) return `The question’s image: ${state.question}`;
    const step = state.steps.find((one) => one.index === stage.after.index);
    return step ? altOf(step) + (stage.waiting && stage.step === step ? ' (being drawn)' : '') : null;
  }

  #drawFacts(rows) {
    const text = rows.map(([name, value]) => `${name}: ${value}`).join('\n');
    if (this.facts.dataset.text === text) return;
    this.facts.dataset.text = text;
    this.facts.replaceChildren(
      h(
        'dl',
        {},
        rows.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]),
      ),
    );
  }

  async #load(which, url) {
    if (this.#url[which] === url) return;
    this.#url[which] = url;
    let image = null;
    if (url) {
      try {
        image = await loadImage(url);
      } catch {
        return; // a preview that is already gone; the next one replaces it
      }
      if (this.#url[which] !== url) return; // a newer image arrived first
    }
    this.#images[which] = image;
    const canvas = this[which];
    setAttr(canvas, 'data-shown', image ? url : null);
    if (image) {
      if (canvas.width !== image.naturalWidth || canvas.height !== image.naturalHeight) {
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
      }
      canvas.getContext('2d').drawImage(image, 0, 0);
      const same = which === 'after' ? [canvas, this.changes, this.line] : [canvas];
      for (const one of same) one.style.setProperty('--ratio', String(image.naturalWidth / image.naturalHeight));
    }
    show(this.figures[which], image !== null);
    this.#drawChanges();
    this.#lay();
    this.#sharpen();
  }

  #lay() {
    const on = !this.slider.disabled && this.#images.before;
    const cut = on ? `inset(0 ${100 - this.#divide}% 0 0)` : 'none';
    this.after.style.clipPath = cut;
    this.changes.style.clipPath = cut;
    setAttr(this.pane, 'data-split', on && this.#divide > 0 && this.#divide < 100 ? 'true' : null);
    this.line.style.setProperty('--divide', `${this.#divide}%`);
    setAttr(this.slider, 'aria-valuetext', on ? `${100 - this.#divide} % before, ${this.#divide} % after` : null);
  }

  #drawChanges() {
    const { before, after } = this.#images;
    const on = this.#tint && !this.tint.disabled && before && after;
    show(this.changes, Boolean(on));
    if (!on) return;
    const { width, height } = this.after;
    const pixels = (image) => {
      const canvas = h('canvas', { width, height });
      const context = canvas.getContext('2d', { willReadFrequently: true });
      context.drawImage(image, 0, 0, width, height);
      return context.getImageData(0, 0, width, height).data;
    };
    this.changes.width = width;
    this.changes.height = height;
    const tinted = changesOf(pixels(before), pixels(after), TINT);
    this.changes.getContext('2d').putImageData(new ImageData(tinted, width, height), 0, 0);
    this.#sharpen();
  }

  #sharpen() {
    for (const canvas of [this.before, this.after, this.changes]) {
      const enlarged = canvas.clientWidth * devicePixelRatio > canvas.width * ENLARGED;
      canvas.classList.toggle('or-pixels', enlarged);
    }
  }

  #enlarge(event) {
    const which = event.target === this.before && this.#stage?.mode === 'beside' ? 'before' : 'after';
    const url = this.#url[which];
    if (!url) return;
    const label = this[which].getAttribute('aria-label') ?? 'Image';
    const image = h('img', { src: url, alt: label, class: 'or-full or-pixels' });
    const save = h('a', { href: url, download: this.#names[which], class: 'or-link' }, 'save PNG');
    openDialog(label, h('figure', { class: 'or-full-figure' }, image, h('figcaption', {}, label, ' ', save)));
  }
}
