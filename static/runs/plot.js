// One chart of many runs on a canvas: 50,000 points at every frame of a drag. It knows nothing about jobs.
//
// The lines have a canvas of their own, so that a move of the cursor does not draw them again. Both are hidden from
// assistive technology. What can be focused is a slider over the steps: its value is the step
// under the cursor, its text what every run has there.

import { h, setAttr } from '../shared/dom.js';
import { short } from '../shared/series.js';
import { axisTicks, from, movedView, nearestWithin, nextStep, stepRange, valueRange, zoomedView } from './scale.js';

const PAD = { left: 64, right: 16, top: 12, bottom: 28 };
const HEIGHT = 380;
const MANY = 12; // more lines are thinner, which draws faster
const ZOOM = 1.5;
const SETTLED_MS = 160;

export class Plot {
  #lines = []; // [{id, label, look, steps, values, raw}]
  #log = false;
  #all = [0, 1]; // every step
  #end = 1; // the last measured one
  #view = [0, 1]; // the shown ones
  #cursor = null;
  #size = { width: 0, height: HEIGHT };
  #frame = 0;
  #stale = false; // the lines must be drawn again
  #scale = null;
  #timer = 0;
  #drag = null;
  #moving = false; // a zoom or pan has not settled
  #style = null;

  /** onView([first, last]) once a zoom or pan has settled; onCursor(step). */
  constructor({ onView, onCursor }) {
    this.on = { view: onView, cursor: onCursor };
    this.canvas = h('canvas', { 'aria-hidden': 'true' });
    this.overlay = h('canvas', { 'aria-hidden': 'true' });
    this.element = h(
      'div',
      { class: 'or-plot', tabindex: '0', role: 'slider', 'aria-label': 'Step under the cursor' },
      this.canvas,
      this.overlay,
    );
    this.element.addEventListener('pointerdown', (event) => this.#grab(event));
    this.element.addEventListener('pointermove', (event) => this.#move(event));
    for (const end of ['pointerup', 'pointercancel']) this.element.addEventListener(end, () => (this.#drag = null));
    this.element.addEventListener('wheel', (event) => this.#wheel(event), { passive: false });
    this.element.addEventListener('dblclick', () => this.reset());
    this.element.addEventListener('keydown', (event) => this.#key(event));
    new ResizeObserver(() => this.#resize()).observe(this.element);
    // the theme is a class of the body
    new MutationObserver(() => this.#restyle()).observe(document.body, { attributeFilter: ['class'] });
  }

  /** Draws lines `{id, label, look, steps, values, raw}`: `values` smoothed, `raw` as measured. */
  show(lines, { log = false } = {}) {
    this.#lines = lines;
    this.#log = log;
    if (!this.zoomed) {
      // zoomed, the lines are only a part
      this.#view = this.#all = stepRange(lines);
      this.#end = Math.max(this.#all[0], ...lines.map(({ steps }) => steps[steps.length - 1] ?? 0));
    }
    if (!lines.length) this.#cursor = null;
    if (this.#cursor === null || this.#cursor < this.#all[0] || this.#cursor > this.#end) this.#cursor = this.#end;
    this.#say();
    this.draw();
  }

  get zoomed() {
    return this.#view[0] > this.#all[0] || this.#view[1] < this.#all[1];
  }

  get view() {
    return this.#view;
  }

  get cursor() {
    return this.#cursor;
  }

  reset() {
    this.#look(this.#all);
  }

  /** What a line has at the cursor: `{step, value}` or null. */
  at(line) {
    const k = nearestWithin(line.steps, this.#cursor);
    return k < 0 ? null : { step: line.steps[k], value: line.values[k] };
  }

  draw() {
    this.#stale = true;
    this.#request();
  }

  #request() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#paint());
  }

  // ---- input

  #grab(event) {
    this.element.focus({ preventScroll: true });
    this.element.setPointerCapture(event.pointerId);
    this.#drag = { x: event.clientX, view: this.#view };
    this.#point(event);
  }

  #move(event) {
    if (this.#drag && event.buttons) {
      const by = ((this.#drag.x - event.clientX) / this.#inner().width) * (this.#drag.view[1] - this.#drag.view[0]);
      this.#look(movedView(this.#drag.view, by, this.#all));
    } else this.#point(event);
  }

  #wheel(event) {
    if (document.activeElement !== this.element) return; // the page scrolls
    event.preventDefault();
    this.#look(zoomedView(this.#view, this.#stepAt(event), event.deltaY > 0 ? 1.2 : 1 / 1.2, this.#all));
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const width = this.#view[1] - this.#view[0];
    const side = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1, PageDown: -1, PageUp: 1 }[event.key];
    if (side && event.shiftKey) this.#look(movedView(this.#view, (side * width) / 10, this.#all));
    else if (side && event.key.startsWith('Page')) this.#set(this.#cursor + (side * width) / 10);
    else if (side) this.#set(nextStep(this.#lines, this.#cursor, side));
    else if (event.key === 'Home') this.#set(this.#all[0]);
    else if (event.key === 'End') this.#set(this.#end);
    else if (event.key === '+' || event.key === '=')
      this.#look(zoomedView(this.#view, this.#cursor, 1 / ZOOM, this.#all));
    else if (event.key === '-') this.#look(zoomedView(this.#view, this.#cursor, ZOOM, this.#all));
    else if (event.key === '0' || event.key === 'Escape') this.reset();
    else return;
    event.preventDefault();
  }

  #look(view) {
    this.#view = view;
    this.draw();
    clearTimeout(this.#timer);
    this.#moving = true;
    this.#timer = setTimeout(() => {
      this.#moving = false;
      this.draw();
      this.on.view(this.#view);
    }, SETTLED_MS);
  }

  #point(event) {
    this.#set(this.#stepAt(event), { follow: false });
  }

  #set(step, { follow = true } = {}) {
    const within = Math.min(Math.max(Math.round(step), this.#all[0]), this.#end);
    if (follow && (within < this.#view[0] || within > this.#view[1])) {
      const middle = (this.#view[0] + this.#view[1]) / 2;
      this.#look(movedView(this.#view, within - middle, this.#all));
    }
    if (within === this.#cursor) return;
    this.#cursor = within;
    this.#say();
    this.#request();
  }

  #stepAt(event) {
    const box = this.element.getBoundingClientRect();
    const share = (event.clientX - box.left - PAD.left) / this.#inner().width;
    return this.#view[0] + Math.min(1, Math.max(0, share)) * (this.#view[1] - this.#view[0]);
  }

  #say() {
    const parts = this.#lines.map((line) => `${line.label} ${short(this.at(line)?.value ?? null)}`);
    setAttr(this.element, 'aria-valuemin', this.#all[0]);
    setAttr(this.element, 'aria-valuemax', this.#end);
    setAttr(this.element, 'aria-valuenow', this.#cursor);
    setAttr(this.element, 'aria-valuetext', `step ${this.#cursor}: ${parts.join('; ') || 'no run chosen'}`);
    this.on.cursor(this.#cursor);
  }

  // ---- drawing

  #inner() {
    return {
      width: Math.max(1, this.#size.width - PAD.left - PAD.right),
      height: this.#size.height - PAD.top - PAD.bottom,
    };
  }

  #resize() {
    const width = Math.round(this.element.getBoundingClientRect().width);
    if (!width) return;
    this.#size = { width, height: HEIGHT };
    const ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.overlay]) {
      canvas.width = width * ratio;
      canvas.height = HEIGHT * ratio;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${HEIGHT}px`;
    }
    this.#restyle();
  }

  #restyle() {
    const style = getComputedStyle(this.element);
    const read = (name) => style.getPropertyValue(name).trim();
    const colours = Array.from({ length: 8 }, (_, k) => read(`--or-run-${k}`));
    this.#style = { colours, line: read('--or-line'), soft: read('--or-soft'), strong: read('--or-strong-line') };
    this.#style.bad = read('--or-bad');
    this.draw();
  }

  #paint() {
    this.#frame = 0;
    if (!this.#size.width || !this.#style) return;
    if (this.#stale) this.#paintLines(this.#cleared(this.canvas));
    this.#stale = false;
    this.#drawCursor(this.#cleared(this.overlay));
  }

  #cleared(canvas) {
    const context = canvas.getContext('2d');
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.#size.width, this.#size.height);
    return context;
  }

  #paintLines(context) {
    const { height } = this.#size;
    const inner = this.#inner();
    const range = valueRange(this.#lines, this.#view, this.#log);
    const rise = this.#log ? Math.log10 : (value) => value;
    const [bottom, top] = range.map(rise);
    const [first, last] = this.#view;
    const px = (step) => PAD.left + ((step - first) / (last - first)) * inner.width;
    const py = (value) => PAD.top + (1 - (rise(value) - bottom) / (top - bottom)) * inner.height;
    this.#grid(context, range, px, py);
    context.save();
    context.beginPath();
    context.rect(PAD.left, 0, inner.width, height - PAD.bottom);
    context.clip();
    context.lineJoin = 'bevel';
    for (const line of this.#lines) this.#line(context, line, px, py);
    context.restore();
    this.#scale = { px, py };
  }

  #grid(context, range, px, py) {
    const { width, height } = this.#size;
    context.font = '12px system-ui, sans-serif';
    context.strokeStyle = this.#style.line;
    context.fillStyle = this.#style.soft;
    context.lineWidth = 1;
    context.setLineDash([]);
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const tick of axisTicks(range, 5, this.#log)) {
      const y = Math.round(py(tick)) + 0.5;
      context.beginPath();
      context.moveTo(PAD.left, y);
      context.lineTo(width - PAD.right, y);
      context.stroke();
      context.fillText(short(tick), PAD.left - 8, y);
    }
    context.textBaseline = 'alphabetic';
    for (const tick of axisTicks(this.#view, width > 700 ? 8 : width > 420 ? 4 : 2).filter(Number.isInteger)) {
      context.textAlign = px(tick) > width - PAD.right - 24 ? 'right' : 'center';
      context.fillText(tick.toLocaleString('en'), px(tick), height - 8);
    }
  }

  #line(context, line, px, py) {
    const [first, last] = this.#view;
    context.strokeStyle = this.#style.colours[line.look.colour];
    const thin = this.#lines.length > MANY;
    context.setLineDash(thin && this.#moving ? [] : line.look.dash); // dashes take most of the time of a frame
    if (line.raw !== line.values && !thin) {
      context.globalAlpha = 0.25;
      context.lineWidth = 1;
      this.#path(context, line.steps, line.raw, first, last, px, py);
      context.globalAlpha = 1;
    }
    context.lineWidth = thin ? 1 : 2;
    this.#path(context, line.steps, line.values, first, last, px, py);
  }

  #path(context, steps, values, first, last, px, py) {
    const start = Math.max(0, from(steps, first) - 1);
    const gaps = [];
    let open = false;
    context.beginPath();
    const stride = this.#moving && this.#lines.length > MANY ? 2 : 1; // half the points until it settles
    for (let k = start; k < steps.length; k += stride) {
      const value = values[k];
      if (value === null || (this.#log && !(value > 0))) {
        if (value === null) gaps.push(steps[k]);
        open = false;
      } else if (open) context.lineTo(px(steps[k]), py(value));
      else {
        context.moveTo(px(steps[k]), py(value));
        const alone = k + 1 === steps.length || values[k + 1] === null;
        if (alone) context.lineTo(px(steps[k]) + 1.5, py(value)); // a single value stays visible
        open = true;
      }
      if (steps[k] > last) break;
    }
    context.stroke();
    if (gaps.length) this.#crosses(context, gaps, px);
  }

  // values that are not finite: crosses at the bottom
  #crosses(context, gaps, px) {
    const y = this.#size.height - PAD.bottom - 6;
    context.save();
    context.setLineDash([]);
    context.strokeStyle = this.#style.bad;
    context.lineWidth = 1.5;
    context.beginPath();
    for (const step of gaps) {
      const x = px(step);
      context.moveTo(x - 3, y - 3);
      context.lineTo(x + 3, y + 3);
      context.moveTo(x + 3, y - 3);
      context.lineTo(x - 3, y + 3);
    }
    context.stroke();
    context.restore();
  }

  #drawCursor(context) {
    const { px, py } = this.#scale;
    const [first, last] = this.#view;
    if (!this.#lines.length || this.#cursor < first || this.#cursor > last) return;
    context.setLineDash([]);
    context.strokeStyle = this.#style.strong;
    context.lineWidth = 1;
    const x = Math.round(px(this.#cursor)) + 0.5;
    context.beginPath();
    context.moveTo(x, PAD.top);
    context.lineTo(x, this.#size.height - PAD.bottom);
    context.stroke();
    for (const line of this.#lines) {
      const point = this.at(line);
      if (!point || point.value === null || (this.#log && !(point.value > 0))) continue;
      context.fillStyle = this.#style.colours[line.look.colour];
      context.beginPath();
      context.arc(px(point.step), py(point.value), 3.5, 0, 2 * Math.PI);
      context.fill();
    }
  }
}
