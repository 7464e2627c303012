// The state of one trace as a plain value, and how events change it.
//
// Pure: no DOM, no network, no clock. `reduce` never changes its argument. Events are `{seq, type, data}` as sent by
// GET /v1/traces/{id}/events and must arrive in order. Duplicates change nothing; a missing event sets `gap`, and the
// caller continues from `lastSeq`.

import { TRACE_TERMINAL } from '../shared/contract.js';

export const TERMINAL = new Set(TRACE_TERMINAL);

export function initialState(traceId) {
  return {
    traceId,
    missing: null, // the id of a trace that this server does not have
    status: 'loading', // loading | queued | running | paused | completed | cancelled | failed | interrupted
    activity: null, // while running: reading | thinking | drawing | answering
    lastSeq: 0,
    gap: false,
    position: null, // number of traces ahead, while queued
    question: '',
    images: [],
    taskId: null,
    mode: 'auto',
    steps: [],
    pausedAfter: null,
    resumed: false, // it has been paused before
    answer: '',
    hasAnswer: false,
    finishReason: null,
    cancelReason: null,
    verdict: null,
    error: null,
    usage: null,
    timings: null,
    seed: null,
    sampling: null,
    verify: null, // {candidates, verifier}
    checkpoint: null,
    weightVersion: null,
    budget: null,
    tokens: 0, // codes and text deltas so far: an estimate until usage arrives
    createdAt: null,
    startedAt: null,
    parent: null, // {trace_id, after_step, edited_steps, group_id} of a branch
    groupId: null, // of samples that were asked for together
    rating: null, // 1 good, -1 bad
    tags: [],
    note: '',
    sample: null, // description of a job's sample; null for requested traces
  };
}

function emptyStep(index) {
  return {
    index,
    text: '',
    skill: null,
    image: null,
    partial: null,
    candidates: null, // {images, scores, chosen}, if a verifier has chosen the image
    complete: false,
    edited: false,
  };
}

function withStep(state, index, change) {
  const steps = state.steps.slice();
  const at = steps.findIndex((step) => step.index === index);
  const step = at < 0 ? emptyStep(index) : steps[at];
  const changed = { ...step, ...change(step) };
  if (at < 0) steps.push(changed);
  else steps[at] = changed;
  steps.sort((a, b) => a.index - b.index);
  return { ...state, steps };
}

function settle(state) {
  // an interrupted step keeps its text and its completed image; an incomplete image stays as last seen
  return { ...state, activity: null, position: null };
}

const HANDLERS = {
  'trace.queued': (state, data) => ({ ...state, status: 'queued', activity: null, position: data.position ?? null }),
  'trace.started': (state, data) => ({
    ...state,
    status: 'running',
    activity: state.steps.length ? 'thinking' : 'reading',
    position: null,
    seed: data.seed ?? state.seed,
    checkpoint: data.checkpoint ?? state.checkpoint,
    weightVersion: data.weight_version ?? state.weightVersion,
    budget: data.budget ?? state.budget,
  }),
  'trace.resumed': (state, data) => ({
    ...state,
    status: 'running',
    activity: 'thinking',
    position: null,
    pausedAfter: null,
    resumed: true,
    mode: data.mode ?? state.mode,
  }),
  'trace.paused': (state, data) => ({
    ...settle(state),
    status: 'paused',
    mode: 'step',
    pausedAfter: data.step ?? state.steps.length,
  }),
  // a step that a branch takes over from its parent
  'step.kept': (state, data) =>
    withStep(state, data.step, () => ({
      text: data.text,
      skill: data.image?.skill ?? null,
      image: data.image ?? null,
      partial: null,
      complete: true,
      edited: data.edited ?? false,
    })),
  'step.started': (state, data) =>
    withStep({ ...state, status: 'running', activity: 'thinking' }, data.step, () => ({})),
  'text.delta': (state, data) => ({
    ...withStep({ ...state, activity: 'thinking' }, data.step, (step) => ({ text: step.text + data.text })),
    tokens: state.tokens + 1,
  }),
  'image.started': (state, data) =>
    withStep({ ...state, activity: 'drawing' }, data.step, (step) => ({
      skill: data.skill ?? step.skill,
      partial: { url: null, index: -1, done: 0, total: 0 },
    })),
  'image.partial': (state, data) => {
    const before = state.steps.find((step) => step.index === data.step)?.partial;
    const fresh = Math.max(0, data.codes_done - (before?.done ?? 0));
    const changed = withStep({ ...state, activity: 'drawing' }, data.step, () => ({
      partial: {
        url: data.url ?? before?.url ?? null,
        index: data.index,
        done: data.codes_done,
        total: data.codes_total,
      },
    }));
    return { ...changed, tokens: state.tokens + fresh };
  },
  'image.candidates': (state, data) =>
    withStep(state, data.step, () => ({
      candidates: { images: data.images, scores: data.scores, chosen: data.chosen },
    })),
  'image.completed': (state, data) => {
    const before = state.steps.find((step) => step.index === data.step)?.partial;
    const total = data.stats?.codes ?? before?.total ?? 0;
    const changed = withStep({ ...state, activity: 'thinking' }, data.step, (step) => ({
      image: {
        image_id: data.image_id,
        url: data.url,
        width: data.width,
        height: data.height,
        stats: data.stats ?? null,
        skill: data.skill ?? step.skill,
      },
      partial: null,
    }));
    return { ...changed, tokens: state.tokens + Math.max(0, (Number(total) || 0) - (before?.done ?? 0)) };
  },
  'step.completed': (state, data) => withStep(state, data.step, () => ({ complete: true })),
  'answer.delta': (state, data) => ({
    ...state,
    activity: 'answering',
    hasAnswer: true,
    answer: state.answer + data.text,
    tokens: state.tokens + 1,
  }),
  'trace.completed': (state, data) => ({
    ...settle(state),
    status: 'completed',
    answer: data.answer ?? '',
    hasAnswer: data.answer !== null && data.answer !== undefined,
    finishReason: data.finish_reason ?? null,
    usage: data.usage ?? null,
    timings: data.timings ?? null,
  }),
  'trace.cancelled': (state, data) => ({
    ...settle(state),
    status: 'cancelled',
    cancelReason: data.reason ?? 'user',
    usage: data.usage ?? state.usage,
    timings: data.timings ?? state.timings,
  }),
  'trace.failed': (state, data) => ({
    ...settle(state),
    status: data.error?.code === 'interrupted' ? 'interrupted' : 'failed',
    error: data.error ?? { code: 'unknown', detail: '' },
  }),
};

/** The state after `event`. Unknown types only advance `lastSeq`, so that newer servers do not break older pages. */
export function reduce(state, event) {
  if (event.seq <= state.lastSeq) return state;
  if (event.seq !== state.lastSeq + 1) return { ...state, gap: true };
  const handler = HANDLERS[event.type];
  const next = handler ? handler(state, event.data) : state;
  return { ...next, lastSeq: event.seq, gap: false };
}

export const reduceAll = (state, events) => events.reduce(reduce, state);

/** Adds what only a trace's row contains: question, images, seed, verdict. */
export function withTrace(state, trace) {
  const next = {
    ...state,
    question: trace.question,
    images: trace.images ?? [],
    taskId: trace.task_id ?? null,
    verdict: trace.verdict ?? null,
    checkpoint: trace.checkpoint ?? state.checkpoint,
    weightVersion: trace.weight_version ?? state.weightVersion,
    sampling: trace.sampling ?? state.sampling,
    verify: trace.verify ?? state.verify,
    seed: trace.sampling?.seed ?? state.seed,
    createdAt: trace.created_at ?? null,
    startedAt: trace.started_at ?? null,
    usage: trace.usage ?? state.usage,
    timings: trace.timings ?? state.timings,
    parent: trace.parent ?? null,
    groupId: trace.group_id ?? null,
    rating: trace.rating ?? null,
    tags: trace.tags ?? [],
    note: trace.note ?? '',
  };
  if (state.lastSeq === 0) {
    next.mode = trace.mode ?? state.mode;
    if (!TERMINAL.has(trace.status)) next.status = trace.status;
  }
  return next;
}

/** The state from a trace's row alone: ended traces need no stream, live ones are shown before their events arrive. */
export function fromTrace(trace) {
  const state = withTrace(initialState(trace.id), trace);
  return {
    ...state,
    status: trace.status,
    steps: (trace.steps ?? []).map((step) => ({
      index: step.index,
      text: step.text ?? '',
      skill: step.image?.skill ?? null,
      image: step.image ?? null,
      partial: null,
      candidates: step.candidates ?? null,
      complete: true,
      edited: step.edited ?? false,
    })),
    pausedAfter: trace.status === 'paused' ? (trace.steps ?? []).length : null,
    answer: trace.answer ?? '',
    hasAnswer: trace.answer !== null && trace.answer !== undefined,
    finishReason: trace.finish_reason ?? null,
    error: trace.error ?? null,
    sample: trace.sample ?? null,
  };
}

export const isTerminal = (state) => TERMINAL.has(state.status);
export const isLive = (state) => state.status === 'queued' || state.status === 'running';

/** idle | running | paused | ended: determines the buttons. */
export function phaseOf(state) {
  if (!state || state.status === 'loading') return 'idle';
  if (isLive(state)) return 'running';
  return state.status === 'paused' ? 'paused' : 'ended';
}
