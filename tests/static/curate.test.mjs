// What is selected in the gallery, and what can be made of it. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  exportTrouble,
  exportable,
  rangeOf,
  skippedWords,
  tracesInAddress,
  trainable,
  trainingAddress,
  withTag,
  worthTraining,
} from '../../static/curate/choose.js';
import { addressOf, filtersOf } from '../../static/studio/filters.js';
import { dataOf } from '../../static/training/words.js';
import { fromTrace } from '../../static/viewer/state.js';

const trace = (id, more = {}) => ({ id, status: 'completed', answer: 'red', rating: null, ...more });
const RIGHT = { verdict: { answer: 'right' } };
const WRONG = { verdict: { answer: 'wrong' } };
const ids = (traces) => traces.map(({ id }) => id).join('');

test('range goes from the last click to this one', () => {
  assert.deepEqual(rangeOf(1, 3), [1, 2, 3]);
  assert.deepEqual(rangeOf(3, 1), [1, 2, 3]);
  assert.deepEqual(rangeOf(2, 2), [2]);
  assert.deepEqual(rangeOf(null, 2), [2]);
});

test('right or good traces are preselected for training', () => {
  const traces = [
    trace('a', RIGHT),
    trace('b', WRONG),
    trace('c', { ...WRONG, rating: 1 }),
    trace('d', { ...RIGHT, rating: -1 }),
    trace('e', { rating: 0 }),
    trace('f', { rating: 1, status: 'cancelled' }),
    trace('g', { rating: 1, answer: null }),
    trace('h', { ...RIGHT, answer: '' }),
  ];
  assert.equal(ids(worthTraining(traces)), 'ac');
  assert.equal(ids(trainable(traces)), 'abcde');
});

test('running traces are not exported', () => {
  const traces = ['completed', 'queued', 'running', 'paused', 'failed'].map((status, k) =>
    trace(String(k), { status }),
  );
  assert.equal(ids(exportable(traces)), '034');
  assert.equal(exportTrouble(traces, 'zip'), null);
  assert.match(exportTrouble(traces.slice(1, 3), 'zip'), /still running/);
  assert.match(exportTrouble(traces.slice(3), 'jsonl'), /no.* answer|None .* has an answer/);
  const many = Array.from({ length: 21 }, (_, k) => trace(String(k)));
  assert.match(exportTrouble(many, 'html'), /at most 20/);
  assert.equal(exportTrouble(many.slice(1), 'html'), null);
  assert.equal(exportTrouble(many, 'jsonl'), null);
});

test('skipped traces are counted in words', () => {
  assert.equal(skippedWords(0), '');
  assert.equal(skippedWords(1), '1 trace was left out.');
  assert.equal(skippedWords(2), '2 traces were left out.');
});

test('address of the training page carries the traces', () => {
  const many = Array.from({ length: 5000 }, (_, k) => `tr_${k}`);
  assert.deepEqual(tracesInAddress(new URL(trainingAddress(many), 'http://x').hash), many);
  for (const hash of ['', '#', '#traces=', '#traces=<b>', '#other=tr_1']) assert.deepEqual(tracesInAddress(hash), []);
});

test('tag is added once, without white space around it', () => {
  const tags = ['b'];
  assert.deepEqual(withTag(tags, ' a '), ['a', 'b']);
  assert.equal(withTag(tags, 'b'), tags);
  assert.equal(withTag(tags, '  '), tags);
});

test('rating and tag are filters in the address', () => {
  const filters = { slice: 'natural', rating: '-1', tag: 'a & b' };
  assert.deepEqual(filtersOf(addressOf(filters).split('?')[1]), filters);
  assert.deepEqual(filtersOf('?rating=2&tag=%20'), {});
});

test('viewer state has what people made of a trace', () => {
  const state = fromTrace({ ...trace('a', { rating: 1, tags: ['x'], note: 'n' }), question: '?' });
  assert.deepEqual([state.rating, state.tags, state.note], [1, ['x'], 'n']);
  const plain = fromTrace({ ...trace('a'), question: '?' });
  assert.deepEqual([plain.rating, plain.tags, plain.note], [null, [], '']);
});

test('job on saved traces names their number', () => {
  assert.equal(dataOf({ data: { source: 'traces', trace_ids: ['a', 'b'] } }), '2 of saved traces');
});
