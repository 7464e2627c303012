// Your own rewards and tasks: what the server knows, and how a job names each.

import { api } from '../shared/api.js';
import { h, setText, show } from '../shared/dom.js';
import { extensionRows, filesNote } from './words.js';

export class ExtensionsPanel {
  constructor() {
    this.list = h('ul', { class: 'or-extensions-list' });
    this.note = h('p', { class: 'or-quiet' });
    this.error = h('p', { class: 'or-error', role: 'alert', hidden: true });
    this.element = h(
      'section',
      { class: 'or-block or-extensions', 'aria-label': 'Your own rewards and tasks' },
      h('h2', {}, 'Your own rewards and tasks'),
      h(
        'p',
        { class: 'or-quiet' },
        'A job can learn from a reward that you write, and use tasks that you generate. Put one of these into its full spec.',
      ),
      this.list,
      this.note,
      this.error,
    );
  }

  async refresh() {
    try {
      const known = await api.extensions();
      const rows = extensionRows(known);
      this.list.replaceChildren(
        ...rows.map(({ kind, name, about, spec }) =>
          h(
            'li',
            {},
            h('span', { class: 'or-extension-name' }, h('strong', {}, name), h('span', { class: 'or-quiet' }, kind)),
            about ? h('span', { class: 'or-quiet' }, about) : '',
            h('code', {}, spec),
          ),
        ),
      );
      show(this.list, rows.length > 0);
      setText(this.note, filesNote(known));
      show(this.error, false);
    } catch (error) {
      setText(this.error, error.message);
      show(this.error, true);
    }
  }
}
