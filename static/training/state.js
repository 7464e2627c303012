// The state of one job as a plain value, and how events change it.
//
// Pure: no DOM, no network, no clock. `reduceAll` never changes its argument. Events are `{seq, type, data}` as sent by
// GET /v1/jobs/{id}/events. A pipeline counts steps per stage, so metrics are kept by stage.

import { JOB_TERMINAL } from '../shared/contract.js';
import { emptySeries, push } from '../shared/series.js';

export const TERMINAL = new Set(JOB_TERMINAL);
export const RESUMABLE = new Set(['failed', 'cancelled', 'interrupted']);
export const isTerminal = (state) => TERMINAL.has(state.status);
export const isLive = (state) => state.status === 'queued' || state.status === 'running';

export const KEEP_SAMPLES = 24;
export const KEEP_LINES = 400;

export function initialJob(jobId) {
  return {
    jobId,
    lastSeq: 0,
    status: 'loading', // loading | queued | running | succeeded | failed | cancelled | interrupted
    method: null,
    spec: null,
    base: null,
    progress: null, // {stage, step, total, eta_s, waiting?: {for, needed_bytes, free_bytes}}
    stages: {}, // stage -> {series: {name: series}, latest: {name: value}, step}
    order: [], // stages in order of first appearance
    samples: [], // newest last
    checkpoints: [], // {name, stage, step, metrics}
    warnings: [], // {code, detail, count}, newest last
    reports: [], // {kind, ...}
    log: [],
    dropped: 0, // log lines no longer kept here
    error: null,
    resumable: null, // whether Resume would be accepted; null until the row of the ended job arrives
    runningS: null, // total run time of its workers in seconds
    createdAt: null,
    startedAt: null,
    finishedAt: null,
  };
}

/** Applies a job's row; later events refine it. */
export function withJob(state, job) {
  return {
    ...state,
    status: job.status,
    method: job.method ?? state.method,
    spec: job.spec ?? state.spec,
    base: job.spec?.base_checkpoint ?? state.base,
    progress: job.progress ?? state.progress,
    error: job.error ?? null,
    resumable: TERMINAL.has(job.status) ? (job.resumable ?? null) : null,
    runningS: job.running_s ?? state.runningS,
    createdAt: job.created_at ?? state.createdAt,
    startedAt: job.started_at ?? state.startedAt,
    finishedAt: job.finished_at ?? null,
    checkpoints: state.checkpoints.length ? state.checkpoints : (job.checkpoints ?? []).map(asCheckpoint),
  };
}

const asCheckpoint = (one) => (typeof one === 'string' ? { name: one, stage: null, step: null, metrics: {} } : one);

/** The planned stages of a spec, in order. */
export function stagesOf(spec) {
  const given = spec?.hyperparameters ?? {};
  if (spec?.method === 'pipeline') return ['zero', 'pesft', 'perpo', 'benchmark'].filter((stage) => given[stage]);
  if (spec?.method === 'zero') return given.pesft === null ? ['zero'] : ['zero', 'pesft'];
  return spec?.method ? [spec.method] : [];
}

/** `[{stage, share, state}]` for the stage bar: done | running | waiting, with progress. */
export function stageBar(state) {
  const planned = stagesOf(state.spec);
  const current = state.progress?.stage ?? null;
  // a comparison keeps the second checkpoint's metrics under `benchmark:NAME`, which is no stage
  const all = [...planned, ...state.order.filter((stage) => !planned.includes(stage) && !stage.includes(':'))];
  if (current && !all.includes(current)) all.push(current);
  const at = all.indexOf(current);
  return all.map((stage, k) => {
    if (state.status === 'succeeded' || k < at) return { stage, share: 1, state: 'done' };
    if (k > at) return { stage, share: 0, state: 'waiting' };
    const { step = 0, total = 0 } = state.progress;
    return { stage, share: total ? Math.min(1, step / total) : 0, state: isLive(state) ? 'running' : 'stopped' };
  });
}

/** Applies what the latest row says a job waits for; null while it runs. */
export function withWaiting(state, job) {
  const waiting = job.progress?.waiting ?? null;
  if (!isLive(state) || (state.progress?.waiting ?? null) === waiting) return state;
  return { ...state, progress: { ...state.progress, waiting } };
}

// A batch of events copies each changed part once: long jobs are replayed in one batch.
class Draft {
  #own = new Set();

  constructor(state) {
    this.state = { ...state };
  }

  list(name) {
    if (!this.#own.has(name)) {
      this.#own.add(name);
      this.state[name] = this.state[name].slice();
    }
    return this.state[name];
  }

  stage(name) {
    const key = `stage ${name}`;
    if (!this.#own.has(key)) {
      this.#own.add(key);
      const before = this.state.stages[name];
      const stage = { series: { ...before?.series }, latest: { ...before?.latest }, step: before?.step ?? 0 };
      this.state.stages = { ...this.state.stages, [name]: stage };
      if (!before) this.list('order').push(name);
    }
    return this.state.stages[name];
  }

  series(stageName, name) {
    const stage = this.stage(stageName);
    const key = `series ${stageName} ${name}`;
    if (!this.#own.has(key)) {
      this.#own.add(key);
      const before = stage.series[name];
      stage.series[name] = before ? { width: before.width, points: before.points.slice() } : emptySeries();
    }
    return stage.series[name];
  }
}

const HANDLERS = {
  'job.status': ({ state }, data) => {
    state.status = data.status ?? state.status;
    state.resumable = null;
    state.error = data.error ?? (RESUMABLE.has(state.status) ? state.error : null);
    if (data.progress) state.progress = data.progress;
    if (data.started_at) state.startedAt = data.started_at;
    if (data.finished_at !== undefined) state.finishedAt = data.finished_at;
  },
  progress: ({ state }, data) => {
    state.progress = data;
  },
  metrics: (draft, data) => {
    const name = data.stage ?? draft.state.progress?.stage ?? draft.state.method ?? 'training';
    const stage = draft.stage(name);
    stage.step = data.step ?? stage.step;
    for (const [key, value] of Object.entries(data.values ?? {})) {
      if (typeof value !== 'number') continue; // NaN arrives as null
      stage.latest[key] = value;
      push(draft.series(name, key), stage.step, value);
    }
  },
  sample: (draft, data, seq) => {
    const samples = draft.list('samples');
    samples.push({ ...data, seq });
    if (samples.length > KEEP_SAMPLES) samples.shift();
  },
  checkpoint: (draft, data) => {
    const checkpoints = draft.list('checkpoints');
    const at = checkpoints.findIndex((one) => one.name === data.name);
    if (at < 0) checkpoints.push(data);
    else checkpoints[at] = data;
  },
  warning: (draft, data) => {
    const warnings = draft.list('warnings');
    const at = warnings.findIndex((one) => one.code === data.code);
    const count = at < 0 ? 1 : warnings.splice(at, 1)[0].count + 1;
    warnings.push({ code: data.code, detail: data.detail ?? '', count });
  },
  report: (draft, data) => {
    draft.list('reports').push(data);
  },
  log: (draft, data) => {
    const lines = draft.list('log');
    lines.push(String(data.line ?? ''));
    if (lines.length > KEEP_LINES) {
      lines.shift();
      draft.state.dropped += 1;
    }
  },
};

export const TYPES = Object.keys(HANDLERS);

/** The state after `events`, which must be in order; duplicates change nothing. */
export function reduceAll(state, events) {
  const draft = new Draft(state);
  for (const { seq, type, data } of events) {
    if (seq <= draft.state.lastSeq) continue;
    draft.state.lastSeq = seq;
    HANDLERS[type]?.(draft, data, seq);
  }
  return draft.state;
}

export const reduce = (state, event) => reduceAll(state, [event]);

/** The stage to show: the requested one, else the running one, else the last with metrics. */
export function shownStage(state, requested = null) {
  if (requested && state.stages[requested]) return requested;
  const current = state.progress?.stage;
  if (current && state.stages[current]) return current;
  return state.order[state.order.length - 1] ?? null;
}

/** A sample as a trace for the viewer; its images are URLs on this server. */
export function traceOf(sample) {
  const imageOf = (image) => {
    if (!image) return null;
    return typeof image === 'string' ? { image_id: image, url: image } : { image_id: image.url, ...image };
  };
  const right = sample.rewards?.accuracy;
  const question = imageOf(sample.question_image);
  return {
    id: `sample-${sample.seq}`,
    status: 'completed',
    question: sample.question ?? '',
    images: question ? [question] : [],
    mode: 'auto',
    steps: (sample.steps ?? []).map((step, k) => ({ index: k + 1, text: step.text ?? '', image: imageOf(step.image) })),
    answer: sample.answer ?? null,
    finish_reason: null,
    verdict: typeof right === 'number' ? { answer: right >= 0.5 ? 'right' : 'wrong', drawings_total: 0 } : null,
    sampling: null,
  };
}
