// Numbers of the chart of many runs: smoothing, ranges, ticks, labels. Pure functions, testable without a browser.
//
// A series is `{steps, values}`; a null value was not finite and interrupts its line.

import { ticksOf } from '../shared/series.js';

export const COLOURS = 8;
export const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3]];
export const MOST_RUNS = 50; // in one chart

/** The colour and the dashes of the k-th run of a chart: no two of the first 32 are alike. */
export const lookOf = (k) => ({ colour: k % COLOURS, dash: DASHES[Math.floor(k / COLOURS) % DASHES.length] });

/** An exponential moving average without a bias towards its start; null stays null. `weight` in 0 … 1. */
export function smoothed(values, weight) {
  if (!(weight > 0)) return values;
  let mean = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

/** The first position whose step is at least `step`. */
export function from(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The position of the step nearest to `step`; -1 in an empty series. */
export function nearest(steps, step) {
  const at = from(steps, step);
  if (at === steps.length) return at - 1;
  return at > 0 && step - steps[at - 1] <= steps[at] - step ? at - 1 : at;
}

/** The position of the step nearest to `step`; -1 if `step` lies before or after the whole series. */
export function nearestWithin(steps, step) {
  return steps.length && steps[0] <= step && step <= steps[steps.length - 1] ? nearest(steps, step) : -1;
}

/** `[first, last]` of all steps; [0, 1] without any. */
export function stepRange(many) {
  const ends = many.filter(({ steps }) => steps.length).map(({ steps }) => [steps[0], steps[steps.length - 1]]);
  if (!ends.length) return [0, 1];
  const [low, high] = [Math.min(...ends.map(([a]) => a)), Math.max(...ends.map(([, b]) => b))];
  return low < high ? [low, high] : [low, low + 1];
}

/** `[low, high]` of the values between two steps, with some room; with `log` of the positive ones only. */
export function valueRange(many, [first, last], log = false) {
  let [low, high] = [Infinity, -Infinity];
  for (const { steps, values } of many) {
    for (let k = Math.max(0, from(steps, first) - 1); k < steps.length; k += 1) {
      const value = values[k];
      if (value !== null && (!log || value > 0)) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
      if (steps[k] > last) break;
    }
  }
  if (!(low <= high)) return log ? [0.1, 1] : [0, 1];
  if (log) return low < high ? [low / 1.1, high * 1.1] : [low / 2, high * 2];
  const room = (high - low) * 0.04 || Math.abs(low) * 0.1 || 0.5;
  return [low - room, high + room];
}

/** Round numbers for an axis; with `log` powers of ten and, if there are few, their doubles and fives. */
export function axisTicks([low, high], count, log = false) {
  if (!log) return ticksOf(low, high, count);
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) powers.push(power);
  const parts = powers.length > 3 ? [1] : [1, 2, 5];
  const every = Math.ceil(powers.length / (count + 2));
  return powers
    .filter((_, k) => k % every === 0)
    .flatMap((power) => parts.map((part) => Number((part * 10 ** power).toPrecision(3))))
    .filter((tick) => tick >= low && tick <= high);
}

/** The view `[first, last]` after a zoom by `factor` around `centre`, within `all` and at least one step wide. */
export function zoomedView([first, last], centre, factor, all) {
  const width = Math.min(all[1] - all[0], Math.max(1, (last - first) * factor));
  const share = (centre - first) / (last - first || 1);
  return movedView([centre - share * width, centre + (1 - share) * width], 0, all);
}

/** The view moved by `by` steps, within `all`. */
export function movedView([first, last], by, all) {
  const width = Math.min(last - first, all[1] - all[0]);
  const start = Math.min(Math.max(first + by, all[0]), all[1] - width);
  return [start, start + width];
}

/** The next recorded step after `step` (before it, if `by` is negative); itself at the end. */
export function nextStep(many, step, by) {
  let best = null;
  for (const { steps } of many) {
    const at = by > 0 ? from(steps, step + 1) : from(steps, step) - 1;
    const found = steps[at];
    if (found !== undefined && (best === null || (by > 0 ? found < best : found > best))) best = found;
  }
  return best ?? step;
}

/** Whether less of this metric is better. */
export const lessIsBetter = (key) => /loss|kl|error|blank|grad|dropped|_s$|entropy/.test(key);

/** A run's label; runs of one name get the end of their id. */
export function labelsOf(jobs, methods) {
  const plain = (job) => job.name ?? `${methods[job.method] ?? job.method} from ${job.spec?.base_checkpoint ?? '?'}`;
  const counts = new Map();
  for (const job of jobs) counts.set(plain(job), (counts.get(plain(job)) ?? 0) + 1);
  return new Map(
    jobs.map((job) => [job.id, counts.get(plain(job)) > 1 ? `${plain(job)} · ${job.id.slice(-4)}` : plain(job)]),
  );
}

const COMPARE = new Intl.Collator('en', { numeric: true });

/** A copy in order; missing values come last in both directions. `of(row)` is a number, a text or null. */
export function sorted(rows, of, descending) {
  const sign = descending ? -1 : 1;
  const missing = (value) => value === null || value === undefined || value === '';
  return rows.toSorted((a, b) => {
    const [x, y] = [of(a), of(b)];
    if (missing(x) || missing(y)) return Number(missing(x)) - Number(missing(y));
    return sign * (typeof x === 'number' && typeof y === 'number' ? x - y : COMPARE.compare(String(x), String(y)));
  });
}
