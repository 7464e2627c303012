// The ink tool: the world's pen over the image of a step, at the model's resolution; or another image instead.

import { h, setAttr, show } from '../shared/dom.js';
import { Ink } from '../shared/ink.js';
import { loadImage } from '../viewer/image.js';
import { erase, fill, ink } from './pens.js';

const OVERLAP = new Set(['box', 'line', 'mark', 'predict']); // skills whose image lies over the one before
const USES = [
  ['previous', 'previous', 'Use the image before this step'],
  ['reference', 'reference', 'Use the reference image of this step'],
  ['blank', 'blank', 'Use a white image'],
];

export class InkTool {
  #sources = {}; // use -> an image; null = white
  #below = null; // what the eraser uncovers
  #use = null; // the source that the canvas shows, not drawn on
  #tool = 'pen';
  #turn = 0;

  constructor({ onChange = () => {} } = {}) {
    this.onChange = onChange;
    this.canvas = h('canvas', { class: 'or-canvas or-ink', role: 'img' });
    this.canvas.addEventListener('click', (event) => event.stopPropagation()); // which would enlarge it
    this.pad = new Ink(this.canvas, {
      segment: (context, from, to) => {
        this.#use = null;
        if (this.#tool === 'pen') ink(context, from, to);
        else erase(context, from, to, this.#below);
      },
      onChange: () => this.#refresh(),
    });
    const button = (label, title, onclick) =>
      h('button', { type: 'button', class: 'or-chipbutton', title, onclick }, label);
    this.tools = {
      pen: button('pen', 'Draw with the model’s own pen', () => this.#choose('pen')),
      eraser: button('eraser', 'Uncover the image before this step', () => this.#choose('eraser')),
    };
    this.undo = button('undo', 'Undo the last change', () => this.#undo());
    this.uses = Object.fromEntries(
      USES.map(([use, label, title]) => [use, button(label, title, () => this.#replace(use))]),
    );
    this.bar = h(
      'div',
      { class: 'or-ink-bar', role: 'group', 'aria-label': 'Change the image' },
      Object.values(this.tools),
      this.undo,
      h('span', { class: 'or-ink-gap' }),
      Object.values(this.uses),
    );
    this.#choose('pen');
  }

  /** Shows the image of a step; `before`: the URL of the image before it. Resolves when it can be drawn on. */
  async open({ step, before }) {
    const turn = ++this.#turn;
    this.#sources = { blank: null };
    this.#use = null;
    this.#below = null;
    for (const [use, button] of Object.entries(this.uses)) show(button, use === 'blank');
    setAttr(this.canvas, 'aria-label', `Image of step ${step.index}: draw on it with mouse, pen or finger`);
    const load = async (url) => (url ? loadImage(url).catch(() => null) : null);
    const [image, previous] = await Promise.all([load(step.image?.url), load(before)]);
    if (turn !== this.#turn) return;
    const size = image ?? previous;
    this.canvas.width = step.image?.width ?? size?.naturalWidth ?? 64;
    this.canvas.height = step.image?.height ?? size?.naturalHeight ?? 64;
    this.canvas.style.setProperty('--ratio', String(this.canvas.width / this.canvas.height));
    fill(this.canvas.getContext('2d'), image);
    if (previous) this.#offer('previous', previous);
    if (OVERLAP.has(step.skill)) this.#below = previous;
    this.pad.forget();
    setAttr(this.canvas, 'data-ready', 'true');
  }

  close() {
    this.#turn += 1;
    setAttr(this.canvas, 'data-ready', null);
  }

  /** The task's image of this step, once it is known. */
  async reference(url) {
    const turn = this.#turn;
    const image = await loadImage(url).catch(() => null);
    if (image && turn === this.#turn) this.#offer('reference', image);
  }

  #offer(use, image) {
    this.#sources[use] = image;
    show(this.uses[use], true);
  }

  #choose(tool) {
    this.#tool = tool;
    for (const [name, button] of Object.entries(this.tools)) setAttr(button, 'aria-pressed', name === tool);
    setAttr(this.canvas, 'data-tool', tool);
  }

  #replace(use) {
    this.pad.change((context) => fill(context, this.#sources[use]));
    this.#use = use;
    this.#refresh();
  }

  #undo() {
    this.pad.undo();
    this.#use = null; // what an earlier change left is sent as it is drawn
    this.#refresh();
  }

  #refresh() {
    this.undo.disabled = !this.pad.drawn;
    for (const [use, button] of Object.entries(this.uses)) setAttr(button, 'aria-pressed', this.#use === use);
    this.onChange();
  }

  /** Its first control. */
  get first() {
    return this.tools.pen;
  }

  get changed() {
    return this.pad.drawn;
  }

  /** The image of the edit as the API takes it, or null if it is the step's own. */
  given() {
    if (!this.changed) return null;
    return this.#use ? { use: this.#use } : { data_url: this.canvas.toDataURL('image/png') };
  }
}
