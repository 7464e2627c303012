// The texts of a data set's check, and the bars of a benchmark.

import assert from 'node:assert/strict';
import test from 'node:test';

import { moreOf, summaryOf } from '../../static/training/data.js';
import { slicesOf } from '../../static/training/slices.js';

test('summary counts rows and names the method', () => {
  const report = { rows: 3, complete: true, rejected: { rows: 1 }, method: 'perpo' };
  assert.equal(summaryOf(report), '3 rows; 1 row rejected by PeRPO.');
  assert.equal(summaryOf({ ...report, rejected: { rows: 0 }, method: null }), '3 rows; all can be used.');
  assert.match(summaryOf({ ...report, complete: false }), /ran out of time/);
});

test('unlisted rejections are counted', () => {
  assert.equal(moreOf({ reasons: { a: 2, b: 3 }, first: [1, 2] }), '3 more are in the complete list.');
  assert.equal(moreOf({ reasons: { a: 2 }, first: [1, 2] }), '');
});

test('slices come overall first, groups below their slice', () => {
  const row = (accuracy) => ({ accuracy, accuracy_ci95: [accuracy / 2, 1], tasks: 4 });
  const summary = { structured: row(0.5), 'structured/bars': row(0.25), natural: row(1), all: row(0.6), odd: {} };
  assert.deepEqual(
    slicesOf(summary).map(({ name, inner, value }) => [name, inner, value]),
    [
      ['all questions', false, 0.6],
      ['natural', false, 1],
      ['structured', false, 0.5],
      ['bars', true, 0.25],
    ],
  );
  assert.deepEqual(slicesOf({ all: { accuracy: null, accuracy_ci95: [0, 1] } }), []);
});
