// Texts of the viewer: status pill, screen reader announcements, alternative texts.
// Pure functions of a state (state.js), testable without a browser.

import { isTerminal } from '../viewer/state.js';

export const SKILLS = {
  box: { word: 'box', drawn: 'box drawn' },
  zoom: { word: 'zoom', drawn: 'zoomed in' },
  line: { word: 'line', drawn: 'line drawn' },
  mark: { word: 'mark', drawn: 'mark drawn' },
  predict: { word: 'next state', drawn: 'next state drawn' },
};

/** A question in readable form: image references become `[image k]`. */
export const readQuestion = (text) => text.replace(/<image_(\d+)>/g, '[image $1]');

export const seconds = (ms) => (ms < 9950 ? (ms / 1000).toFixed(1) : String(Math.round(ms / 1000))) + ' s';

const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`;

/** `{tone, text, live}` of the status pill. tone: wait | run | pause | done | stop | fail. */
export function pillOf(state) {
  const last = state.steps[state.steps.length - 1];
  if (state.sample) return { tone: 'done', text: state.sample };
  switch (state.status) {
    case 'idle':
      return { tone: 'idle', text: 'ready' };
    case 'loading':
      return { tone: 'wait', text: 'opening the trace' };
    case 'queued':
      return {
        tone: 'wait',
        text: state.position > 0 ? `waiting (${state.position} ahead)` : 'waiting (next in line)',
      };
    case 'running':
      if (state.activity === 'reading') return { tone: 'run', text: 'reading the image' };
      if (state.activity === 'answering') return { tone: 'run', text: 'answering' };
      if (state.activity === 'drawing' && last) {
        const { done = 0, total = 0 } = last.partial ?? {};
        return { tone: 'run', text: `drawing step ${last.index}`, count: total ? `${done}/${total} codes` : '' };
      }
      return { tone: 'run', text: last ? `thinking, step ${last.complete ? last.index + 1 : last.index}` : 'thinking' };
    case 'paused':
      return { tone: 'pause', text: `paused after step ${state.pausedAfter ?? state.steps.length}` };
    case 'completed':
      return { tone: 'done', text: state.timings?.total_ms ? `done in ${seconds(state.timings.total_ms)}` : 'done' };
    case 'cancelled':
      return { tone: 'stop', text: 'stopped' };
    case 'interrupted':
      return { tone: 'fail', text: 'interrupted' };
    default:
      return { tone: 'fail', text: 'failed' };
  }
}

/** Tokens per second so far, or null if unknown; `elapsedMs`: run time without pauses. */
export function rateOf(state, elapsedMs) {
  const tokens = state.usage?.completion_tokens ?? state.tokens;
  const total = isTerminal(state) ? state.timings?.total_ms : null; // of a paused trace: until its last pause
  const ms = total ? total - (state.timings.queued_ms ?? 0) : elapsedMs;
  return tokens >= 8 && ms !== null && ms > 100 ? Math.round((tokens * 1000) / ms) : null;
}

/** The run time of a trace as far as this page knows it, without pauses. */
export class Stopwatch {
  #ms = 0;
  #since = null; // start of the current run
  #known = true;

  /** now: a steady clock in ms. wall: the time of day in ms since the epoch. */
  constructor({ now = () => performance.now(), wall = () => Date.now() } = {}) {
    this.now = now;
    this.wall = wall;
  }

  get running() {
    return this.#since !== null;
  }

  /** ms, or null if the page was opened too late to know. */
  get elapsed() {
    if (!this.#known) return null;
    return this.#ms + (this.running ? this.now() - this.#since : 0);
  }

  follow(state) {
    if (state.status === 'running') {
      if (!this.running) this.#start(state);
      if (state.resumed && this.#ms === 0) this.#known = false; // paused before the page was opened
    } else if (state.status === 'paused' || state.status === 'queued') {
      const { total_ms: total, queued_ms: queued } = state.timings ?? {};
      this.#ms = this.elapsed || (total ? total - (queued ?? 0) : 0);
      this.#since = null;
    } else {
      this.#ms = 0;
      this.#since = null;
    }
  }

  // the server's clock may differ: count from what was seen, unless the page was opened later
  #start({ startedAt, resumed }) {
    const before = startedAt && !resumed && this.#ms === 0 ? this.wall() - Date.parse(startedAt) : 0;
    this.#since = this.now() - (before > 0 && before < 3_600_000 ? before : 0);
  }
}

const ASK_AGAIN = 'press Reason to ask again';
const INSTEAD = {
  prompt_too_long: 'shorten the question',
  bad_image: 'choose another image',
  unknown_checkpoint: 'choose another checkpoint',
  weights_gone: 'choose another checkpoint',
};
const ADVICE = /[;,.]?\s+(?:please\s+)?(?:(?:ask|try|send)\b[^;.]*\bagain\b|retry\b).*$/i; // replaced by the page's own

/** A server's reason as one sentence, without trailing advice. */
function reasonOf(error) {
  const text = (error?.detail ?? '')
    .trim()
    .replace(ADVICE, '')
    .replace(/[.;,:\s]+$/, '');
  return text ? ` ${text[0].toUpperCase()}${text.slice(1)}.` : '';
}

/**
 * What happened and what to do now; null if all is well. `again`: how to ask again on this page.
 */
export function troubleOf(state, again = ASK_AGAIN) {
  if (state.sample) return state.hasAnswer ? null : 'The trace ended without an answer.';
  const kept = (what) =>
    state.steps.length ? `The steps so far are kept: ${what}.` : `${what[0].toUpperCase()}${what.slice(1)}.`;
  if (state.status === 'interrupted') return `The server stopped before this trace finished. ${kept(again)}`;
  if (state.status === 'failed') {
    return (
      `The model failed to finish this trace.${reasonOf(state.error)} ` + kept(INSTEAD[state.error?.code] ?? again)
    );
  }
  if (state.status === 'cancelled' && !state.hasAnswer) {
    const why =
      state.cancelReason === 'disconnected' ? 'Stopped because all readers had left.' : 'Stopped before the answer.';
    return `${why} ${kept(again)}`;
  }
  if (state.status === 'completed' && !state.hasAnswer) {
    return state.finishReason === 'length'
      ? 'The trace reached its length limit before the answer. Ask again with another seed or a shorter question.'
      : 'The model ended without an answer. Ask again with another seed.';
  }
  return null;
}

/** The screen reader announcement for the change from `before` to `after`: status, completed steps, answer. */
export function announcementOf(before, after, again = ASK_AGAIN) {
  const said = [];
  for (const step of after.steps) {
    const earlier = before.steps.find((one) => one.index === step.index);
    if (step.complete && !earlier?.complete) {
      said.push(`Step ${step.index}: ${step.text.trim() || 'an image'}`);
    }
  }
  const changed = before.status !== after.status;
  if (changed && after.status === 'queued') said.push('Waiting.');
  if (changed && after.status === 'running' && !after.steps.length) said.push('Reading the image.');
  if (changed && after.status === 'paused') said.push(`Paused after step ${after.pausedAfter}.`);
  if (changed && after.status === 'completed') {
    said.push(after.hasAnswer ? `The answer is ${after.answer.trim()}.` : 'Done, without an answer.');
  }
  if (changed && after.status === 'cancelled') said.push('Stopped.');
  if (changed && (after.status === 'failed' || after.status === 'interrupted')) said.push(troubleOf(after, again));
  return said.join(' ');
}

/** Alternative text of a step's image. */
export function altOf(step) {
  const drawn = SKILLS[step.skill]?.drawn ?? 'image drawn';
  const text = step.text.trim();
  return `Step ${step.index}, ${drawn}${text ? `: ${text}` : ''}`;
}

/** The verdict on a task of the world: `{tone, text}`, or null for questions that cannot be checked. */
export function verdictOf(state, reference = null) {
  if (state.status !== 'completed' || !state.hasAnswer) return null;
  if (!state.verdict) return state.taskId ? null : { tone: 'unchecked', text: 'not checked' };
  const { answer, drawings_right: right, drawings_total: total } = state.verdict;
  const drawings = total ? ` · ${right} of ${plural(total, 'drawing')} right` : '';
  const against = answer === 'wrong' && reference !== null ? ` (reference: ${reference})` : '';
  return { tone: answer, text: (answer === 'right' ? '✓ right' : '✗ wrong') + against + drawings };
}

/** The facts of an image as `[name, value]` rows. */
export function factsOf(step) {
  const stats = step.image?.stats;
  const rows = [];
  if (step.image?.width) rows.push(['size', `${step.image.width} × ${step.image.height} px`]);
  if (!stats) return rows;
  const number = (value) => (typeof value === 'number' ? value.toFixed(3) : String(value));
  if (stats.codes !== undefined) rows.push(['codes', String(stats.codes)]);
  if (stats.flatness !== undefined && stats.flatness !== null) rows.push(['flatness', number(stats.flatness)]);
  if (stats.tv !== undefined && stats.tv !== null) rows.push(['TV score', number(stats.tv)]);
  if (stats.perception_reward !== undefined && stats.perception_reward !== null) {
    rows.push(['perception reward', number(stats.perception_reward)]);
  }
  if (stats.passes) rows.push(['passes', String(stats.passes)]);
  return rows;
}

/** The curl command that repeats the request. */
export function curlOf(origin, request) {
  const body = JSON.stringify(request).replaceAll("'", "'\\''");
  return `curl -s ${origin}/v1/traces -H 'Content-Type: application/json' -d '${body}'`;
}
