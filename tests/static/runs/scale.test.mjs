// Many runs in one chart: smoothing, ranges, zoom, ticks, labels, order. Run: node --test tests/static/
import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  axisTicks,
  from,
  labelsOf,
  lessIsBetter,
  lookOf,
  movedView,
  nearest,
  nearestWithin,
  nextStep,
  smoothed,
  sorted,
  stepRange,
  valueRange,
  zoomedView,
} from '../../../static/runs/scale.js';

const METHODS = { pesft: 'PeSFT' };
const job = (id, name = null) => ({ id, name, method: 'pesft', spec: { base_checkpoint: 'nano-base' } });

test('smoothing has no bias towards its start and keeps gaps', () => {
  assert.deepEqual(smoothed([5, 5, null, 5], 0.9), [5, 5, null, 5]);
  const [first, second] = smoothed([1, 3], 0.5);
  assert.equal(first, 1);
  assert.ok(Math.abs(second - (0.25 * 1 + 0.5 * 3) / 0.75) < 1e-12);
  const values = [3, 1, 2];
  assert.equal(smoothed(values, 0), values);
});

test('a run has no value before its first or after its last step', () => {
  for (const [step, at] of [
    [9, -1],
    [10, 0],
    [14, 0],
    [16, 1],
    [20, 1],
    [21, -1],
  ])
    assert.equal(nearestWithin([10, 20], step), at);
  assert.equal(nearestWithin([], 1), -1);
});

test('the nearest recorded step is found from any step', () => {
  const steps = [2, 5, 9];
  for (const [step, at] of [
    [-7, 0],
    [2, 0],
    [3, 0],
    [4, 1],
    [7, 1],
    [8, 2],
    [99, 2],
  ])
    assert.equal(nearest(steps, step), at);
  assert.equal(nearest([], 3), -1);
  assert.deepEqual(
    [0, 2, 3, 10].map((step) => from(steps, step)),
    [0, 0, 1, 3],
  );
});

test('arrow keys visit every recorded step of any run and stop at the ends', () => {
  const many = [{ steps: [1, 4] }, { steps: [2, 4, 7] }];
  const visited = [1];
  for (let step = 1; nextStep(many, step, 1) !== step; visited.push(step)) step = nextStep(many, step, 1);
  assert.deepEqual(visited, [1, 2, 4, 7]);
  assert.equal(nextStep(many, 7, -1), 4);
  assert.equal(nextStep(many, 1, -1), 1);
  assert.equal(nextStep([], 3, 1), 3);
});

test('ranges leave out what is not finite, and on a log axis what is not positive', () => {
  const many = [{ steps: [1, 2, 3, 4], values: [null, -1, 2, 8] }];
  const [low, high] = valueRange(many, [1, 4]);
  assert.ok(low < -1 && low > -2 && high > 8 && high < 9);
  assert.deepEqual(
    valueRange(many, [1, 4], true).map((value) => Math.round(value)),
    [2, 9],
  );
  assert.deepEqual(valueRange([{ steps: [1], values: [null] }], [1, 1]), [0, 1]);
  assert.ok(valueRange([{ steps: [1], values: [3] }], [1, 1])[0] < 3);
  assert.deepEqual(stepRange([]), [0, 1]);
  assert.deepEqual(stepRange([{ steps: [] }, { steps: [5] }]), [5, 6]);
});

test('zoom and pan stay within all steps and keep what is under the pointer', () => {
  const all = [0, 1000];
  const near = zoomedView(all, 250, 0.5, all);
  assert.deepEqual(near, [125, 625]);
  assert.equal((250 - near[0]) / (near[1] - near[0]), 0.25);
  assert.deepEqual(zoomedView(near, 250, 99, all), all);
  assert.deepEqual(movedView(near, -500, all), [0, 500]);
  assert.deepEqual(movedView(near, 9000, all), [500, 1000]);
  let view = all;
  for (let k = 0; k < 60; k += 1) view = zoomedView(view, 700, 0.5, all);
  assert.ok(view[1] - view[0] >= 1);
});

test('axes have a few round ticks within their range', () => {
  for (const [range, log] of [
    [[0.3, 2.4], false],
    [[1e-5, 3], true],
    [[0.2, 0.9], true],
    [[1, 1e9], true],
  ]) {
    const ticks = axisTicks(range, 5, log);
    assert.ok(ticks.length >= 2 && ticks.length <= 9, String(ticks));
    assert.ok(ticks.every((tick) => tick >= range[0] && tick <= range[1]));
  }
});

test('runs of one name are told apart, and 32 runs look different', () => {
  const labels = labelsOf(
    [job('job_a111', 'circles'), job('job_b222', 'circles'), job('job_c'), job('job_d', 'x')],
    METHODS,
  );
  assert.deepEqual([...labels.values()], ['circles · a111', 'circles · b222', 'PeSFT from nano-base', 'x']);
  assert.equal(new Set(Array.from({ length: 32 }, (_, k) => JSON.stringify(lookOf(k)))).size, 32);
});

test('sorting is by number where there are numbers, and puts missing values last', () => {
  const rows = [{ v: 10 }, { v: null }, { v: 9 }];
  const values = (descending) => sorted(rows, ({ v }) => v, descending).map(({ v }) => v);
  assert.deepEqual(values(false), [9, 10, null]);
  assert.deepEqual(values(true), [10, 9, null]);
  const names = ['run 10', '', 'run 9'].map((v) => ({ v }));
  assert.deepEqual(
    sorted(names, ({ v }) => v, false).map(({ v }) => v),
    ['run 9', 'run 10', ''],
  );
});

test('losses are better when low, rewards when high', () => {
  assert.deepEqual(['loss/ce', 'kl', 'reward/total', 'accuracy/all'].map(lessIsBetter), [true, true, false, false]);
});
