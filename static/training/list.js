// The list of jobs with status, progress and actions, newest first, paginated.

import { whenOf } from '../shared/when.js';
import { h, icon, setAttr, setText, show, sureButton } from '../shared/dom.js';
import { isLive } from './state.js';
import { METHODS, duration, progressOf, statusOf, tookOf } from './words.js';

class Row {
  constructor(job, handlers) {
    this.dot = h('span', { class: 'or-dot', 'aria-hidden': 'true' });
    this.status = h('span', {});
    this.pill = h('span', { class: 'or-pill' }, this.dot, this.status);
    this.where = h('span', { class: 'or-quiet or-num' });
    this.when = h('time', { class: 'or-quiet' });
    this.title = h('span', { class: 'or-job-title' });
    this.open = h(
      'button',
      { type: 'button', class: 'or-job-open', onclick: () => handlers.open(job.id) },
      h('span', { class: 'or-job-line' }, this.title, this.when),
      h('span', { class: 'or-job-line' }, this.pill, this.where),
    );
    const act = (label, name) =>
      h('button', { type: 'button', class: 'or-chipbutton', onclick: () => handlers[name](job.id) }, label);
    this.cancel = act('Stop', 'cancel');
    this.resume = act('Resume', 'resume');
    this.remove = sureButton('Delete this job', 'delete?', () => handlers.remove(job.id), icon('trash'));
    this.element = h(
      'li',
      { class: 'or-job', 'data-job': job.id },
      this.open,
      h('div', { class: 'or-job-acts' }, this.cancel, this.resume, this.remove),
    );
    this.update(job, false);
  }

  update(job, current) {
    const { tone, text } = statusOf({ ...job, cancelRequested: job.cancel_requested });
    const live = isLive(job);
    setText(this.title, `${METHODS[job.method] ?? job.method} from ${job.spec?.base_checkpoint ?? '?'}`);
    setText(this.status, text);
    setAttr(this.pill, 'data-tone', tone);
    setAttr(this.element, 'data-status', job.status);
    const took = tookOf(job);
    setText(this.where, live ? progressOf(job) : took === null ? '' : duration(took));
    setAttr(this.when, 'datetime', job.created_at);
    setAttr(this.when, 'title', job.created_at);
    setText(this.when, whenOf(job.created_at));
    setAttr(this.open, 'aria-current', current ? 'true' : null);
    show(this.cancel, live);
    this.cancel.disabled = Boolean(job.cancel_requested);
    show(this.resume, job.resumable === true);
    show(this.remove, !live);
    const name = `${this.title.textContent}, ${this.when.textContent}`;
    setAttr(this.cancel, 'aria-label', `Stop ${name}`);
    setAttr(this.resume, 'aria-label', `Resume ${name}`);
  }
}

export class JobList {
  #rows = new Map();

  /** handlers: open, cancel, resume, remove, each called with a job id; more(): the next page. */
  constructor(handlers) {
    this.handlers = handlers;
    this.list = h('ul', { class: 'or-jobs' });
    this.word = h('p', { class: 'or-quiet', role: 'status' });
    this.more = h(
      'button',
      { type: 'button', class: 'or-secondary', hidden: true, onclick: () => handlers.more() },
      'show more',
    );
    this.element = h(
      'section',
      { class: 'or-block or-joblist', 'aria-label': 'Jobs' },
      h('div', { class: 'or-block-head' }, h('h3', {}, 'Jobs')),
      this.word,
      this.list,
      this.more,
    );
  }

  update(jobs, selected, hasMore) {
    const known = new Set(jobs.map((job) => job.id));
    for (const jobId of [...this.#rows.keys()]) if (!known.has(jobId)) this.#rows.delete(jobId);
    const items = jobs.map((job) => {
      let row = this.#rows.get(job.id);
      if (!row) this.#rows.set(job.id, (row = new Row(job, this.handlers)));
      row.update(job, job.id === selected);
      return row.element;
    });
    // untouched while the list is the same, to keep the focus
    const same = items.length === this.list.children.length && items.every((item, k) => this.list.children[k] === item);
    if (!same) this.list.replaceChildren(...items);
    show(this.more, hasMore);
    this.say(jobs.length ? '' : 'No jobs yet. Start one of the presets above.');
  }

  say(text) {
    setText(this.word, text);
    show(this.word, Boolean(text));
  }
}
