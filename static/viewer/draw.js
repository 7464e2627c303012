// The parts of the viewer around the image: status bar, timeline, step texts, answer.
// Each is built once and then updated; only changes touch the DOM, so that nothing jumps and the focus stays.

import { h, icon, setAttr, setText, show } from '../shared/dom.js';
import { loadImage } from './image.js';
import { isLive, isTerminal } from './state.js';
import { SKILLS, Stopwatch, pillOf, rateOf, readQuestion, seconds, troubleOf, verdictOf } from '../shared/words.js';

/** A thumbnail: swapped only when the new image is decoded. */
export class Thumb {
  #url = null;

  constructor() {
    this.element = h('span', { class: 'or-thumb' });
    this.image = h('img', { alt: '', class: 'or-pixels' });
  }

  update(url) {
    if (url === this.#url) return;
    this.#url = url;
    if (!url) return this.element.replaceChildren();
    loadImage(url).then(
      () => {
        if (url !== this.#url) return;
        setAttr(this.image, 'src', url);
        if (!this.image.isConnected) this.element.replaceChildren(this.image);
      },
      () => {},
    );
  }
}

export class Bar {
  #tick = 0;
  #watch = new Stopwatch();

  constructor(buttons) {
    this.dot = h('span', { class: 'or-dot', 'aria-hidden': 'true' });
    this.text = h('span', { class: 'or-pill-text' });
    this.count = h('span', { class: 'or-num' });
    this.clock = h('span', { class: 'or-num or-clock' });
    this.rate = h('span', { class: 'or-num or-rate' });
    this.seed = h('span', { class: 'or-seed' });
    this.pill = h('div', { class: 'or-pill' }, this.dot, this.text, this.count);
    this.element = h(
      'div',
      { class: 'or-bar' },
      this.pill,
      this.clock,
      this.rate,
      h('span', { class: 'or-spring' }),
      this.seed,
      ...buttons,
    );
  }

  update(state, connection) {
    const pill = connection === 'lost' ? { tone: 'fail', text: 'connection lost, retrying' } : pillOf(state);
    setAttr(this.pill, 'data-tone', pill.tone);
    setText(this.text, pill.text);
    setText(this.count, pill.count ? `· ${pill.count}` : '');
    setText(this.seed, state.seed === null ? '' : `seed ${state.seed}`);
    if (state.traceId !== this.state?.traceId) this.#watch = new Stopwatch();
    this.#watch.follow(state);
    if (!this.#watch.running) this.stop();
    else if (!this.#tick) this.#tick = setInterval(() => this.#time(), 100);
    this.state = state;
    this.#time();
  }

  #time() {
    const { elapsed, running } = this.#watch;
    setText(this.clock, running && elapsed !== null ? seconds(elapsed) : '');
    const rate = running || isTerminal(this.state) ? rateOf(this.state, elapsed) : null;
    setText(this.rate, rate === null ? '' : `${rate} tok/s`);
  }

  stop() {
    clearInterval(this.#tick);
    this.#tick = 0;
  }
}

export class Timeline {
  #chips = new Map(); // key -> {item, button, thumb, label, mark, skill}

  /** label: the viewer's name, to distinguish several on one page. */
  constructor(label, onPick) {
    this.onPick = onPick;
    this.list = h('ol', { class: 'or-chips' });
    this.element = h('nav', { class: 'or-timeline', 'aria-label': `${label}: steps` }, this.list);
  }

  #chip(key) {
    let chip = this.#chips.get(key);
    if (!chip) {
      const thumb = new Thumb();
      const label = h('span', { class: 'or-chip-label' });
      const mark = h('span', { class: 'or-chip-mark' });
      const button = h('button', { type: 'button', class: 'or-chip' }, label, thumb.element, mark);
      button.addEventListener('click', () => this.onPick(chip.at));
      chip = { item: h('li', {}, button), button, thumb, label, mark, skill: undefined, at: 0 };
      this.#chips.set(key, chip);
    }
    return chip;
  }

  #draw(key, { at, label, name, url, skill = null, current, pending = false, live = false, edited = false }) {
    const chip = this.#chip(key);
    chip.at = at;
    setText(chip.label, label);
    setAttr(chip.button, 'aria-label', name);
    setAttr(chip.button, 'title', name);
    setAttr(chip.button, 'aria-current', current ? 'step' : null);
    setAttr(chip.button, 'data-live', live ? 'true' : null);
    setAttr(chip.button, 'data-skill', skill);
    setAttr(chip.button, 'data-edited', edited ? 'true' : null);
    setAttr(chip.button, 'disabled', pending ? '' : null);
    chip.thumb.update(url);
    if (chip.skill !== skill) {
      chip.skill = skill;
      chip.mark.replaceChildren(...(skill ? [icon(skill)] : []));
    }
    return chip.item;
  }

  update(state, at) {
    const last = state.steps[state.steps.length - 1];
    const items = [
      this.#draw('Q', { at: 0, label: 'Q', name: 'Question', url: state.images[0]?.url, current: at === 0 }),
    ];
    for (const step of state.steps) {
      const skill = step.skill ? `, ${SKILLS[step.skill]?.word ?? step.skill}` : '';
      const drawing = isLive(state) && step === last && !step.complete;
      items.push(
        this.#draw(`s${step.index}`, {
          at: step.index,
          label: String(step.index),
          name: `Step ${step.index}${skill}${step.edited ? ', edited' : ''}${drawing ? ', running' : ''}`,
          url: step.image?.url ?? step.partial?.url ?? null,
          skill: SKILLS[step.skill] ? step.skill : null,
          current: at === step.index,
          live: drawing,
          edited: step.edited,
        }),
      );
    }
    if (!isTerminal(state) && !state.hasAnswer) {
      const asleep = state.status === 'loading' || state.status === 'paused';
      if (!last || last.complete) {
        items.push(this.#draw('next', { at: -1, label: '·', name: 'Next step', pending: true, live: !asleep }));
      }
    }
    const answer = (last?.index ?? 0) + 1;
    items.push(
      this.#draw('A', {
        at: answer,
        label: 'A',
        name: 'Answer',
        current: at === answer,
        pending: !state.hasAnswer,
        live: state.activity === 'answering',
      }),
    );
    const same = items.length === this.list.children.length && items.every((item, k) => this.list.children[k] === item);
    if (!same) this.list.replaceChildren(...items);
    const current = items.find((item) => item.firstChild.getAttribute('aria-current'));
    if (current && current !== this.current) this.#reveal(current);
    this.current = current;
  }

  #reveal(item) {
    const { list } = this;
    const from = item.offsetLeft - list.offsetLeft;
    if (from < list.scrollLeft) list.scrollLeft = from - 8;
    else if (from + item.offsetWidth > list.scrollLeft + list.clientWidth) {
      list.scrollLeft = from + item.offsetWidth - list.clientWidth + 8;
    }
  }

  /** The button of a step, or undefined. */
  chipOf(index) {
    return this.#chips.get(`s${index}`)?.button;
  }

  reset() {
    this.#chips.clear();
    this.list.replaceChildren();
    this.current = null;
  }
}

export class Steps {
  #rows = new Map();

  /** onEdit(index), if the steps of an ended or paused trace can be edited. */
  constructor(label, onPick, onEdit = null) {
    this.onPick = onPick;
    this.onEdit = onEdit;
    this.question = h('p', { class: 'or-question', dir: 'auto' });
    this.list = h('ol', { class: 'or-steps' });
    this.hint = h('p', { class: 'or-steps-hint' });
    this.element = h(
      'div',
      { class: 'or-words', tabindex: '0', role: 'region', 'aria-label': `${label}: words` },
      this.question,
      this.list,
      this.hint,
    );
  }

  #row(index) {
    let row = this.#rows.get(index);
    if (!row) {
      const text = h('span', { class: 'or-step-text', dir: 'auto' });
      const number = h('button', { type: 'button', class: 'or-step-number' }, String(index));
      number.addEventListener('click', () => this.onPick(index));
      const edit = h(
        'button',
        { type: 'button', class: 'or-round or-edit-button', 'aria-label': `Edit step ${index}`, title: 'Edit' },
        icon('pen'),
      );
      edit.addEventListener('click', () => this.onEdit(index));
      const note = h('span', { class: 'or-step-note' }, 'edited');
      const item = h('li', { class: 'or-step' }, number, h('div', {}, text, note), edit);
      item.addEventListener('click', (event) => {
        if (event.target !== number && !String(getSelection())) this.onPick(index);
      });
      row = { item, text, number, note, edit };
      this.#rows.set(index, row);
    }
    return row;
  }

  update(state, at, hint) {
    setText(this.question, readQuestion(state.question));
    const live = isLive(state) && !state.hasAnswer;
    const last = state.steps[state.steps.length - 1];
    const editable = this.onEdit !== null && (isTerminal(state) || state.status === 'paused');
    const items = state.steps.map((step) => {
      const row = this.#row(step.index);
      setText(row.text, step.text.trim());
      show(row.note, step.edited);
      show(row.edit, editable && step.complete);
      setAttr(row.item, 'data-current', at === step.index ? 'true' : null);
      setAttr(row.item, 'data-skill', SKILLS[step.skill] ? step.skill : null);
      setAttr(
        row.item,
        'data-writing',
        live && step === last && !step.complete ? (step.partial ? 'drawing' : 'text') : null,
      );
      setAttr(row.number, 'aria-label', `Show step ${step.index}`);
      return row.item;
    });
    const grew = items.length !== this.list.children.length;
    if (grew || items.some((item, k) => this.list.children[k] !== item)) this.list.replaceChildren(...items);
    setText(this.hint, state.steps.length ? '' : hint);
    show(this.hint, !state.steps.length);
    const shown = this.#rows.get(at)?.item;
    if (shown && (shown !== this.shown || (last && at === last.index && live))) this.#reveal(shown);
    this.shown = shown;
  }

  #reveal(item) {
    const box = this.element;
    const from = item.offsetTop - box.offsetTop;
    if (from < box.scrollTop) box.scrollTop = from - 8;
    else if (from + item.offsetHeight > box.scrollTop + box.clientHeight) {
      box.scrollTop = Math.min(from - 8, from + item.offsetHeight - box.clientHeight + 8);
    }
  }

  /** The list item of a step, or undefined. */
  rowOf(index) {
    return this.#rows.get(index)?.item;
  }

  reset() {
    this.#rows.clear();
    this.list.replaceChildren();
    this.shown = null;
  }
}

export class Answer {
  /** tools: the elements with the buttons. */
  constructor(tools) {
    this.label = h('span', { class: 'or-answer-label' }, 'answer');
    this.text = h('output', { class: 'or-answer-text', dir: 'auto' });
    this.verdict = h('span', { class: 'or-verdict' });
    this.trouble = h('p', { class: 'or-trouble' });
    this.element = h(
      'div',
      { class: 'or-answer' },
      this.label,
      h('div', { class: 'or-answer-line' }, this.text, this.verdict),
      this.trouble,
      tools,
    );
  }

  update(state, reference, again) {
    setText(this.text, state.hasAnswer ? state.answer.trim() || '(empty)' : '');
    setAttr(this.element, 'data-current', state.hasAnswer ? 'true' : null);
    const verdict = verdictOf(state, reference);
    setText(this.verdict, verdict?.text ?? '');
    setAttr(this.verdict, 'data-tone', verdict?.tone);
    const trouble = troubleOf(state, again);
    setText(this.trouble, trouble ?? '');
    setAttr(this.trouble, 'data-tone', ['failed', 'interrupted'].includes(state.status) ? 'fail' : 'quiet');
    show(this.trouble, Boolean(trouble));
  }
}
