// All images of a trace as a row of small ones, each with its layer and a figure; a click shows that step.

import { api } from '../shared/api.js';
import { h, setText } from '../shared/dom.js';
import { drawGrid } from './overlay.js';

/** The URL of what the model saw of a question's image, or of a step's image. */
const sourceOf = (state, { step, number }) => {
  if (step) return state.steps.find(({ index }) => index === step)?.image?.url;
  const { image_id: id, fit } = state.images[number] ?? {};
  return id && api.modelViewUrl(id, fit ?? 'crop');
};

export class Strip {
  constructor(onPick) {
    this.onPick = onPick;
    this.element = h('ul', { class: 'or-why-strip', 'aria-label': 'Images' });
  }

  /** items: `[{step, number, place, grid, figure}]`; number: which of the question's images; grid: alphas or null. */
  update(state, items, colour) {
    this.element.replaceChildren(
      ...items.map((item) => {
        const canvas = h('canvas', { 'aria-hidden': 'true' });
        if (item.grid) drawGrid(canvas, item.grid, colour);
        const url = sourceOf(state, item);
        return h(
          'li',
          {},
          h(
            'button',
            { type: 'button', class: 'or-why-image', onclick: () => this.onPick(item.step) },
            h('span', { class: 'or-why-picture' }, url && h('img', { src: url, alt: '', class: 'or-pixels' }), canvas),
            h('span', { class: 'or-why-place' }, item.place),
            h('span', { class: 'or-quiet or-num' }, item.figure),
          ),
        );
      }),
    );
  }

  clear() {
    setText(this.element, '');
  }
}
