// Values over steps in bounded memory: a hundred thousand steps cost no more than five hundred.
//
// Pure. A series is `{width, points}`; a point covers `width` steps and is `{step, last, sum, count, low, high}`. When
// there are too many points, the width doubles and neighbours are merged: the mean stays exact, and low and high keep
// the extremes. A repeated step (of a job resumed from an older checkpoint) replaces all later points.

export const LIMIT = 480;

export const emptySeries = () => ({ width: 1, points: [] });

export const meanOf = (point) => point.sum / point.count;

const merged = (a, b) => ({
  step: a.step,
  last: b.last,
  sum: a.sum + b.sum,
  count: a.count + b.count,
  low: Math.min(a.low, b.low),
  high: Math.max(a.high, b.high),
});

/** Adds a value in place: `series` must be the caller's own copy (points are replaced, never changed). */
export function push(series, step, value) {
  const { points } = series;
  while (points.length && points[points.length - 1].last >= step) points.pop();
  const point = { step, last: step, sum: value, count: 1, low: value, high: value };
  const newest = points[points.length - 1];
  const bucket = (at) => Math.floor(at / series.width);
  if (newest && bucket(newest.step) === bucket(step)) points[points.length - 1] = merged(newest, point);
  else points.push(point);
  while (series.points.length > LIMIT) widen(series);
}

function widen(series) {
  series.width *= 2;
  const kept = [];
  for (const point of series.points) {
    const before = kept[kept.length - 1];
    if (before && Math.floor(before.step / series.width) === Math.floor(point.step / series.width)) {
      kept[kept.length - 1] = merged(before, point);
    } else kept.push(point);
  }
  series.points = kept;
}

/** The point nearest to `step`, or null. */
export function nearest(series, step) {
  let best = null;
  for (const point of series?.points ?? []) {
    if (best === null || Math.abs(point.last - step) < Math.abs(best.last - step)) best = point;
  }
  return best;
}

/** All steps at which any of `many` series has a point, in order and unique. */
export const stepsOf = (many) =>
  [...new Set(many.flatMap((series) => series.points.map((point) => point.last)))].sort((a, b) => a - b);

// ---- axes

/** About `count` round numbers from low to high; a flat range gets one around it. */
export function ticksOf(low, high, count = 4) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const unit = [1, 2, 2.5, 5, 10].find((one) => one * power >= raw * 0.999) * power;
  const ticks = [];
  for (let k = Math.ceil(low / unit - 1e-9); k * unit <= high + unit * 1e-9; k += 1)
    ticks.push(Number((k * unit).toPrecision(12)));
  return ticks;
}

/** The plotted range `[low, high]`, widened to round numbers; `within` = a fixed range such as [0, 1]. */
export function rangeOf(many, { within = null, zero = false } = {}) {
  if (within) return within;
  let low = Infinity;
  let high = -Infinity;
  for (const { points } of many) {
    for (const point of points) {
      low = Math.min(low, point.low);
      high = Math.max(high, point.high);
    }
  }
  if (!(low <= high)) return [0, 1];
  if (zero) low = Math.min(0, low);
  if (low === high) {
    const room = Math.abs(low) * 0.1 || 0.5;
    return zero && low === 0 ? [0, room * 2] : [low - room, high + room];
  }
  const ticks = ticksOf(low, high);
  const unit = ticks.length > 1 ? ticks[1] - ticks[0] : high - low;
  return [Math.floor(low / unit + 1e-9) * unit, Math.ceil(high / unit - 1e-9) * unit];
}

/** Series further apart than this factor get a logarithmic axis. */
const FAR_APART = 25;

export function wantsLog(many) {
  const means = many.flatMap((series) => series.points.map(meanOf));
  if (means.length < 2 || means.some((value) => !(value > 0))) return false;
  return means.reduce((a, b) => Math.max(a, b)) / means.reduce((a, b) => Math.min(a, b)) > FAR_APART;
}

/** A number in short form for labels: 0.031, 1.2e-5, 4,096. */
export function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  if (!Number.isFinite(value)) return value > 0 ? '∞' : '−∞';
  const size = Math.abs(value);
  if (size === 0) return '0';
  if (size < 1e-3) return value.toExponential(1).replace('e-', 'e−').replace(/^-/, '−');
  if (size >= 1e6) return `${short(value / 1e6)} M`;
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return Number(value.toFixed(digits)).toLocaleString('en').replace('-', '−');
}
