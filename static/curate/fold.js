// A button that shows and hides more buttons beside it.

import { h, setAttr, show } from '../shared/dom.js';

export class Fold {
  constructor(label, kind, ...content) {
    this.content = h('div', { class: 'or-fold', role: 'group', 'aria-label': label, hidden: true }, content);
    this.button = h('button', { type: 'button', class: kind, 'aria-expanded': 'false' }, label);
    this.button.addEventListener('click', () => this.open(this.content.hidden));
    this.element = h('div', { class: 'or-folding' }, this.button, this.content);
    this.element.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape' || this.content.hidden) return;
      event.stopPropagation();
      this.open(false);
      this.button.focus();
    });
  }

  open(open) {
    show(this.content, open);
    setAttr(this.button, 'aria-expanded', open);
  }
}

export const FORMATS = [
  ['jsonl', 'jsonl', 'Training data with the images inside'],
  ['html', 'page', 'One page of HTML that needs nothing else'],
  ['json', 'JSON', 'As the REST API returns it'],
  ['zip', 'zip', 'JSON, images and page'],
];
