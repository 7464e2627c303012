// A group in the gallery: one tile for all its members, which opens their wall.

import { h, setText, show } from '../shared/dom.js';
import { readQuestion } from '../shared/words.js';

/** `red ×3, blue ×1`: the answers of a group's tally, the most frequent first; empty if none has ended. Pure. */
export function answersOf(tally) {
  const rows = tally.filter(({ answer }) => answer !== null);
  const text = rows.map(({ answer, count }) => `${answer.trim() || '(empty)'} ×${count}`).join(', ');
  return text || (tally.length ? 'no answers' : '');
}

/**
 * `images replaced`, `2 of 8 done`, `1 without an answer`, `3 of 8 match`, or nothing; matching: how many members match the filters, null
 * without any. Pure.
 */
export function noteOf(group, matching) {
  const all = group.trace_ids.length;
  const without = group.tally.find(({ answer }) => answer === null);
  const said = group.kind === 'intervention' ? ['images replaced'] : [];
  if (group.status !== 'completed') {
    const done = group.tally.reduce((sum, { count }) => sum + count, 0);
    said.push(`${done} of ${all} done`);
  }
  if (without && group.tally.length > 1) said.push(`${without.count} without an answer`);
  if (matching !== null && matching < all) said.push(`${matching} of ${all} match`);
  return said.join(' · ');
}

export class Stack {
  /** trace: the first listed member; pictures: two elements; foot: what follows below. */
  constructor(trace, { pictures, foot }) {
    const href = `/?group=${encodeURIComponent(trace.group_id)}`;
    this.count = h('span', { class: 'or-stack-count' });
    this.answers = h('strong', { dir: 'auto' });
    this.note = h('span', { class: 'or-quiet or-stack-note', hidden: true });
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
      h('div', { class: 'or-card-answer' }, this.answers, this.note),
      h('div', { class: 'or-card-foot' }, foot),
    );
  }

  /** group: of GET /v1/groups/{id}; matching: as in `noteOf`. */
  update(group, matching) {
    const note = noteOf(group, matching);
    setText(this.count, `×${group.trace_ids.length}`);
    setText(this.answers, answersOf(group.tally));
    setText(this.note, note);
    show(this.note, note !== '');
  }
}
