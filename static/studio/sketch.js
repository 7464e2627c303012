// A small sketch pad: eight colours, three pens, undo. The square canvas becomes an ordinary image.

import { h, icon, openDialog, setAttr } from '../shared/dom.js';

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
  ['middle', 16],
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
  let drawing = null; // the pointer in use
  const past = [];

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
  };
  canvas.addEventListener('pointerdown', (event) => {
    if (drawing !== null) return;
    drawing = event.pointerId;
    canvas.setPointerCapture(drawing);
    past.push(context.getImageData(0, 0, SIDE, SIDE));
    if (past.length > 30) past.shift();
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(...at(event));
    context.lineTo(...at(event));
    context.stroke();
    refresh();
  });
  canvas.addEventListener('pointermove', (event) => {
    if (event.pointerId !== drawing) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) context.lineTo(...at(one));
    context.stroke();
  });
  const end = (event) => {
    if (event.pointerId === drawing) drawing = null;
  };
  canvas.addEventListener('pointerup', end);
  canvas.addEventListener('pointercancel', end);

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

  const undo = h(
    'button',
    { type: 'button', class: 'or-chipbutton', onclick: () => back(past.length - 1) },
    icon('undo'),
    'undo',
  );
  const clear = h('button', { type: 'button', class: 'or-chipbutton', onclick: () => back(0) }, 'clear');
  const use = h('button', { type: 'button', class: 'or-primary' }, 'use this sketch');
  const back = (k) => {
    if (k < 0 || !past.length) return;
    context.putImageData(past[k], 0, 0);
    past.length = k;
    refresh();
  };
  const refresh = () => {
    undo.disabled = clear.disabled = use.disabled = past.length === 0;
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
