// One job: stages and time left, warnings, charts, samples, checkpoints, reports, log. Live while it runs.
//
// Loads the job's row, then its events through one EventSource, stored ones in one batch. Until all stored events have
// arrived (the row has their number) the row determines the status, so that old statuses never flicker by.

import { studioUrl } from '../shared/address.js';
import { api } from '../shared/api.js';
import { copyButton, h, setAttr, setText, show } from '../shared/dom.js';
import { EventStream } from '../shared/events.js';
import { Charts } from './charts.js';
import { checkpointItem, drawStages, tailOf, warningItem } from './parts.js';
import { reportBlock } from './report.js';
import { Samples } from './samples.js';
import {
  TERMINAL,
  TYPES,
  initialJob,
  isLive,
  isTerminal,
  reduceAll,
  shownStage,
  stageBar,
  withJob,
  withWaiting,
} from './state.js';
import {
  METHODS,
  announcementOf,
  curlOf,
  dataOf,
  duration,
  progressOf,
  stageName,
  statusOf,
  troubleOf,
} from './words.js';

const DRAW_EVERY_MS = 250;

/** The URL of a job's events. No status ends the stream by itself: the job may have been resumed. */
export const jobSource = (jobId) => ({
  types: TYPES,
  url: (after) => api.jobEventsUrl(jobId, after),
  row: `/v1/jobs/${encodeURIComponent(jobId)}`,
  over: (row) => TERMINAL.has(row.status),
  ends: () => false,
  rests: () => false,
});

export class Run {
  #state = initialJob(null);
  #row = null;
  #stream = null;
  #stored = 0; // number of events when the row was read
  #stage = null; // the stage selected by the user; null = the running one
  #turn = 0;
  #timer = 0; // a pending render: steps may arrive faster than they can be read
  #rejected = null; // error of the last action, until the status changes
  #connection = 'closed';
  #drawn = { warnings: null, checkpoints: null, reports: null, log: null };

  /** handlers: cancel, resume (called with a job id); changed(): its status has changed. */
  constructor(handlers) {
    this.handlers = handlers;
    this.title = h('h2', {});
    this.dot = h('span', { class: 'or-dot', 'aria-hidden': 'true' });
    this.word = h('span', { class: 'or-pill-text' });
    this.pill = h('div', { class: 'or-pill' }, this.dot, this.word);
    this.where = h('span', { class: 'or-quiet or-num' });
    this.facts = h('p', { class: 'or-quiet or-run-facts' });
    this.cancel = h(
      'button',
      { type: 'button', class: 'or-secondary', onclick: () => handlers.cancel(this.#state.jobId) },
      'Stop',
    );
    this.resume = h(
      'button',
      { type: 'button', class: 'or-secondary', onclick: () => handlers.resume(this.#state.jobId) },
      'Resume',
    );
    this.stages = h('ol', { class: 'or-stages', 'aria-label': 'Stages' });
    this.trouble = h('p', { class: 'or-trouble or-run-trouble', hidden: true });
    this.tail = h('pre', {
      class: 'or-code or-tail',
      tabindex: '0',
      'aria-label': 'Last lines of the log',
      hidden: true,
    });
    this.warnings = h('ul', { class: 'or-warnings', 'aria-label': 'Warnings' });
    this.charts = new Charts();
    this.tabs = h('div', { class: 'or-tabs', role: 'group', 'aria-label': 'Stage shown' });
    this.samples = new Samples();
    this.made = h('ul', { class: 'or-made' });
    this.madeBlock = h(
      'section',
      { class: 'or-block', 'aria-label': 'Checkpoints of this job' },
      h('h3', {}, 'Checkpoints'),
      this.made,
    );
    this.reports = h('div', { class: 'or-reports' });
    this.log = h('pre', { class: 'or-code or-log', tabindex: '0', 'aria-label': 'Log of the job' });
    this.logBox = h('details', { class: 'or-details' }, h('summary', {}, 'log'), this.log);
    this.logBox.addEventListener('toggle', () => this.#drawLog());
    this.spec = h('pre', { class: 'or-code', tabindex: '0', 'aria-label': 'The resolved spec' });
    this.specBox = h('details', { class: 'or-details' }, h('summary', {}, 'spec with all defaults'), this.spec);
    this.again = copyButton(
      'copy curl',
      () => curlOf(studioUrl(), this.#state.spec),
      (text) => setText(this.spoken, text),
    );
    this.spoken = h('div', { class: 'or-sr', role: 'status', 'aria-live': 'polite' });
    this.body = h(
      'div',
      { class: 'or-run-body', hidden: true },
      h(
        'header',
        { class: 'or-block or-run-head' },
        h(
          'div',
          { class: 'or-block-head' },
          this.title,
          h('span', { class: 'or-spring' }),
          this.again,
          this.cancel,
          this.resume,
        ),
        h('div', { class: 'or-run-line' }, this.pill, this.where),
        this.stages,
        this.facts,
        this.trouble,
        this.tail,
      ),
      this.warnings,
      h(
        'section',
        { class: 'or-block', 'aria-label': 'Charts' },
        h('div', { class: 'or-block-head' }, h('h3', {}, 'Numbers'), h('span', { class: 'or-spring' }), this.tabs),
        this.charts.element,
      ),
      this.samples.element,
      this.madeBlock,
      this.reports,
      h('section', { class: 'or-block', 'aria-label': 'Spec and log' }, this.specBox, this.logBox),
    );
    this.empty = h(
      'p',
      { class: 'or-quiet or-run-empty' },
      'Start a job, or select one from the list: its losses, rewards and images appear here while it runs.',
    );
    this.element = h('section', { class: 'or-run', 'aria-label': 'Job' }, this.empty, this.body, this.spoken);
  }

  get jobId() {
    return this.#state.jobId;
  }

  get state() {
    return this.#state;
  }

  /** Show a job: `row` if the page already has it. */
  async open(jobId, row = null) {
    this.close();
    const turn = ++this.#turn;
    this.#set({ ...initialJob(jobId) });
    let job = row;
    try {
      job ??= await api.job(jobId);
    } catch (error) {
      if (turn === this.#turn) this.#gone(error, jobId);
      return;
    }
    if (turn === this.#turn) this.#begin(job);
  }

  /** The job was resumed: continue reading after its last event. */
  resumed(row) {
    if (row.id !== this.#state.jobId) return this.open(row.id, row);
    this.#stream?.close();
    return this.#begin(row);
  }

  /** Show the server's response to a cancellation. */
  cancelRequested(row) {
    if (row.id !== this.#state.jobId || !this.#row) return;
    this.#row = { ...this.#row, cancel_requested: row.cancel_requested };
    this.#draw();
  }

  /** Apply the latest row: on a full disk events cannot be stored, and only the row reports the wait. */
  seen(row) {
    if (row.id === this.#state.jobId && this.#row && !this.#replaying) this.#set(withWaiting(this.#state, row));
  }

  close() {
    this.#turn += 1;
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#stream?.close();
    this.#stream = null;
    this.#row = null;
    this.#rejected = null;
    this.#stage = null;
    this.samples.reset();
    show(this.body, false);
    show(this.empty, true);
    this.#state = initialJob(null);
  }

  #begin(job) {
    this.#row = job;
    this.#stored = job.last_event ?? 0;
    this.#set(withJob(this.#state, job));
    let stream = null; // it may emit while it is constructed
    const mine = () => stream === null || stream === this.#stream;
    stream = new EventStream({
      source: jobSource(job.id),
      after: this.#state.lastSeq,
      onEvents: (events) => mine() && this.#receive(events),
      onConnection: (word) => mine() && this.#connected(word),
    });
    this.#stream = stream;
  }

  get #replaying() {
    return this.#state.lastSeq < this.#stored;
  }

  #receive(events) {
    const before = this.#state;
    const replayed = this.#replaying;
    const after = reduceAll(before, events);
    if (after.lastSeq < this.#stored) {
      const { status, progress, error } = this.#row;
      this.#set({ ...after, status, progress: progress ?? after.progress, error: error ?? null });
      return;
    }
    this.#set(after, replayed ? '' : announcementOf(before, after));
    if (isTerminal(after)) this.#refresh(); // it may have been resumed since
  }

  async #refresh() {
    const { jobId } = this.#state;
    try {
      const job = await api.job(jobId);
      if (jobId !== this.#state.jobId) return;
      const changed = job.status !== this.#row?.status;
      this.#row = job;
      this.#set(withJob(this.#state, job));
      if (TERMINAL.has(job.status)) this.#stream?.close('ended');
      if (changed) this.handlers.changed();
    } catch {
      // keep what the events reported
    }
  }

  #connected(word) {
    this.#connection = word;
    if (word === 'unknown') this.#gone({ status: 404 }, this.#state.jobId);
    else this.#draw();
  }

  #gone(error, jobId) {
    this.close();
    setText(
      this.empty,
      error.status === 404 ? `Job “${jobId}” does not exist on this server. It may have been deleted.` : error.message,
    );
  }

  /** An action was rejected. */
  fail(error) {
    this.#rejected = error.message;
    this.#draw();
  }

  #set(state, announcement = '') {
    const changed = state.status !== this.#state.status && this.#state.status !== 'loading';
    if (changed) this.#rejected = null;
    this.#state = state;
    if (announcement) setText(this.spoken, announcement);
    if (changed || announcement || !isLive(state)) this.#draw();
    else if (!this.#timer) this.#timer = setTimeout(() => this.#draw(), DRAW_EVERY_MS);
    if (changed && !this.#replaying) this.handlers.changed();
  }

  // ---- rendering

  #draw() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const state = this.#state;
    const known = state.status !== 'loading';
    show(this.body, known);
    show(this.empty, !known);
    if (!known) return setText(this.empty, state.jobId ? 'Opening the job …' : this.empty.textContent);
    setAttr(this.element, 'data-job', state.jobId);
    setAttr(this.element, 'data-status', state.status);
    setAttr(this.element, 'data-seq', state.lastSeq);
    const cancelRequested = this.#row?.cancel_requested ?? false;
    const { tone, text } =
      this.#connection === 'lost'
        ? { tone: 'fail', text: 'connection lost, retrying' }
        : statusOf({ ...state, cancelRequested });
    setText(this.title, `${METHODS[state.method] ?? state.method} from ${state.base}`);
    setText(this.word, text);
    setAttr(this.pill, 'data-tone', tone);
    const took = state.finishedAt ? state.runningS : null;
    setText(this.where, isLive(state) ? progressOf(state) : took === null ? '' : `took ${duration(took)}`);
    setText(
      this.facts,
      [dataOf(state.spec ?? {}), state.spec?.seed !== undefined ? `seed ${state.spec.seed}` : '']
        .filter(Boolean)
        .join(' · '),
    );
    show(this.cancel, isLive(state));
    this.cancel.disabled = cancelRequested;
    show(this.resume, isTerminal(state) && state.resumable === true);
    drawStages(this.stages, stageBar(state));
    const trouble = this.#rejected ?? troubleOf(state);
    setText(this.trouble, trouble ?? '');
    setAttr(this.trouble, 'data-tone', state.status === 'cancelled' && !this.#rejected ? 'quiet' : 'fail');
    show(this.trouble, Boolean(trouble));
    setText(this.tail, tailOf(state.error));
    show(this.tail, Boolean(this.tail.textContent));
    this.#drawTabs();
    const shown = shownStage(state, this.#stage);
    const measured = String(shown).startsWith('benchmark') && Boolean(state.stages[shown]);
    const without = isLive(state) ? 'No values yet.' : 'This job has no metrics.';
    this.charts.update(
      state.stages[shown] ?? null,
      measured ? 'Accuracy by slice is in the report below.' : without,
      measured,
    );
    this.samples.update(state.samples, isLive(state));
    this.#once('warnings', state.warnings, () => this.#drawWarnings());
    this.#once('checkpoints', state.checkpoints, () => this.#drawMade());
    this.#once('reports', state.reports, () =>
      this.reports.replaceChildren(
        ...state.reports.map((one) => reportBlock(one, (path) => api.jobFileUrl(state.jobId, path))),
      ),
    );
    this.#once('log', state.log, () => this.#drawLog());
    setText(this.spec, JSON.stringify(state.spec, null, 2));
    return undefined;
  }

  #once(name, value, draw) {
    if (this.#drawn[name] === value) return;
    this.#drawn[name] = value;
    draw();
  }

  #drawTabs() {
    const { order } = this.#state;
    const shown = shownStage(this.#state, this.#stage);
    show(this.tabs, order.length > 1);
    if (this.tabs.children.length !== order.length) {
      this.tabs.replaceChildren(
        ...order.map((stage) =>
          h(
            'button',
            {
              type: 'button',
              class: 'or-chipbutton',
              onclick: () => {
                this.#stage = stage === this.#state.progress?.stage ? null : stage;
                this.#draw();
              },
            },
            stageName(stage),
          ),
        ),
      );
    }
    for (const [k, stage] of order.entries()) setAttr(this.tabs.children[k], 'aria-pressed', String(stage === shown));
  }

  #drawWarnings() {
    this.warnings.replaceChildren(...this.#state.warnings.map(warningItem));
    show(this.warnings, this.#state.warnings.length > 0);
  }

  #drawMade() {
    const made = [...this.#state.checkpoints].reverse();
    show(this.madeBlock, made.length > 0);
    this.made.replaceChildren(...made.map(checkpointItem));
  }

  #drawLog() {
    const { log, dropped } = this.#state;
    show(this.logBox, log.length > 0);
    if (!this.logBox.open) return;
    const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 8;
    setText(this.log, (dropped ? `… ${dropped.toLocaleString('en')} older lines\n` : '') + log.join('\n'));
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }
}
