// The Training page: presets, the list of jobs, and one job in full. `?job=ID` in the URL selects it.
//
// It holds no state of its own: everything comes from GET /v1/jobs and the events of the selected job.

import { urlOf } from '../shared/address.js';
import { api } from '../shared/api.js';
import { serve } from '../shared/bridge.js';
import { Place, h } from '../shared/dom.js';
import { tracesInAddress } from '../curate/choose.js';
import { onBack } from '../viewer/server.js';
import { DataPanel } from './data.js';
import { ExtensionsPanel } from './extensions.js';
import { GraderPanel } from './grader.js';
import { JobList } from './list.js';
import { Run } from './run.js';
import { Start } from './start.js';
import { isLive } from './state.js';

const PAGE = 20;
const LOOK_EVERY_MS = 3000;

class Training {
  #jobs = [];
  #hasMore = false;
  #unread = false; // the list could not be fetched
  #timer = 0;
  #turn = 0;
  #wanted = null; // id of the job to show
  #place = new Place();

  mount(element, presets) {
    return this.#place.into(element, () => this.#begin(element, presets));
  }

  async #begin(element, presets) {
    this.start = new Start(presets, { onJob: (job) => this.#started(job) });
    this.list = new JobList({
      open: (jobId) => this.open(jobId),
      cancel: (jobId) => this.#act(jobId, api.cancelJob),
      resume: (jobId) => this.#act(jobId, api.resumeJob),
      remove: (jobId) => this.#remove(jobId),
      more: () => this.#page(),
    });
    this.run = new Run({
      cancel: (jobId) => this.#act(jobId, api.cancelJob),
      resume: (jobId) => this.#act(jobId, api.resumeJob),
      changed: () => this.refresh(),
    });
    const extensions = new ExtensionsPanel();
    element.replaceChildren(
      this.start.element,
      new DataPanel({ onUse: (method, data) => this.start.use(method, data) }).element,
      h('div', { class: 'or-training-main' }, this.list.element, this.run.element),
      new GraderPanel().element,
      extensions.element,
    );
    document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && this.refresh());
    onBack((outage) => this.#back(outage));
    await Promise.all([this.refresh(), extensions.refresh()]);
    const requested = new URLSearchParams(location.search).get('job');
    const traces = tracesInAddress(location.hash);
    const wanted = requested ?? (traces.length ? null : this.#jobs.find(isLive)?.id);
    if (wanted) this.open(wanted);
    if (traces.length) this.start.trainOn(traces);
    document.documentElement.dataset.training = 'ready';
  }

  // After failed requests: load what is missing. An open job reconnects by itself.
  async #back(outage) {
    if (outage || this.#unread) await this.refresh();
    if (this.#wanted && this.run.jobId !== this.#wanted) this.open(this.#wanted);
  }

  async open(jobId) {
    this.#wanted = jobId;
    const row = this.#jobs.find((job) => job.id === jobId) ?? null;
    history.replaceState(null, '', urlOf(`/training?job=${encodeURIComponent(jobId)}`));
    const opened = this.run.open(jobId, row);
    this.#draw();
    await opened;
    if (matchMedia('(max-width: 900px)').matches) this.run.element.scrollIntoView({ block: 'start' });
  }

  /** Reloads the latest jobs; repeats every few seconds while one is live and the page is visible. */
  async refresh() {
    clearTimeout(this.#timer);
    const turn = ++this.#turn;
    try {
      const { data, has_more: hasMore } = await api.jobs({ limit: PAGE });
      if (turn !== this.#turn) return;
      this.#unread = false;
      const older = this.#jobs.slice(PAGE).filter((job) => !data.some((one) => one.id === job.id));
      this.#jobs = [...data, ...(data.length === PAGE ? older : [])];
      if (!older.length) this.#hasMore = hasMore;
      this.#draw();
    } catch (error) {
      this.#unread = true;
      if (turn === this.#turn) this.list.say(error.message);
    }
    if (document.visibilityState === 'visible' && this.#jobs.some(isLive)) {
      this.#timer = setTimeout(() => this.refresh(), LOOK_EVERY_MS);
    }
  }

  async #page() {
    const last = this.#jobs[this.#jobs.length - 1];
    try {
      const { data, has_more: hasMore } = await api.jobs({ limit: PAGE, after: last.id });
      this.#jobs = [...this.#jobs, ...data.filter((job) => !this.#jobs.some((one) => one.id === job.id))];
      this.#hasMore = hasMore;
      this.#draw();
    } catch (error) {
      this.list.say(error.message);
    }
  }

  #started(job) {
    this.#jobs = [job, ...this.#jobs.filter((one) => one.id !== job.id)];
    this.open(job.id);
    this.refresh();
  }

  async #act(jobId, call) {
    try {
      const job = await call(jobId);
      if (call === api.resumeJob) this.run.resumed(job);
      else this.run.cancelRequested(job);
      await this.refresh();
    } catch (error) {
      if (this.run.jobId === jobId) this.run.fail(error);
      else this.list.say(error.message);
    }
  }

  async #remove(jobId) {
    try {
      await api.removeJob(jobId);
    } catch (error) {
      if (error.status !== 404) return this.list.say(error.message);
    }
    if (this.run.jobId === jobId) {
      this.run.close();
      this.#wanted = null;
      history.replaceState(null, '', urlOf('/training'));
    }
    this.#jobs = this.#jobs.filter((job) => job.id !== jobId);
    this.#draw();
    return this.refresh();
  }

  #draw() {
    this.list.update(this.#jobs, this.run.jobId, this.#hasMore);
    this.start.jobs(this.#jobs);
    const shown = this.#jobs.find((job) => job.id === this.run.jobId);
    if (shown) this.run.seen(shown);
  }
}

export const training = new Training();

serve('training', training);

/** For the gr.HTML component: its value is the presets as JSON. */
export function mountTraining(element, props) {
  return training.mount(element.querySelector('[data-training]'), JSON.parse(props.value));
}
