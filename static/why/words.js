// What the measures say, in plain words. Pure, for tests.

import { stepsIn } from '../branches/layout.js';
import { UNSURE, isNothing } from './scale.js';

export const REPLACEMENTS = {
  previous: { choice: 'the image before it', cell: 'the image before' },
  blank: { choice: 'a blank image', cell: 'a blank image' },
  other: { choice: 'an unrelated image', cell: 'an unrelated image' },
  reference: { choice: 'the reference image', cell: 'the reference image' },
  question: { choice: 'the question’s image', cell: 'the question’s image' },
  none: { choice: 'nothing (control)', cell: 'nothing (control)' },
};
export const MOST_MEMBERS = 64;

const percent = (value) => `${Math.round(value)}\u00a0%`; // never at the end of a line without its sign
const round = (value) => value.toLocaleString('en', { maximumFractionDigits: value < 10 ? 1 : 0 });

/** `−0.12 nats`, with as many digits as it deserves. */
export function natsOf(value) {
  const size = Math.abs(value);
  const digits = size < 10 ? 2 : size < 100 ? 1 : 0;
  const text = size.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${value < 0 && !isNothing(value) ? '−' : ''}${text} nats`;
}

/** `percent` of a log-probability. */
export function percentOf(logprob) {
  const value = 100 * Math.exp(logprob);
  if (value > 99.5) return `over ${percent(99)}`;
  return value < 0.5 ? `under ${percent(1)}` : percent(value);
}

/** `54 %` of a share; never 0 for something. */
export const shareOf = (share) => (share > 0 && share < 0.005 ? `under ${percent(1)}` : percent(100 * share));

/** `question image`, `question image 2` or `step 3`: where each image is. */
export function placesOf(images) {
  const several = images.filter((image) => image.step === 0).length > 1;
  return images.map(({ step }, k) => (step ? `step ${step}` : `question image${several ? ` ${k + 1}` : ''}`));
}

const named = (place) => (place.startsWith('question') ? `the ${place}` : place);

/** How likely the answer becomes when an image is hidden: `30 times less likely`. */
export function changeOf(reliance) {
  if (isNothing(reliance)) return 'no difference';
  const word = reliance > 0 ? 'less' : 'more';
  const factor = Math.exp(Math.abs(reliance));
  if (factor > 1000) return `over 1,000 times ${word} likely`;
  if (factor >= 2) return `${round(factor)} times ${word} likely`;
  const share = reliance > 0 ? 1 - 1 / factor : factor - 1;
  return `${percent(Math.max(1, 100 * share))} ${word} likely`;
}

const hiding = (reliance) =>
  isNothing(reliance) ? 'hiding it makes no difference' : `hiding it makes the answer ${changeOf(reliance)}`;

/** One sentence for an image's reliance. */
export const relianceOf = (place, reliance) => `Reliance on ${named(place)}: ${natsOf(reliance)}; ${hiding(reliance)}.`;

/** What all of them say together. */
export function summaryOf(images) {
  if (!images.length) return 'This trace has no images.';
  const places = placesOf(images);
  const most = images.reduce((best, image, k) => (image.reliance > images[best].reliance ? k : best), 0);
  if (images[most].reliance < 0 || isNothing(images[most].reliance)) {
    return 'The answer does not rely on any single image: each can be hidden alone.';
  }
  return `The answer relies most on ${named(places[most])}: ${hiding(images[most].reliance)}.`;
}

// ---- interventions

const shown = (answer) => (answer === null ? 'no answer' : answer.trim() || '(empty)');

/** The rows of an intervention's table, from the group's JSON; `steps` are the viewer's, of the trace itself. */
export function rowsOf(group, steps) {
  const { effects } = group;
  const chance = new Set(effects.filter((one) => one.with === 'none' && one.changed).map((one) => one.step));
  return effects.map((one) => {
    const status = one.changed === null ? (group.status === 'completed' ? 'stopped' : 'running') : null;
    const later = steps.some((step) => step.index > one.step && step.image);
    return {
      traceId: one.trace_id,
      step: one.step,
      replacedBy: REPLACEMENTS[one.with]?.cell ?? one.with,
      control: one.with === 'none',
      status: status ?? (one.changed ? 'changed' : 'same'),
      before: shown(one.answer_before),
      after: status ? null : shown(one.answer_after),
      verdict: status ? null : one.verdict_after,
      chance: one.changed === true && one.with !== 'none' && chance.has(one.step),
      later: status ? '' : laterOf(one.later_images_changed, later),
    };
  });
}

function laterOf(count, expected) {
  if (!count) return expected ? 'unchanged' : 'none';
  return `${count} changed`;
}

const times = (count, all, subject) => {
  if (all === 1) return count ? `The ${subject} changes the answer.` : `The ${subject} does not change the answer.`;
  if (count === 0) return `None of the ${all} ${subject}s changes the answer.`;
  return `${count} of ${all} ${subject}s ${count === 1 ? 'changes' : 'change'} the answer.`;
};

/** `3 of 4 replacements change the answer.`, and what the control says. */
export function tallyOf(rows) {
  const ended = (row) => row.status === 'changed' || row.status === 'same';
  const count = (some) => some.filter((row) => row.status === 'changed').length;
  const replaced = rows.filter((row) => !row.control && ended(row));
  const controls = rows.filter((row) => row.control && ended(row));
  const running = rows.filter((row) => row.status === 'running').length;
  const said = [];
  if (running) said.push(`${rows.length - running} of ${rows.length} done.`);
  if (replaced.length) said.push(times(count(replaced), replaced.length, 'replacement'));
  if (controls.length && !running) {
    said.push(
      count(controls)
        ? `With nothing replaced, the answer also changes in ${count(controls)} of ${controls.length}: there the image is not the reason.`
        : 'With nothing replaced, the answer stays the same.',
    );
  }
  if (!said.length && rows.length) said.push('Stopped before any replacement had an answer.');
  return said.join(' ');
}

/** Why something was not replaced, as sentences. */
export const skippedOf = (group) =>
  (group.skipped ?? []).map(
    (one) => `Step ${one.step}, ${REPLACEMENTS[one.with]?.cell ?? one.with}: ${one.reason.replace(/[.\s]*$/, '')}.`,
  );

// ---- likelihood

/** `{count, unsure, given, least: {row, column, logprob}}` of an image's codes; null without a grid. */
export function codesOf(grid) {
  if (!grid) return null;
  let least = null;
  let [count, unsure, given] = [0, 0, 0];
  grid.forEach((line, row) =>
    line.forEach((logprob, column) => {
      count += 1;
      if (logprob === null) given += 1;
      else {
        if (Math.exp(logprob) < UNSURE) unsure += 1;
        if (!least || logprob < least.logprob) least = { row: row + 1, column: column + 1, logprob };
      }
    }),
  );
  return { count, unsure, given, least };
}

/** The codes of the image of a step, in a sentence. */
export function codeWordsOf(step, grid) {
  if (step === 0) return 'The question’s image is given: the model did not write it.';
  const found = codesOf(grid);
  if (!found) return `Step ${step} has no image.`;
  const { count, unsure, given, least } = found;
  if (!least) return `The image of step ${step} was given, so it has no likelihoods.`;
  const some = given ? `${given} of the ${count} codes were given. ` : '';
  return (
    `Image of step ${step}: ${unsure} of ${count} codes were under ${percent(100 * UNSURE)}. ` +
    `${some}The least likely, in row ${least.row}, column ${least.column}, had ${percentOf(least.logprob)}.`
  );
}

/** The least likely words of a trace, `[{place, text, logprob}]`; `parts` are `{place, pieces}`. */
export function leastLikely(parts, most = 5) {
  const all = parts.flatMap(({ place, pieces }) =>
    pieces.filter(({ logprob }) => typeof logprob === 'number').map((piece) => ({ place, ...piece })),
  );
  return all
    .filter(({ logprob }) => !percentOf(logprob).startsWith('over'))
    .sort((one, other) => one.logprob - other.logprob)
    .slice(0, most)
    .map(({ place, text, logprob }) => ({ place, text: text.trim(), logprob }));
}

/** The parts whose words were given, in a sentence; empty without any. */
export function givenOf(tokens) {
  const given = tokens.steps.filter((step) => step.tokens.every((token) => token.logprob === null));
  if (!given.length) return '';
  return `Given, not written by the model here: ${stepsIn(given.map((step) => step.index))}.`;
}

// ---- attention

/** Where the attention goes, as one sentence. */
export function attentionOf(from, images) {
  const places = placesOf(images);
  const parts = images.map((image, k) => `${shareOf(image.share)} to ${named(places[k])}`);
  const rest = 1 - images.reduce((sum, image) => sum + image.share, 0);
  return `Attention of ${from}: ${[...parts, `${shareOf(Math.max(0, rest))} to words`].join(', ')}.`;
}
