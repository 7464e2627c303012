// Jobs: bounded series, reducer, texts. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { moreOf, summaryOf } from '../../static/training/data.js';
import { slicesOf } from '../../static/training/slices.js';
import {
  LIMIT,
  emptySeries,
  meanOf,
  nearest,
  push,
  rangeOf,
  short,
  stepsOf,
  ticksOf,
  wantsLog,
} from '../../static/shared/series.js';
import {
  KEEP_LINES,
  KEEP_SAMPLES,
  initialJob,
  isTerminal,
  reduce,
  reduceAll,
  shownStage,
  stageBar,
  stagesOf,
  traceOf,
  withJob,
} from '../../static/training/state.js';

const seriesOf = (...values) => {
  const series = emptySeries();
  values.forEach((value, k) => push(series, k + 1, value));
  return series;
};
const number = (events) => events.map(([type, data], k) => ({ seq: k + 1, type, data }));
const play = (...events) => reduceAll(initialJob('j'), number(events));
const row = (step, values, stage = 'pesft') => ['metrics', { stage, step, values }];
const freeze = (value) => {
  if (value && typeof value === 'object') {
    Object.values(value).forEach(freeze);
    Object.freeze(value);
  }
  return value;
};

// ---- series

test('series are bounded with an exact mean', () => {
  const series = emptySeries();
  for (let step = 1; step <= 100_000; step += 1) push(series, step, step % 7);
  assert.ok(series.points.length <= LIMIT);
  assert.ok(series.points.length > LIMIT / 4);
  const count = series.points.reduce((all, point) => all + point.count, 0);
  assert.equal(count, 100_000);
  const sum = series.points.reduce((all, point) => all + point.sum, 0);
  assert.equal(
    sum,
    Array.from({ length: 100_000 }, (_, k) => (k + 1) % 7).reduce((a, b) => a + b),
  );
  assert.deepEqual(
    [Math.min(...series.points.map((p) => p.low)), Math.max(...series.points.map((p) => p.high))],
    [0, 6],
  );
});

test('repeated step replaces later points', () => {
  const series = seriesOf(1, 2, 3, 4);
  push(series, 3, 30);
  assert.deepEqual(
    series.points.map((point) => [point.last, meanOf(point)]),
    [
      [1, 1],
      [2, 2],
      [3, 30],
    ],
  );
});

test('nearest point is found', () => {
  assert.equal(nearest(seriesOf(5, 6, 7), 2.2).last, 2);
  assert.equal(nearest(seriesOf(5, 6, 7), 99).last, 3);
  assert.equal(nearest(emptySeries(), 1), null);
  assert.equal(nearest(undefined, 1), null);
});

test('series of a chart share their steps', () => {
  const other = emptySeries();
  push(other, 2, 0);
  push(other, 10, 0);
  assert.deepEqual(stepsOf([seriesOf(1, 1, 1), other]), [1, 2, 3, 10]);
});

test('ticks are round and few', () => {
  assert.deepEqual(ticksOf(0, 1, 4), [0, 0.25, 0.5, 0.75, 1]);
  assert.deepEqual(ticksOf(0, 60, 5), [0, 20, 40, 60]);
  assert.deepEqual(ticksOf(3, 3), [3]);
  for (const [low, high] of [
    [0.775, 0.775 + 2e-16],
    [1e9, 1e9 + 3],
    [-4, 4],
    [0, 1e-9],
  ]) {
    const ticks = ticksOf(low, high);
    assert.ok(ticks.length >= 1 && ticks.length <= 9, `${low} ${high}: ${ticks}`);
  }
});

test('range covers all values', () => {
  const [low, high] = rangeOf([seriesOf(0.31, 0.62), seriesOf(0.9)]);
  assert.ok(low <= 0.31 && high >= 0.9);
  assert.equal(rangeOf([seriesOf(0.3, 0.4)], { zero: true })[0], 0);
  assert.deepEqual(rangeOf([seriesOf(5)], { within: [0, 1] }), [0, 1]);
  assert.deepEqual(rangeOf([]), [0, 1]);
  const flat = rangeOf([seriesOf(2, 2)]);
  assert.ok(flat[0] < 2 && flat[1] > 2);
});

test('distant losses share a logarithmic axis', () => {
  assert.equal(wantsLog([seriesOf(0.5, 0.4), seriesOf(40, 30)]), true);
  assert.equal(wantsLog([seriesOf(0.5, 0.4), seriesOf(2, 1)]), false);
  assert.equal(wantsLog([seriesOf(0, 100)]), false); // zero has no logarithm
  assert.equal(wantsLog([seriesOf(1)]), false);
});

test('numbers are short and exact', () => {
  assert.deepEqual([0, 0.0312, 1.234, 12.34, 4096, 2.4e6, 1.2e-5, -0.5].map(short), [
    '0',
    '0.031',
    '1.23',
    '12.3',
    '4,096',
    '2.4 M',
    '1.2e−5',
    '−0.5',
  ]);
  assert.deepEqual([null, undefined, NaN, Infinity].map(short), ['–', '–', '–', '∞']);
});

// ---- reducer

test('metrics are kept by stage', () => {
  const state = play(row(1, { 'loss/ce': 4 }), row(2, { 'loss/ce': 3 }), row(1, { 'reward/total': 0.5 }, 'perpo'));
  assert.deepEqual(state.order, ['pesft', 'perpo']);
  assert.equal(state.stages.pesft.series['loss/ce'].points.length, 2);
  assert.equal(state.stages.pesft.latest['loss/ce'], 3);
  assert.equal(state.stages.perpo.latest['reward/total'], 0.5);
  assert.equal(shownStage({ ...state, progress: { stage: 'perpo' } }), 'perpo');
  assert.equal(shownStage(state, 'pesft'), 'pesft');
  assert.equal(shownStage(play()), null);
});

test('null values leave no point', () => {
  const state = play(row(1, { 'loss/ce': 4 }), row(2, { 'loss/ce': null }));
  assert.equal(state.stages.pesft.series['loss/ce'].points.length, 1);
});

test('duplicate events change nothing', () => {
  const events = number([
    ['job.status', { status: 'running', started_at: 't' }],
    ['progress', { stage: 'pesft', step: 1, total: 4, eta_s: 3 }],
    row(1, { a: 1 }),
    ['log', { line: 'x' }],
    ['warning', { code: 'c', detail: 'd' }],
    ['checkpoint', { name: 'n', step: 1 }],
    ['sample', { question: 'q' }],
    ['report', { kind: 'data' }],
    ['of_a_newer_server', {}],
    row(2, { a: 2 }),
  ]);
  const whole = reduceAll(initialJob('j'), events);
  assert.deepEqual(reduceAll(whole, events), whole);
  for (let cut = 0; cut <= events.length; cut += 1) {
    assert.deepEqual(
      reduceAll(reduceAll(initialJob('j'), events.slice(0, cut)), events.slice(Math.max(0, cut - 2))),
      whole,
    );
  }
  assert.equal(whole.lastSeq, events.length);
});

test('reducing never changes its argument', () => {
  let state = freeze(play(row(1, { a: 1 }), ['sample', {}], ['log', { line: '1' }], ['warning', { code: 'c' }]));
  for (const [k, [type, data]] of [
    row(2, { a: 2 }),
    ['sample', {}],
    ['log', { line: '2' }],
    ['warning', { code: 'c' }],
    ['checkpoint', { name: 'n' }],
  ].entries()) {
    state = freeze(reduce(state, freeze({ seq: 5 + k, type, data })));
  }
  assert.equal(state.stages.pesft.series.a.points.length, 2);
});

test('only the latest samples and lines are kept', () => {
  const state = reduceAll(
    initialJob('j'),
    number([
      ...Array.from({ length: KEEP_SAMPLES + 5 }, (_, k) => ['sample', { step: k }]),
      ...Array.from({ length: KEEP_LINES + 3 }, (_, k) => ['log', { line: `line ${k}` }]),
    ]),
  );
  assert.equal(state.samples.length, KEEP_SAMPLES);
  assert.equal(state.samples.at(-1).step, KEEP_SAMPLES + 4);
  assert.equal(state.log.length, KEEP_LINES);
  assert.equal(state.dropped, 3);
});

test('repeated warning is counted once', () => {
  const state = play(
    ['warning', { code: 'a', detail: '1' }],
    ['warning', { code: 'b', detail: '2' }],
    ['warning', { code: 'a', detail: '3' }],
  );
  assert.deepEqual(state.warnings, [
    { code: 'b', detail: '2', count: 1 },
    { code: 'a', detail: '3', count: 2 },
  ]);
});

test('resumed job is live without its error', () => {
  const failed = play(['job.status', { status: 'failed', error: { code: 'x', detail: 'y' } }]);
  assert.ok(isTerminal(failed));
  assert.equal(failed.error.code, 'x');
  const again = reduce(failed, { seq: 2, type: 'job.status', data: { status: 'queued', finished_at: null } });
  assert.equal(again.status, 'queued');
  assert.equal(again.error, null);
  assert.equal(again.finishedAt, null);
});

test('stage bar shows done, running and waiting stages', () => {
  const spec = { method: 'pipeline', hyperparameters: { zero: {}, pesft: {}, perpo: {}, benchmark: null } };
  assert.deepEqual(stagesOf(spec), ['zero', 'pesft', 'perpo']);
  assert.deepEqual(stagesOf({ method: 'zero', hyperparameters: { pesft: null } }), ['zero']);
  const running = {
    ...withJob(initialJob('j'), { status: 'running', spec, method: 'pipeline' }),
    progress: { stage: 'pesft', step: 30, total: 120 },
  };
  assert.deepEqual(stageBar(running), [
    { stage: 'zero', share: 1, state: 'done' },
    { stage: 'pesft', share: 0.25, state: 'running' },
    { stage: 'perpo', share: 0, state: 'waiting' },
  ]);
  assert.equal(stageBar({ ...running, status: 'cancelled' })[1].state, 'stopped');
  assert.ok(stageBar({ ...running, status: 'succeeded' }).every((one) => one.share === 1));
  assert.ok(stageBar({ ...running, progress: null }).every((one) => one.state === 'waiting'));
});

test('compared checkpoint is no stage', () => {
  const state = reduce(
    withJob(initialJob('j'), {
      status: 'running',
      spec: { method: 'benchmark' },
      progress: { stage: 'benchmark', step: 1, total: 2 },
    }),
    { seq: 1, type: 'metrics', data: { stage: 'benchmark:other', step: 1, values: { 'accuracy/all': 1 } } },
  );
  assert.deepEqual(
    stageBar(state).map((one) => one.stage),
    ['benchmark'],
  );
});

test('sample becomes a trace with a verdict', () => {
  const trace = traceOf({
    seq: 4,
    question: 'q',
    question_image: '/v1/q.png',
    steps: [
      { text: 'a', image: '/v1/1.png' },
      { text: 'b', image: null },
    ],
    answer: 'red',
    rewards: { accuracy: 1 },
  });
  assert.equal(trace.images[0].url, '/v1/q.png');
  assert.deepEqual(
    trace.steps.map((step) => step.image?.url ?? null),
    ['/v1/1.png', null],
  );
  assert.equal(trace.verdict.answer, 'right');
  assert.equal(traceOf({ seq: 5, steps: [], answer: null }).verdict, null);
  assert.equal(traceOf({ seq: 6, rewards: { accuracy: 0.2 } }).verdict.answer, 'wrong');
});

// ---- the check of a data set, and the bars of a benchmark

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
