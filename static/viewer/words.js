// The words of the viewer: what the pill says, what is read aloud, what a picture's alternative text is.
// Pure functions of a state (state.js), so that they are tested without a browser.

export const SKILLS = {
  box: { word: 'box', drawn: 'box drawn' },
  zoom: { word: 'zoom', drawn: 'zoomed in' },
  line: { word: 'line', drawn: 'line drawn' },
  mark: { word: 'mark', drawn: 'marks set' },
  predict: { word: 'next state', drawn: 'next state drawn' },
};

/** A question as people read it: the place of an image is `[image k]`. */
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
        text: state.position > 0 ? `waiting (${state.position} before you)` : 'waiting (you are next)',
      };
    case 'running':
      if (state.activity === 'reading') return { tone: 'run', text: 'reading the picture' };
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
      return { tone: 'stop', text: state.cancelReason === 'disconnected' ? 'stopped: its reader left' : 'stopped' };
    case 'interrupted':
      return { tone: 'fail', text: 'interrupted' };
    default:
      return { tone: 'fail', text: 'failed' };
  }
}

/** Tokens a second so far, or null when there is nothing to say yet. */
export function rateOf(state, elapsedMs) {
  const tokens = state.usage?.completion_tokens ?? state.tokens;
  const total = state.timings?.total_ms;
  const ms = total ? total - (state.timings.queued_ms ?? 0) : elapsedMs;
  return tokens >= 8 && ms > 100 ? Math.round((tokens * 1000) / ms) : null;
}

/** The sentence that says what happened and what to do now; null when all is well. */
export function troubleOf(state) {
  const detail = state.error?.detail ? ` ${state.error.detail}` : '';
  if (state.sample) return state.hasAnswer ? null : 'It ended without an answer.';
  if (state.status === 'interrupted') {
    return `The server stopped while this trace ran.${detail} What it had drawn is kept; press Reason to ask again.`;
  }
  if (state.status === 'failed') {
    return `The model could not finish this trace.${detail} What it had drawn is kept; press Reason to try again.`;
  }
  if (state.status === 'cancelled' && !state.hasAnswer) {
    return 'Stopped before the answer. What was drawn is kept; press Reason to ask again.';
  }
  if (state.status === 'completed' && !state.hasAnswer) {
    return state.finishReason === 'length'
      ? 'The room for this trace ran out before the answer. Ask again with another seed or a shorter question.'
      : 'The model ended without an answer. Ask again with another seed.';
  }
  return null;
}

/** What a screen reader hears when `before` becomes `after`: status changes, completed steps, the answer. */
export function announcementOf(before, after) {
  const said = [];
  for (const step of after.steps) {
    const earlier = before.steps.find((one) => one.index === step.index);
    if (step.complete && !earlier?.complete) {
      said.push(`Step ${step.index}: ${step.text.trim() || 'a picture'}`);
    }
  }
  const changed = before.status !== after.status;
  if (changed && after.status === 'queued') said.push('Waiting.');
  if (changed && after.status === 'running' && !after.steps.length) said.push('Reading the picture.');
  if (changed && after.status === 'paused') said.push(`Paused after step ${after.pausedAfter}.`);
  if (changed && after.status === 'completed') {
    said.push(after.hasAnswer ? `The answer is ${after.answer.trim()}.` : 'Done, without an answer.');
  }
  if (changed && after.status === 'cancelled') said.push('Stopped.');
  if (changed && (after.status === 'failed' || after.status === 'interrupted')) said.push(troubleOf(after));
  return said.join(' ');
}

/** Alternative text of a step's picture. */
export function altOf(step) {
  const drawn = SKILLS[step.skill]?.drawn ?? 'picture drawn';
  const text = step.text.trim();
  return `Step ${step.index}, ${drawn}${text ? `: ${text}` : ''}`;
}

/** The verdict on a task of the world: `{tone, text}`, or null for a question that nobody can check here. */
export function verdictOf(state, reference = null) {
  if (state.status !== 'completed' || !state.hasAnswer) return null;
  if (!state.verdict) return state.taskId ? null : { tone: 'unchecked', text: 'not checked' };
  const { answer, drawings_right: right, drawings_total: total } = state.verdict;
  const drawings = total ? ` · ${right} of ${plural(total, 'drawing')} right` : '';
  const against = answer === 'wrong' && reference !== null ? ` (reference: ${reference})` : '';
  return { tone: answer, text: (answer === 'right' ? '✓ right' : '✗ wrong') + against + drawings };
}

/** The facts of a picture, as `[name, value]` rows. */
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
  return rows;
}

/** The curl line that asks this again. */
export function curlOf(origin, request) {
  const body = JSON.stringify(request).replaceAll("'", "'\\''");
  return `curl -s ${origin}/v1/traces -H 'Content-Type: application/json' -d '${body}'`;
}

/** The request that a trace was made from: the same tokens again on the same weights. */
export function requestOf(state) {
  const request = {
    question: state.question,
    images: state.images.map((image) => ({ image_id: image.image_id })),
    checkpoint: state.checkpoint,
    mode: 'auto',
  };
  if (state.taskId) request.task_id = state.taskId;
  const sampling = {};
  for (const [name, value] of Object.entries(state.sampling ?? {})) if (value !== null) sampling[name] = value;
  if (state.seed !== null) sampling.seed = state.seed;
  if (Object.keys(sampling).length) request.sampling = sampling;
  return request;
}
