// A line above the trace: what is wrong, where to go instead, and a button to try again.

import { h, show } from '../shared/dom.js';

export const GALLERY = ['open the gallery', '/gallery'];
export const NEW = ['ask a new question', '/'];

/** The notice for a trace that this server does not have. */
export const unknownTrace = (traceId) => ({
  text: `Trace “${traceId}” does not exist on this server. It may have been deleted, or the link is from another machine.`,
  links: [GALLERY, NEW],
});

export class Notice {
  #shown;

  constructor() {
    this.element = h('div', { class: 'or-notice', role: 'alert' });
  }

  /** notice: {text, links: [[label, href]], retry}, or null. `retry` is optional. */
  update(notice) {
    show(this.element, notice !== null);
    if (this.#shown === notice) return;
    this.#shown = notice;
    if (notice === null) return this.element.replaceChildren();
    const links = notice.links.map(([label, href]) => h('a', { href, class: 'or-link' }, label));
    const again = h('button', { type: 'button', class: 'or-link', onclick: notice.retry }, 'try again');
    return this.element.replaceChildren(h('span', {}, notice.text), ...links, ...(notice.retry ? [again] : []));
  }
}
