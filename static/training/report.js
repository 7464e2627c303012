// What a job reports at the end of a stage: tables of numbers, the contact sheet of drawn pictures, paths of files.

import { h, openDialog } from '../viewer/dom.js';
import { short } from './series.js';

const TITLES = { bootstrapping: 'Bootstrapping report', bootstrap: 'Bootstrapping report', benchmark: 'Benchmark', comparison: 'Comparison' };
const words = (key) => key.replaceAll('_', ' ').replaceAll('/', ' · ');
const isPicture = (value) => typeof value === 'string' && value.startsWith('/') && /(\.png|\/v1\/images\/[^/]+)$/.test(value);

function valueOf(value) {
  if (typeof value === 'number') return h('span', { class: 'or-num' }, short(value));
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  if (Array.isArray(value) && value.length === 2 && value.every((one) => typeof one === 'number')) {
    return h('span', { class: 'or-num' }, `${short(value[0])} – ${short(value[1])}`); // an interval
  }
  return String(value);
}

function picture(key, url) {
  const image = () => h('img', { src: url, alt: words(key), loading: 'lazy' });
  return h('button', { type: 'button', class: 'or-report-picture', 'aria-label': `Open ${words(key)}`, onclick: () => openDialog(words(key), h('h2', {}, words(key)), image()).classList.add('or-wide') }, image());
}

const isRecord = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);
const isPlain = (value) => !isRecord(value) && (!Array.isArray(value) || (value.length === 2 && value.every((one) => typeof one === 'number')));

/** Records that have the same keys are rows of one table. */
function tableOf(record) {
  const rows = Object.entries(record).filter(([, value]) => isRecord(value) && Object.values(value).every(isPlain));
  const columns = [...new Set(rows.flatMap(([, value]) => Object.keys(value)))];
  return h('div', { class: 'or-scroll', tabindex: '0', role: 'group', 'aria-label': 'Table' }, h(
    'table', { class: 'or-table' },
    h('thead', {}, h('tr', {}, h('td'), columns.map((one) => h('th', { scope: 'col' }, words(one))))),
    h('tbody', {}, rows.map(([name, value]) => h('tr', {}, h('th', { scope: 'row' }, words(name)), columns.map((one) => h('td', {}, value[one] === undefined || value[one] === null ? '–' : valueOf(value[one])))))),
  ));
}

/** A `report` event as a block of the page; `kind` is its heading, pictures are paths on this server. */
export function reportBlock({ kind, stage, ...rest }) {
  const facts = [];
  const parts = [];
  const take = (record, prefix = '') => {
    for (const [key, value] of Object.entries(record)) {
      if (value === null || value === undefined || key === 'time') continue;
      if (isPicture(value)) parts.push(picture(key, value));
      else if (isPlain(value)) facts.push(h('dt', {}, prefix + words(key)), h('dd', {}, valueOf(value)));
      else if (isRecord(value) && Object.values(value).some(isRecord)) parts.push(h('h4', {}, words(key)), tableOf(value));
      else if (isRecord(value)) take(value, `${words(key)} · `);
    }
  };
  take(rest);
  return h('section', { class: 'or-block or-report', 'data-kind': kind }, h('h3', {}, TITLES[kind] ?? words(kind ?? stage ?? 'report')), facts.length ? h('dl', { class: 'or-facts-grid' }, facts) : null, parts);
}
