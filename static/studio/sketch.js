// A small sketch pad: eight colours, three pens, undo. The square canvas becomes an ordinary image.

import { h, icon, openDialog, setAttr } from '../shared/dom.js';
import { Ink } from '../shared/ink.js';

const SIDE = 512;
const COLOURS = [
  ['black', '#1b1b1f'],
  ['red', '#d92d20'],
  ['orange', '#e87a17'],
  ['yellow', '#f2c511'],
  ['green', '#2a9d4a'],
  ['blue', '#2563eb'],
  ['purple', '#8b3fd1'],
  ['white', '#ffffff'],
];
const PENS = [
  ['thin', 6],
  ['medium', 16],
  ['thick', 40],
];

/** Opens the pad; calls `onImage(blob)` when the sketch is used. */
export function openSketch(onImage) {
  const canvas = h('canvas', {
    width: SIDE,
    height: SIDE,
    class: 'or-sketch',
    'aria-label': 'Sketch pad: draw with mouse, pen or finger',
    role: 'img',
  });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.fillStyle = '#ffffff';
  context.fillRect(0, 0, SIDE, SIDE);
  context.lineCap = 'round';
  context.lineJoin = 'round';
  let colour = COLOURS[0][1];
  let width = PENS[1][1];
  const ink = new Ink(canvas, {
    segment: (pen, from, to) => {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(...from);
      pen.lineTo(...to);
      pen.stroke();
    },
    onChange: () => refresh(),
  });

  const choices = (label, rows, face, pick) => {
    const buttons = rows.map(([name, value], k) => {
      const button = h(
        'button',
        { type: 'button', class: 'or-swatch', 'aria-label': name, title: name, 'aria-pressed': k === 0 },
        face(value),
      );
      button.addEventListener('click', () => {
        pick(value);
        for (const other of buttons) setAttr(other, 'aria-pressed', other === button);
      });
      return button;
    });
    return h('div', { class: 'or-swatches', role: 'group', 'aria-label': label }, buttons);
  };
  const dot = (size, fill) => {
    const mark = h('span', { class: 'or-swatch-dot' });
    mark.style.width = mark.style.height = `${size}px`;
    if (fill) mark.style.background = fill;
    return mark;
  };
  const colours = choices(
    'Colour',
    COLOURS,
    (value) => dot(22, value),
    (value) => (colour = value),
  );
  const pens = choices(
    'Pen',
    PENS,
    (value) => dot(4 + value / 2.5),
    (value) => (width = value),
  );
  for (const [k, button] of [...pens.children].entries()) setAttr(button, 'aria-pressed', k === 1);

  const undo = h('button', { type: 'button', class: 'or-chipbutton', onclick: () => ink.undo() }, icon('undo'), 'undo');
  const clear = h('button', { type: 'button', class: 'or-chipbutton', onclick: () => ink.clear() }, 'clear');
  const use = h('button', { type: 'button', class: 'or-primary' }, 'use this sketch');
  const refresh = () => {
    undo.disabled = clear.disabled = use.disabled = !ink.drawn;
  };
  refresh();
  const dialog = openDialog(
    'Sketch pad',
    h('h2', {}, 'Sketch'),
    canvas,
    colours,
    h('div', { class: 'or-sketch-bar' }, pens, undo, clear),
    use,
  );
  use.addEventListener('click', () =>
    canvas.toBlob((blob) => {
      dialog.close();
      onImage(blob);
    }, 'image/png'),
  );
}
