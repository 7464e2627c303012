// The reducer of the trace viewer. Run: node --test tests/static
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { candidatesOf } from '../../static/viewer/candidates.js';
import { actionOf } from '../../static/viewer/keys.js';
import { parseTaskId } from '../../static/viewer/reference.js';
import {
  fromTrace,
  initialState,
  isTerminal,
  phaseOf,
  reduce,
  reduceAll,
  withTrace,
} from '../../static/viewer/state.js';

const recorded = JSON.parse(readFileSync(new URL('./recorded.json', import.meta.url)));

const number = (events) => events.map(([type, data], k) => ({ seq: k + 1, type, data }));
const play = (...events) => reduceAll(initialState('t'), number(events));
const STARTED = [
  'trace.started',
  {
    seed: 81,
    checkpoint: 'nano',
    weight_version: 3,
    prompt_tokens: 9,
    budget: { context_len: 768 },
  },
];
const freeze = (value) => {
  if (value && typeof value === 'object') {
    Object.values(value).forEach(freeze);
    Object.freeze(value);
  }
  return value;
};

test('recorded trace matches its row', () => {
  const streamed = reduceAll(withTrace(initialState(recorded.trace.id), recorded.started), recorded.events);
  const row = fromTrace(recorded.trace);
  for (const name of ['status', 'answer', 'hasAnswer', 'finishReason', 'question', 'seed', 'taskId', 'usage']) {
    assert.deepEqual(streamed[name], row[name], name);
  }
  assert.deepEqual(
    streamed.steps.map((step) => step.text.trim()),
    row.steps.map((step) => step.text.trim()),
  );
  assert.deepEqual(
    streamed.steps.map((step) => step.image.image_id),
    row.steps.map((step) => step.image.image_id),
  );
  assert.ok(isTerminal(streamed));
});

test('duplicate event changes nothing', () => {
  const events = recorded.events.flatMap((event) => [event, event]);
  const start = initialState('t');
  assert.deepEqual(reduceAll(start, events), reduceAll(start, recorded.events));
});

test('resuming anywhere gives the same state', () => {
  const whole = reduceAll(initialState('t'), recorded.events);
  for (let cut = 0; cut <= recorded.events.length; cut += 7) {
    const first = reduceAll(initialState('t'), recorded.events.slice(0, cut));
    assert.deepEqual(reduceAll(first, recorded.events.slice(Math.max(0, cut - 3))), whole);
  }
});

test('gap stops the reducer', () => {
  const state = reduce(initialState('t'), {
    seq: 2,
    type: 'trace.queued',
    data: { position: 0 },
  });
  assert.equal(state.gap, true);
  assert.equal(state.status, 'loading');
  assert.equal(state.lastSeq, 0);
});

test('reduce never changes its argument', () => {
  let state = freeze(initialState('t'));
  for (const event of recorded.events) state = freeze(reduce(state, freeze(event)));
  assert.ok(isTerminal(state));
});

test('unknown event type only moves the position', () => {
  const before = play(STARTED);
  const after = reduce(before, { seq: 2, type: 'trace.sparkled', data: {} });
  assert.deepEqual(after, { ...before, lastSeq: 2 });
});

test('queue positions come and go', () => {
  assert.equal(play(['trace.queued', { position: 2 }]).position, 2);
  assert.equal(play(['trace.queued', { position: 2 }], ['trace.queued', { position: 0 }]).position, 0);
  assert.equal(play(['trace.queued', { position: 2 }], STARTED).position, null);
});

test('text deltas add up', () => {
  const state = play(
    STARTED,
    ['step.started', { step: 1 }],
    ['text.delta', { step: 1, text: 'I draw a ' }],
    ['text.delta', { step: 1, text: 'box there.' }],
  );
  assert.equal(state.steps[0].text, 'I draw a box there.');
  assert.equal(state.activity, 'thinking');
});

test('partials count up and keep the last image', () => {
  const drawing = [STARTED, ['step.started', { step: 1 }], ['image.started', { step: 1, skill: 'zoom' }]];
  const one = ['image.partial', { step: 1, index: 0, codes_done: 8, codes_total: 64, url: '/a' }];
  const two = ['image.partial', { step: 1, index: 1, codes_done: 16, codes_total: 64, url: null }];
  const state = play(...drawing, one, two);
  assert.deepEqual(state.steps[0].partial, {
    url: '/a',
    index: 1,
    done: 16,
    total: 64,
  });
  assert.equal(state.steps[0].skill, 'zoom');
  assert.equal(state.activity, 'drawing');
  assert.equal(state.tokens, 16);
  const done = play(...drawing, one, two, [
    'image.completed',
    {
      step: 1,
      image_id: 'i',
      url: '/i',
      width: 64,
      height: 64,
      stats: { codes: 64 },
    },
  ]);
  assert.equal(done.steps[0].partial, null);
  assert.equal(done.steps[0].image.url, '/i');
  assert.equal(done.steps[0].image.skill, 'zoom');
  assert.equal(done.tokens, 64);
});

test('phases follow the trace', () => {
  const step = [
    ['step.started', { step: 1 }],
    ['step.completed', { step: 1 }],
  ];
  const paused = [STARTED, ...step, ['trace.paused', { step: 1 }]];
  assert.equal(phaseOf(null), 'idle');
  assert.equal(phaseOf(initialState('t')), 'idle');
  assert.equal(phaseOf(play(['trace.queued', { position: 0 }])), 'running');
  assert.equal(phaseOf(play(STARTED)), 'running');
  assert.equal(phaseOf(play(...paused)), 'paused');
  assert.equal(play(...paused).pausedAfter, 1);
  assert.equal(phaseOf(play(...paused, ['trace.resumed', { mode: 'auto' }])), 'running');
  assert.equal(play(...paused, ['trace.resumed', { mode: 'auto' }]).mode, 'auto');
  assert.equal(phaseOf(play(...paused, ['trace.queued', { position: 0 }])), 'running');
  assert.equal(phaseOf(play(STARTED, ['trace.cancelled', { reason: 'user' }])), 'ended');
});

test('failed and interrupted traces keep their steps', () => {
  const error = { code: 'engine_died', detail: 'The engine ended.' };
  const failed = play(
    STARTED,
    ['step.started', { step: 1 }],
    ['text.delta', { step: 1, text: 'I' }],
    ['trace.failed', { error }],
  );
  assert.equal(failed.status, 'failed');
  assert.deepEqual(failed.error, error);
  assert.equal(failed.steps[0].text, 'I');
  assert.equal(play(STARTED, ['trace.failed', { error: { code: 'interrupted', detail: '' } }]).status, 'interrupted');
});

test('terminal event has the final answer', () => {
  const parts = [STARTED, ['answer.delta', { text: ' re' }], ['answer.delta', { text: 'd' }]];
  assert.equal(play(...parts).answer, ' red');
  assert.equal(play(...parts, ['trace.completed', { answer: 'red', finish_reason: 'stop' }]).answer, 'red');
  const none = play(STARTED, ['trace.completed', { answer: null, finish_reason: 'length' }]);
  assert.equal(none.hasAnswer, false);
  assert.equal(none.finishReason, 'length');
});

test('row never overwrites events of a live trace', () => {
  const state = play(STARTED);
  const later = withTrace(state, {
    id: 't',
    status: 'queued',
    question: 'q',
    images: [],
    mode: 'auto',
    sampling: {},
  });
  assert.equal(later.status, 'running');
  assert.equal(later.question, 'q');
});

test('a task id names slice, seed and level', () => {
  assert.deepEqual(parseTaskId('natural-1000000123'), {
    slice: 'natural',
    seed: '1000000123',
  });
  assert.deepEqual(parseTaskId('natural-hard-7'), {
    slice: 'natural',
    seed: '7',
    level: 'hard',
  });
  assert.deepEqual(parseTaskId('operational-5-7'), {
    slice: 'operational',
    seed: '7',
    level: '5',
  });
});

test('other texts are no task ids', () => {
  for (const text of [null, '', 'natural', 'natural-9-7', 'natural-easy-7', 'Natural-7']) {
    assert.equal(parseTaskId(text), null);
  }
});

test('candidates of a step are the same from events and from the row', () => {
  const images = [
    { image_id: 'a', url: '/a', width: 8, height: 8 },
    { image_id: 'b', url: '/b', width: 8, height: 8 },
  ];
  const candidates = { images, scores: [null, -1.256], chosen: 1 };
  const streamed = play(
    STARTED,
    ['step.started', { step: 1 }],
    ['image.started', { step: 1 }],
    ['image.candidates', { step: 1, ...candidates }],
    ['image.completed', { step: 1, ...images[1] }],
  );
  const row = fromTrace({
    id: 't',
    status: 'completed',
    steps: [{ index: 1, text: '', image: images[1], candidates }],
  });
  assert.deepEqual(streamed.steps[0].candidates, row.steps[0].candidates);
  assert.deepEqual(candidatesOf(row.steps[0]), [
    { url: '/a', score: 'no score', chosen: false, label: 'Candidate 1 of 2' },
    { url: '/b', score: '−1.26', chosen: true, label: 'Candidate 2 of 2' },
  ]);
  assert.deepEqual(candidatesOf(play(STARTED, ['step.started', { step: 1 }]).steps[0]), []);
  assert.deepEqual(candidatesOf(undefined), []);
  assert.equal(actionOf({ key: 'c' }), 'candidates');
  assert.equal(actionOf({ key: 'c', ctrlKey: true }), null, 'copying');
});
