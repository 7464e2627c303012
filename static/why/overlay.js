// A grid of tints over an image: on the viewer's canvas, or on a small image.

import { h, setAttr, show } from '../shared/dom.js';

const CELL = 32; // px

/** Draws a grid of alphas in `colour` ("r g b"); null cells are hatched. */
export function drawGrid(canvas, grid, colour) {
  const [rows, columns] = [grid.length, grid[0].length];
  [canvas.width, canvas.height] = [columns * CELL, rows * CELL];
  const context = canvas.getContext('2d');
  grid.forEach((line, row) =>
    line.forEach((alpha, column) => {
      const [x, y] = [column * CELL, row * CELL];
      if (alpha === null) hatch(context, x, y);
      else {
        context.fillStyle = `rgb(${colour} / ${alpha})`;
        context.fillRect(x, y, CELL, CELL);
      }
    }),
  );
}

function hatch(context, x, y) {
  for (const [style, width] of [
    ['rgb(255 255 255 / .8)', 6],
    ['rgb(0 0 0 / .7)', 2],
  ]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x + 6, y + CELL - 6);
    context.lineTo(x + CELL - 6, y + 6);
    context.stroke();
  }
}

/** Where a model's view lies in an image of another shape: the middle square (crop) or the one around it (pad). */
export function viewIn({ left, top, width, height }, fit) {
  const side = fit === 'pad' ? Math.max(width, height) : Math.min(width, height);
  return { left: left + (width - side) / 2, top: top + (height - side) / 2, side };
}

/** Over a canvas of the viewer. */
export class Overlay {
  #canvas;
  #fit = 'crop';

  constructor(figure, canvas) {
    this.#canvas = canvas;
    this.element = h('canvas', { class: 'or-layer', 'aria-hidden': 'true', hidden: true });
    this.clip = h('div', { class: 'or-layer-clip' }, this.element);
    canvas.after(this.clip);
    const observer = new ResizeObserver(() => this.place());
    for (const one of [figure, canvas]) observer.observe(one);
  }

  /** grid: of alphas, or null for none. fit: how the model's view was cut from the image. */
  update(grid, colour, fit = 'crop') {
    show(this.element, grid !== null);
    setAttr(this.#canvas, 'data-layered', grid ? 'true' : null);
    if (!grid) return;
    this.#fit = fit;
    drawGrid(this.element, grid, colour);
    this.place();
  }

  /** On the image within its canvas, and cut off where the canvas is. */
  place() {
    const canvas = this.#canvas;
    const { offsetLeft, offsetTop, offsetWidth, offsetHeight } = canvas;
    const scale = Math.min(offsetWidth / canvas.width, offsetHeight / canvas.height);
    const [width, height] = [canvas.width * scale, canvas.height * scale];
    const box = { left: (offsetWidth - width) / 2, top: (offsetHeight - height) / 2, width, height };
    const { left, top, side } = viewIn(box, this.#fit);
    const set = (element, values) => {
      for (const [name, value] of Object.entries(values)) element.style[name] = `${value}px`;
    };
    set(this.clip, { left: offsetLeft, top: offsetTop, width: offsetWidth, height: offsetHeight });
    set(this.element, { left, top, width: side, height: side });
    this.clip.style.clipPath = canvas.style.clipPath;
  }
}
