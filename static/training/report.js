// A job's reports: tables of numbers, histograms, contact sheet of images, files.
//
// A report is a JSON object whose shape depends on its stage; this module renders any by the shape of its values.

import { h, openDialog } from '../shared/dom.js';
import { short } from '../shared/series.js';
import { slicesFigure } from './slices.js';

const TITLES = {
  bootstrapping: 'Bootstrapping',
  benchmark: 'Benchmark',
  comparison: 'Paired comparison',
  data: 'Data',
};
const words = (key) => key.replaceAll('_', ' ').replaceAll('/', ' · ').replace('ci95', '95 % interval');

const isRecord = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);
const isPair = (value) => Array.isArray(value) && value.length === 2 && value.every((one) => typeof one === 'number');
const isInterval = (name, value) => isPair(value) && /ci95|interval/.test(name);
const isPlain = (value) => isPair(value) || (typeof value !== 'object' && value !== undefined);
const isHistogram = (value) => isRecord(value) && Array.isArray(value.counts) && Array.isArray(value.edges);
const isTable = (value) =>
  isRecord(value) &&
  Object.values(value).some(isRecord) &&
  Object.values(value).every((row) => isRecord(row) && !isHistogram(row));
const isImage = (value) => typeof value === 'string' && /^\/v1\/.*\.png$/.test(value);
const isFile = (value) => typeof value === 'string' && /^[\w./-]+\.(jsonl|json|txt|csv)$/.test(value);

/** Groups a report's values by presentation: `{facts: [[name, value]], tables, histograms, images}` (pure). */
export function sorted(report) {
  const parts = { facts: [], tables: [], histograms: [], images: [] };
  const take = (record, prefix) => {
    for (const [key, value] of Object.entries(record)) {
      const name = prefix ? `${prefix}, ${words(key)}` : words(key);
      if (value === null || value === undefined) continue;
      if (isImage(value)) parts.images.push([name, value]);
      else if (isPlain(value)) parts.facts.push([name, value]);
      else if (isHistogram(value)) {
        const { counts, edges, ...rest } = value;
        if (counts.length) parts.histograms.push([name, { counts, edges }]);
        take(rest, name);
      } else if (isTable(value)) parts.tables.push([name, value]);
      else if (isRecord(value)) take(value, name);
    }
  };
  const { kind: _kind, time: _time, stage: _stage, ...rest } = report;
  take(rest, '');
  return parts;
}

/** The text of two numbers: a range if the name says interval, else a list. */
export const pairText = (name, [first, second]) =>
  isInterval(name, [first, second]) ? `${short(first)} – ${short(second)}` : `${short(first)}, ${short(second)}`;

function valueOf(name, value, fileUrl) {
  if (typeof value === 'number') return h('span', { class: 'or-num' }, short(value));
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (isPair(value)) return h('span', { class: 'or-num' }, pairText(name, value));
  if (isFile(value)) return h('a', { class: 'or-link', href: fileUrl(value), download: '' }, value.split('/').pop());
  return String(value);
}

function figure([name, url]) {
  const image = () => h('img', { src: url, alt: name });
  const open = () => openDialog(name, h('h2', {}, name), image()).classList.add('or-wide');
  return h(
    'button',
    { type: 'button', class: 'or-report-picture', 'aria-label': `Open the ${name}`, onclick: open },
    image(),
  );
}

function table([name, rows], title, fileUrl) {
  const columns = [
    ...new Set(Object.values(rows).flatMap((row) => Object.keys(row).filter((key) => isPlain(row[key])))),
  ];
  return [
    h('h4', {}, name),
    h(
      'div',
      { class: 'or-scroll', tabindex: '0', role: 'region', 'aria-label': `${title}, ${name}` },
      h(
        'table',
        { class: 'or-table' },
        h(
          'thead',
          {},
          h(
            'tr',
            {},
            h('td'),
            columns.map((one) => h('th', { scope: 'col' }, words(one))),
          ),
        ),
        h(
          'tbody',
          {},
          Object.entries(rows).map(([row, value]) =>
            h(
              'tr',
              {},
              h('th', { scope: 'row' }, words(row)),
              columns.map((one) => h('td', {}, isPlain(value[one]) ? valueOf(one, value[one], fileUrl) : '–')),
            ),
          ),
        ),
      ),
    ),
  ];
}

function histogram([name, { counts, edges }]) {
  const most = counts.reduce((a, b) => Math.max(a, b), 1);
  const total = counts.reduce((a, b) => a + b, 0);
  const peak = counts.indexOf(most);
  const label = `${name}: ${total} values from ${short(edges[0])} to ${short(edges[edges.length - 1])}, most between ${short(edges[peak])} and ${short(edges[peak + 1])}`;
  return h(
    'figure',
    { class: 'or-histogram', role: 'img', 'aria-label': label },
    h('figcaption', {}, name),
    h(
      'div',
      { class: 'or-histogram-bars' },
      counts.map((count, k) =>
        h('span', {
          style: `height:${(100 * count) / most}%`,
          title: `${short(edges[k])} – ${short(edges[k + 1])}: ${count}`,
        }),
      ),
    ),
    h(
      'div',
      { class: 'or-histogram-ends or-num' },
      h('span', {}, short(edges[0])),
      h('span', {}, short(edges[edges.length - 1])),
    ),
  );
}

/** A `report` event as a block of the page; `fileUrl(path)` is the URL of a file of the job. */
export function reportBlock(report, fileUrl) {
  const { facts, tables, histograms, images } = sorted(report);
  const title = TITLES[report.kind] ?? words(report.kind ?? 'report');
  return h(
    'section',
    { class: 'or-block or-report', 'data-kind': report.kind },
    h('h3', {}, title),
    facts.length
      ? h(
          'dl',
          { class: 'or-facts-grid' },
          facts.map(([name, value]) => [h('dt', {}, name), h('dd', {}, valueOf(name, value, fileUrl))]),
        )
      : null,
    report.kind === 'benchmark' ? slicesFigure(report.summary) : null,
    tables.map((one) => table(one, title, fileUrl)),
    histograms.length ? h('div', { class: 'or-histograms' }, histograms.map(histogram)) : null,
    images.map(figure),
  );
}
