// A small SVG line chart over steps. It knows nothing about jobs; several charts share a step axis and a cursor
// (charts.js). Data enters as numbers, text as text nodes.

import { h, setAttr, setText, show } from '../shared/dom.js';
import { meanOf, nearest, rangeOf, short, ticksOf, wantsLog } from '../shared/series.js';

const NS = 'http://www.w3.org/2000/svg';
const HEIGHT = 168;
const PAD = { left: 48, right: 12, top: 10, bottom: 24 };

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

export class Chart {
  #lines; // [{name, label, item, swatch, value, path, band, dot}]
  #data = { series: [], x: [0, 1], at: null };
  #scale = null;
  #width = 0;

  /** spec: {title, about, lines: [[metric name, label]], within?, zero?, log?}. onCursor(step or null). */
  constructor(spec, onCursor) {
    this.spec = spec;
    this.grid = svg('g', { class: 'or-chart-grid' });
    this.plot = svg('g');
    this.cursor = svg('line', { class: 'or-chart-cursor', y1: PAD.top, y2: HEIGHT - PAD.bottom });
    this.svg = svg('svg', { class: 'or-chart-svg', height: HEIGHT, role: 'img' }, this.grid, this.plot, this.cursor);
    this.#lines = spec.lines.map(([name, label], k) => this.#line(name, label, k));
    this.scaleNote = h('span', { class: 'or-quiet or-chart-scale' });
    this.legend = h(
      'ul',
      { class: 'or-legend' },
      this.#lines.map((line) => line.item),
    );
    this.element = h(
      'figure',
      { class: 'or-chart' },
      h(
        'figcaption',
        { class: 'or-chart-head' },
        h('span', { class: 'or-chart-title', title: spec.about }, spec.title),
        this.scaleNote,
        this.legend,
      ),
      this.svg,
    );
    this.svg.addEventListener('pointermove', (event) => onCursor(this.#stepAt(event)));
    this.svg.addEventListener('pointerdown', (event) => onCursor(this.#stepAt(event)));
    this.svg.addEventListener('pointerleave', () => onCursor(null));
    new ResizeObserver(() => this.#resize()).observe(this.svg);
  }

  #line(name, label, k) {
    const path = svg('path', { class: 'or-chart-line', 'data-line': k });
    const band = svg('path', { class: 'or-chart-band', 'data-line': k });
    const dot = svg('circle', { class: 'or-chart-dot', 'data-line': k, r: 3.5 });
    this.plot.append(band, path, dot);
    const swatch = svg(
      'svg',
      { class: 'or-swatch-line', viewBox: '0 0 22 8', 'aria-hidden': 'true' },
      svg('path', { class: 'or-chart-line', 'data-line': k, d: 'M1 4H21' }),
    );
    const value = h('span', { class: 'or-num' });
    const item = h('li', {}, swatch, h('span', {}, label), value);
    return { name, label, item, value, path, band, dot };
  }

  /** `stage.series` of one stage, the shared range of steps, and the step at the cursor (null: the latest). */
  update(stage, x, at) {
    const found = this.#lines.map((line) => stage?.series[line.name] ?? null);
    this.#data = { series: found, x, at };
    for (const [k, line] of this.#lines.entries()) show(line.item, Boolean(found[k]) || this.spec.lines.length === 1);
    this.#draw();
  }

  /** Whether one of its metrics has values. */
  has(stage) {
    return this.#lines.some((line) => stage?.series[line.name]);
  }

  setCursor(at) {
    if (this.#data.at === at) return;
    this.#data.at = at;
    this.#drawCursor();
  }

  #resize() {
    const width = Math.round(this.svg.getBoundingClientRect().width);
    if (width === this.#width || width === 0) return;
    this.#width = width;
    this.svg.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
    this.#draw();
  }

  #stepAt(event) {
    const [from, to] = this.#data.x;
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - PAD.left) / Math.max(1, box.width - PAD.left - PAD.right);
    return Math.round(from + Math.max(0, Math.min(1, share)) * (to - from));
  }

  #draw() {
    if (!this.#width) return;
    const { series, x } = this.#data;
    const drawn = series.filter(Boolean);
    const log = Boolean(this.spec.log) && wantsLog(drawn);
    setText(this.scaleNote, log ? 'log scale' : '');
    const [low, high] = rangeOf(drawn, this.spec);
    const inner = { width: this.#width - PAD.left - PAD.right, height: HEIGHT - PAD.top - PAD.bottom };
    const reach = log ? logReach(drawn) : [low, high];
    const rise = (value) => (log ? Math.log10(Math.max(value, 1e-12)) : value);
    const [bottom, top] = reach.map(rise);
    const px = (step) => PAD.left + (x[1] > x[0] ? ((step - x[0]) / (x[1] - x[0])) * inner.width : 0);
    const py = (value) => {
      const share = top > bottom ? (rise(value) - bottom) / (top - bottom) : 0.5;
      return PAD.top + (1 - Math.max(0, Math.min(1, share))) * inner.height;
    };
    this.#scale = { px, py };
    this.#drawGrid(log ? logTicks(reach) : ticksOf(low, high, 3), x, px, py);
    for (const [k, line] of this.#lines.entries()) this.#drawLine(line, series[k], px, py);
    setAttr(this.svg, 'aria-label', this.#words(drawn.length > 0));
    this.#drawCursor();
  }

  #drawGrid(ticks, x, px, py) {
    const right = this.#width - PAD.right;
    const parts = [];
    for (const tick of ticks) {
      parts.push(svg('line', { x1: PAD.left, x2: right, y1: py(tick), y2: py(tick) }));
      const label = svg('text', { x: PAD.left - 8, y: py(tick) + 4, 'text-anchor': 'end' });
      label.textContent = short(tick);
      parts.push(label);
    }
    const steps = x[1] > x[0] ? ticksOf(x[0], x[1], this.#width > 420 ? 5 : 3).filter(Number.isInteger) : [x[0]];
    for (const step of steps) {
      const label = svg('text', {
        x: px(step),
        y: HEIGHT - 6,
        'text-anchor': px(step) > right - 16 ? 'end' : 'middle',
      });
      label.textContent = step.toLocaleString('en');
      parts.push(label);
    }
    this.grid.replaceChildren(...parts);
  }

  #drawLine(line, series, px, py) {
    const points = series?.points ?? [];
    const at = (value) => value.toFixed(1);
    const path = points.map((point, k) => `${k ? 'L' : 'M'}${at(px(point.last))} ${at(py(meanOf(point)))}`).join('');
    // a single point is drawn as a short dash
    line.path.setAttribute('d', points.length === 1 ? `${path}h0.01` : path);
    const wide = points.some((point) => point.count > 1);
    const edge = (side) => points.map((point) => `${at(px(point.last))} ${at(py(point[side]))}`);
    line.band.setAttribute('d', wide ? `M${edge('high').join('L')}L${edge('low').reverse().join('L')}Z` : '');
  }

  #drawCursor() {
    if (!this.#scale) return;
    const { series, at } = this.#data;
    const { px, py } = this.#scale;
    for (const [k, line] of this.#lines.entries()) {
      const points = series[k]?.points ?? [];
      const point = at === null ? points[points.length - 1] : nearest(series[k], at);
      setText(line.value, point ? short(meanOf(point)) : '');
      line.dot.style.display = point && at !== null ? '' : 'none';
      if (point) {
        line.dot.setAttribute('cx', px(point.last));
        line.dot.setAttribute('cy', py(meanOf(point)));
      }
    }
    this.cursor.style.display = at === null || !series.some(Boolean) ? 'none' : '';
    if (at !== null) {
      this.cursor.setAttribute('x1', px(at));
      this.cursor.setAttribute('x2', px(at));
    }
  }

  #words(any) {
    if (!any) return `${this.spec.title}: no values yet`;
    const parts = this.#lines.flatMap((line, k) => {
      const points = this.#data.series[k]?.points;
      if (!points?.length) return [];
      const [first, last] = [points[0], points[points.length - 1]];
      return [
        `${line.label} ${short(meanOf(last))} at step ${last.last}, from ${short(meanOf(first))} at step ${first.step}`,
      ];
    });
    return `${this.spec.title}: ${parts.join('; ')}`;
  }
}

function logReach(series) {
  const points = series.flatMap((one) => one.points);
  const low = points.reduce((least, point) => Math.min(least, point.low > 0 ? point.low : Infinity), Infinity);
  const high = points.reduce((most, point) => Math.max(most, point.high), 0);
  return [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high))];
}

function logTicks([low, high]) {
  const ticks = [];
  const decades = Math.log10(high / low);
  for (let power = Math.round(Math.log10(low)); 10 ** power <= high * 1.001; power += decades > 5 ? 2 : 1) {
    ticks.push(Number((10 ** power).toPrecision(3)));
  }
  return ticks;
}
