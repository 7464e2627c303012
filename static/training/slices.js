// Accuracy by slice as bars with their 95 % intervals. Pure, except for building elements.

import { h } from '../shared/dom.js';

const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** `[{name, value, low, high, tasks, inner}]` of a benchmark's summary: overall first, groups below their slice. */
export function slicesOf(summary) {
  const names = Object.keys(summary ?? {}).filter((name) => Array.isArray(summary[name]?.accuracy_ci95));
  const order = ['all', ...names.filter((name) => name !== 'all').sort()].filter((name) => names.includes(name));
  return order
    .filter((name) => typeof summary[name].accuracy === 'number')
    .map((name) => {
      const [low, high] = summary[name].accuracy_ci95;
      const label = name === 'all' ? 'all questions' : name.split('/').pop();
      return {
        name: label,
        inner: name.includes('/'),
        value: summary[name].accuracy,
        low,
        high,
        tasks: summary[name].tasks,
      };
    });
}

function bar({ name, value, low, high, tasks, inner }) {
  const range = `${percent(low)} to ${percent(high)}`;
  const label = `${name}: ${percent(value)} of ${tasks.toLocaleString('en')}, 95 % interval ${range}`;
  return h(
    'li',
    { class: inner ? 'or-slice or-slice-inner' : 'or-slice', title: label },
    h('span', { class: 'or-slice-name' }, name),
    h(
      'span',
      { class: 'or-slice-track', role: 'img', 'aria-label': label },
      h('span', { class: 'or-slice-bar', style: `width:${100 * value}%` }),
      h('span', { class: 'or-slice-range', style: `left:${100 * low}%;width:${Math.max(0.4, 100 * (high - low))}%` }),
    ),
    h('span', { class: 'or-num' }, percent(value)),
    h('span', { class: 'or-num or-quiet or-slice-tasks' }, `of ${tasks.toLocaleString('en')}`),
  );
}

/** A figure of a benchmark's summary; null without accuracies. */
export function slicesFigure(summary) {
  const slices = slicesOf(summary);
  if (!slices.length) return null;
  return h(
    'figure',
    { class: 'or-slices' },
    h('figcaption', {}, 'Accuracy by slice', h('span', { class: 'or-quiet' }, ' with its 95 % interval')),
    h('ul', {}, slices.map(bar)),
  );
}
