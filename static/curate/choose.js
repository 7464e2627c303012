// What is selected, and what can be made of it. Pure, testable without a browser.

const LIVE = new Set(['queued', 'running']);
const MOST_IN_A_PAGE = 20; // as the server has it

/** The positions from one to another, in order; only the second without a first. */
export function rangeOf(from, to) {
  const begin = from ?? to;
  const [low, high] = begin < to ? [begin, to] : [to, begin];
  return Array.from({ length: high - low + 1 }, (_, k) => low + k);
}

/** Traces that have ended or are paused. */
export const exportable = (traces) => traces.filter(({ status }) => !LIVE.has(status));

/** Completed traces with an answer: PeSFT can train on them. */
export const trainable = (traces) => traces.filter(({ status, answer }) => status === 'completed' && Boolean(answer));

/**
 * Those of the trainable ones to train on unless the user decides otherwise: right or rated good, and not bad; with
 * images replaced to see what changes (`intervention`), only if rated good.
 */
export const worthTraining = (traces) =>
  trainable(traces).filter(
    ({ verdict, rating, intervention }) =>
      rating === 1 || (verdict?.answer === 'right' && rating !== -1 && !intervention),
  );

/** Why these traces cannot be exported in this format, or null. */
export function exportTrouble(traces, format) {
  if (!exportable(traces).length) return 'The selected traces are still running.';
  if (format === 'jsonl' && !trainable(traces).length) return 'None of the selected traces has an answer to train on.';
  if (format === 'html' && exportable(traces).length > MOST_IN_A_PAGE) {
    return `A page holds at most ${MOST_IN_A_PAGE} traces. Choose zip for more.`;
  }
  return null;
}

/** `2 traces were left out.`, or nothing. */
export function skippedWords(count) {
  if (!count) return '';
  return count === 1 ? '1 trace was left out.' : `${count} traces were left out.`;
}

/** The Training page with a job on these traces; the fragment stays in the browser, however long it is. */
export const trainingAddress = (traceIds) => `/training#traces=${traceIds.join(',')}`;

/** The trace ids in the fragment of the Training page's address. */
export function tracesInAddress(hash) {
  const found = /^#traces=([\w,]+)$/.exec(hash);
  return found ? found[1].split(',').filter(Boolean) : [];
}

/** The tags with one more, as the server keeps them: without white space around it, each once, sorted. */
export function withTag(tags, text) {
  const tag = text.trim();
  return tag && !tags.includes(tag) ? [...tags, tag].sort() : tags;
}
