// Your own rewards and tasks: what the server knows, and how a job names each.

import { api } from '../shared/api.js';
import { h, setText, show } from '../shared/dom.js';

/** The rows of GET /v1/extensions: `{kind, name, about, spec}`, spec = what a job's JSON says. */
export function extensionRows({ rewards, families }) {
  const own = rewards.map(({ name, file, package: from, description }) => ({
    kind: 'reward',
    name: name ?? file,
    about: description || (from ? `from ${from}` : ''),
    spec: `"reward": {"custom": {${name ? `"name": "${name}"` : `"file": "${file}"`}, "weight": 0.1}}`,
  }));
  const tasks = families.map(({ name, package: from }) => ({
    kind: 'task family',
    name,
    about: `from ${from}`,
    spec: `"data": {"source": "tasks", "family": "${name}", "num_samples": 1000}`,
  }));
  return [...own, ...tasks];
}

/** What to do to have more, or any, of them. */
export function filesNote({ rewards, families, files_allowed: allowed }) {
  const none = rewards.length || families.length ? '' : 'This server knows none yet. ';
  const files = allowed
    ? 'Rewards may also come from Python files in OMNI_R1_REWARDS_DIR'
    : 'To use Python files as rewards, set OMNI_R1_REWARDS_DIR to their folder';
  return `${none}${files}; a URL works without any setting, and packages add rewards and task families through entry points.`;
}

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
        'A job can learn from a reward that you write, and use tasks that you generate. Add one of these to its full spec.',
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
