// A group in the gallery: one tile for all its members, which opens their wall.

import { h, setText } from '../shared/dom.js';
import { readQuestion } from '../shared/words.js';

/** `red ×3, blue ×1`: the answers of the members that are known, the most frequent first. Pure, for tests. */
export function answersOf(members) {
  const counts = new Map();
  for (const { answer } of members) {
    if (answer !== null && answer !== undefined) counts.set(answer.trim(), (counts.get(answer.trim()) ?? 0) + 1);
  }
  const rows = [...counts].sort((a, b) => b[1] - a[1]);
  return rows.map(([answer, count]) => `${answer || '(empty)'} ×${count}`).join(', ') || 'no answers';
}

export class Stack {
  #members = [];

  /** trace: the first listed member; pictures: two elements; foot: what follows below. */
  constructor(trace, { pictures, foot }) {
    const href = `/?group=${encodeURIComponent(trace.group_id)}`;
    this.count = h('span', { class: 'or-stack-count' });
    this.answers = h('strong', { dir: 'auto' });
    this.open = h(
      'a',
      { href, class: 'or-card-open' },
      h('span', { class: 'or-card-pictures' }, pictures[0], this.count, pictures[1]),
      h('span', { class: 'or-sr' }, 'samples: '),
      h('span', { class: 'or-card-question', dir: 'auto' }, readQuestion(trace.question)),
    );
    this.element = h(
      'li',
      { class: 'or-card or-stack', 'data-group': trace.group_id },
      this.open,
      h('div', { class: 'or-card-answer' }, this.answers),
      h('div', { class: 'or-card-foot' }, foot),
    );
    this.add(trace);
  }

  add(trace) {
    this.#members.push(trace);
    setText(this.count, `×${this.#members.length}`);
    setText(this.answers, answersOf(this.#members));
  }
}
