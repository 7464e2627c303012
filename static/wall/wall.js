// The wall: all samples of a question as small timelines, fed by the one stream of their group; their answers on top.

import { api } from '../shared/api.js';
import { h, setAttr, setText, show } from '../shared/dom.js';
import { EventStream, groupSource } from '../shared/events.js';
import { readQuestion } from '../shared/words.js';
import { Choice } from '../compare/choice.js';
import { loadImage } from '../viewer/image.js';
import { GALLERY, NEW, Notice } from '../viewer/notice.js';
import { Member } from './member.js';
import { headOf, isGreedy, phaseOfWall, reduceWall, replacedOf, tallyOf, wallOf } from './members.js';

const UNKNOWN =
  'These samples do not exist on this server. They may have been deleted, or the link is from another machine.';
const GREEDY = 'Greedy samples are identical: set the temperature above 0 to vary them.';
const PERCENT = (share) => `${Math.round(share * 100)} %`;

export class Wall {
  #wall = null;
  #members = [];
  #stream = null;
  #after = 0;
  #turn = 0;
  #drawnTally = '';

  /** onOpen(traceId), onCompare(left, right), onState(): after every change. */
  constructor({ onOpen, onCompare, onState }) {
    this.onOpen = onOpen;
    this.onState = onState;
    this.head = h('h2', { class: 'or-wall-head' });
    this.question = h('p', { class: 'or-wall-question', dir: 'auto' });
    this.hint = h('p', { class: 'or-quiet or-wall-hint', hidden: true }, GREEDY);
    this.notice = new Notice();
    this.notice.update(null);
    this.tally = h('ol', { class: 'or-tally', 'aria-label': 'Answers' });
    this.list = h('ul', { class: 'or-wall-list', 'aria-label': 'Samples' });
    this.spoken = h('div', { class: 'or-sr', role: 'status' });
    this.choice = new Choice({ onCompare });
    this.element = h(
      'section',
      { class: 'or-wall', tabindex: '-1', 'aria-label': 'Samples of this question', hidden: true },
      h('div', { class: 'or-wall-top' }, this.head, h('span', { class: 'or-spring' }), this.choice.element),
      this.question,
      this.notice.element,
      this.tally,
      this.hint,
      this.list,
      this.spoken,
    );
  }

  get groupId() {
    return this.#wall?.groupId ?? null;
  }

  /** running | paused | ended, or idle before anything is known. */
  get phase() {
    return this.#wall ? phaseOfWall(this.#wall) : 'idle';
  }

  get state() {
    return this.#wall?.members[0] ?? null;
  }

  /** Shows a group that this page has just created: `trace` is its first member, `count` their number. */
  async started(trace) {
    this.#leave();
    const turn = ++this.#turn;
    try {
      const group = await api.group(trace.group_id);
      if (turn === this.#turn) this.#begin(wallOf(group, [trace]));
    } catch (error) {
      if (turn === this.#turn) this.#fail(error, trace.group_id);
    }
  }

  /** Shows a stored group; the wall that is in memory goes on where it was. */
  async open(groupId) {
    if (this.groupId === groupId) {
      this.resume();
      return;
    }
    this.#leave();
    const turn = ++this.#turn;
    try {
      const group = await api.group(groupId);
      const { data } = await api.traces({ group: groupId, limit: 100 });
      if (turn !== this.#turn) return;
      if (data.length) this.#begin(wallOf(group, data, { complete: true }));
      else this.#fail(new Error('All of these samples were deleted.'), groupId);
    } catch (error) {
      if (turn === this.#turn) this.#fail(error, groupId);
    }
  }

  #leave() {
    this.rest();
    this.#wall = null;
    this.#after = 0;
    this.#members = [];
    this.list.replaceChildren();
    this.tally.replaceChildren();
    this.#drawnTally = '';
    this.choice.clear();
    setText(this.head, 'opening the samples');
    setText(this.question, '');
    show(this.hint, false);
    setAttr(this.element, 'data-status', null);
    this.notice.update(null);
  }

  #fail(error, groupId) {
    const text = error.status === 404 ? UNKNOWN : error.message;
    setText(this.head, 'Samples');
    this.notice.update({ text, links: [GALLERY, NEW], retry: error.status === 0 ? () => this.open(groupId) : null });
    this.onState();
  }

  #begin(wall) {
    this.#wall = wall;
    this.#members = wall.members.map(({ traceId }, k) => {
      const member = new Member(k + 1, {
        name: replacedOf(wall, traceId),
        onOpen: () => this.onOpen(traceId),
        onChoose: () => this.choice.toggle(traceId, member.choose),
      });
      return member;
    });
    this.list.replaceChildren(...this.#members.map((member) => member.element));
    setText(this.question, readQuestion(wall.members[0]?.question ?? ''));
    this.#draw();
    this.resume();
  }

  /** Reads on, after `rest`. */
  resume() {
    if (this.#stream || !this.#wall || this.#wall.over) return;
    this.#stream = new EventStream({
      source: groupSource(this.#wall.groupId),
      after: this.#after,
      fresh: this.#after === 0 && this.phase === 'running',
      onEvents: (events) => this.#receive(events),
    });
  }

  /** Stops reading while the wall is not shown. */
  rest() {
    const stream = this.#stream;
    this.#stream = null;
    stream?.close();
  }

  #receive(events) {
    if (!this.#wall) return;
    for (const { type, data } of events) {
      if ((type === 'image.partial' || type === 'image.completed') && data.url) loadImage(data.url).catch(() => {});
    }
    this.#wall = reduceWall(this.#wall, events);
    this.#after = events[events.length - 1].seq;
    if (this.#wall.over) {
      this.#stream = null;
      setText(this.spoken, `${headOf(this.#wall)}.`);
    }
    this.#draw();
  }

  #draw() {
    const wall = this.#wall;
    wall.members.forEach((state, k) => this.#members[k].update(state));
    setText(this.head, headOf(wall));
    setAttr(this.element, 'data-status', wall.over ? 'completed' : 'running');
    this.#drawTally(tallyOf(wall));
    show(this.hint, wall.members.length > 1 && !wall.replaced.size && isGreedy(wall));
    this.onState();
  }

  #drawTally(rows) {
    const text = JSON.stringify(rows);
    if (text === this.#drawnTally) return;
    this.#drawnTally = text;
    this.tally.replaceChildren(
      ...rows.map(({ answer, word, count, share, verdict }) => {
        const bar = h('span', { class: share === null ? '' : 'or-tally-bar', 'aria-hidden': 'true' });
        if (share !== null) bar.style.setProperty('--share', PERCENT(share).replace(' ', ''));
        return h(
          'li',
          { class: 'or-tally-row', 'data-verdict': verdict },
          h('strong', { dir: 'auto', class: answer === null ? 'or-quiet' : '' }, word),
          bar,
          h('span', { class: 'or-num' }, share === null ? String(count) : `${PERCENT(share)} · ${count}`),
          h(
            'span',
            { class: 'or-verdict', 'data-tone': verdict },
            verdict ? (verdict === 'right' ? '✓ right' : '✗ wrong') : '',
          ),
        );
      }),
    );
  }

  /** Cancels every member. */
  async stop() {
    if (!this.groupId) return;
    try {
      await api.cancelGroup(this.groupId);
    } catch (error) {
      this.notice.update({ text: error.message, links: [] });
    }
  }
}
