// One member of the wall: its images as a small timeline, its answer, and a button that opens it.

import { h, setAttr, setText, show } from '../shared/dom.js';
import { pillOf } from '../shared/words.js';
import { Thumb } from '../viewer/draw.js';
import { isLive, isTerminal } from '../viewer/state.js';
import { answerOf } from './members.js';

const MARKS = { right: '✓', wrong: '✗' };

export class Member {
  #thumbs = new Map(); // step -> Thumb

  /** number: from 1; name: what was replaced in it, null for a sample. onOpen(), onChoose(). */
  constructor(number, { name, onOpen, onChoose }) {
    this.number = number;
    this.strip = h('span', { class: 'or-member-strip', 'aria-hidden': 'true' });
    this.answer = h('strong', { class: 'or-member-answer', dir: 'auto' });
    this.mark = h('span', { class: 'or-verdict' });
    this.word = h('span', { class: 'or-quiet or-member-word' });
    this.open = h(
      'button',
      { type: 'button', class: 'or-member-open', onclick: onOpen },
      h(
        'span',
        { class: name ? 'or-member-number or-member-name' : 'or-member-number' },
        h('span', { class: 'or-sr' }, name ? 'Open ' : 'Open sample '),
        name ?? String(number),
      ),
      this.strip,
      h('span', { class: 'or-member-end' }, this.answer, this.mark, this.word),
    );
    this.choose = h(
      'button',
      {
        type: 'button',
        class: 'or-chipbutton or-member-choose',
        'aria-pressed': 'false',
        'aria-label': `compare ${name ?? `sample ${number}`}`,
        onclick: onChoose,
      },
      'compare',
    );
    this.element = h('li', { class: 'or-member' }, this.open, this.choose);
  }

  update(state) {
    const steps = state.steps.map((step) => {
      let thumb = this.#thumbs.get(step.index);
      if (!thumb) {
        thumb = new Thumb();
        this.#thumbs.set(step.index, thumb);
      }
      thumb.update(step.image?.url ?? step.partial?.url ?? null);
      setAttr(thumb.element, 'data-skill', step.skill);
      setAttr(thumb.element, 'data-live', isLive(state) && !step.complete ? 'true' : null);
      return thumb.element;
    });
    const same = steps.length === this.strip.children.length;
    if (!same) this.strip.replaceChildren(...steps);
    const answered = isTerminal(state) ? answerOf(state) : state.hasAnswer ? state.answer.trim() : null;
    const answer = answered === null ? '' : answered || '(empty)';
    const verdict = state.verdict?.answer ?? null;
    const deleted = state.missing !== null;
    const word = deleted ? 'deleted' : answer ? '' : state.status === 'completed' ? 'no answer' : pillOf(state).text;
    setText(this.answer, answer);
    setText(this.mark, verdict ? `${MARKS[verdict]} ${verdict}` : '');
    setAttr(this.mark, 'data-tone', verdict);
    show(this.answer, answer !== '');
    show(this.mark, verdict !== null);
    setText(this.word, word);
    show(this.word, word !== '');
    setAttr(this.element, 'data-status', state.status);
    this.open.disabled = deleted;
    show(this.choose, !deleted);
  }
}
