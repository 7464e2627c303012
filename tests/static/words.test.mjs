// Texts of the viewer: pill, announcements, verdict, remedies. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { budgetWords, budgetError } from '../../static/studio/budget.js';
import { actionOf } from '../../static/viewer/keys.js';
import { initialState, reduceAll } from '../../static/viewer/state.js';
import {
  Stopwatch,
  altOf,
  announcementOf,
  factsOf,
  pillOf,
  rateOf,
  readQuestion,
  seconds,
  troubleOf,
  verdictOf,
} from '../../static/shared/words.js';

const state = (change) => ({ ...initialState('t'), ...change });
const step = (change) => ({ index: 1, text: '', skill: null, image: null, partial: null, complete: false, ...change });

test('pill has a text for every state', () => {
  const said = (change) => {
    const { text, count } = pillOf(state(change));
    return count ? `${text} ${count}` : text;
  };
  assert.equal(said({ status: 'queued', position: 2 }), 'waiting (2 ahead)');
  assert.equal(said({ status: 'queued', position: 0 }), 'waiting (next in line)');
  assert.equal(said({ status: 'running', activity: 'reading' }), 'reading the image');
  assert.equal(said({ status: 'running', activity: 'thinking' }), 'thinking');
  const drawing = [step({ index: 2, partial: { done: 41, total: 64 } })];
  assert.equal(said({ status: 'running', activity: 'drawing', steps: drawing }), 'drawing step 2 41/64 codes');
  assert.equal(said({ status: 'paused', pausedAfter: 2 }), 'paused after step 2');
  assert.equal(said({ status: 'completed', timings: { total_ms: 1900 } }), 'done in 1.9 s');
  assert.equal(said({ status: 'cancelled' }), 'stopped');
  assert.equal(said({ status: 'failed' }), 'failed');
  assert.equal(said({ status: 'interrupted' }), 'interrupted');
});

test('every end without an answer has a remedy', () => {
  const ends = [
    { status: 'failed', error: { code: 'x', detail: 'It broke.' } },
    { status: 'interrupted' },
    { status: 'cancelled' },
    { status: 'completed', finishReason: 'length' },
    { status: 'completed', finishReason: 'stop' },
  ];
  for (const end of ends) assert.match(troubleOf(state(end)), /press Reason|ask again/i);
  assert.match(troubleOf(state(ends[0])), /It broke\./);
  assert.equal(troubleOf(state({ status: 'completed', hasAnswer: true })), null);
});

// Error details of servers, with and without advice.
const REASONS = [
  ['interrupted', 'interrupted', 'the server stopped before the trace finished; try again'],
  ['interrupted', 'interrupted', 'the server that ran the trace stopped responding; try again'],
  ['failed', 'internal', "see the server's log; try again"],
  ['failed', 'engine_error', 'the engine returned no result; try again'],
  ['failed', 'engine_died', 'The engine ended unexpectedly. Try again.'],
  ['failed', 'database_unavailable', 'storing its events failed'],
  ['failed', 'prompt_too_long', 'the question takes 900 tokens and 768 fit'],
  ['failed', 'bad_image', 'an image of the question cannot be read: truncated'],
  ['failed', 'weights_gone', ''],
  ['cancelled', null, null],
];

test('end is explained once with one remedy', () => {
  for (const [status, code, detail] of REASONS) {
    for (const steps of [[], [step({ complete: true })]]) {
      const said = troubleOf(state({ status, steps, error: code && { code, detail } }));
      assert.equal(said.match(/\b(ask|try|choose|shorten)\b/gi).length, 1, said);
      assert.ok((said.match(/stopped/gi) ?? []).length <= 1, said);
      const sentences = said.split(/(?<=\.)\s/);
      assert.equal(new Set(sentences.map((one) => one.toLowerCase())).size, sentences.length, said);
      for (const one of sentences) assert.match(one, /^[A-Z].*[^.;:\s]\.$/, said);
      assert.equal(said.includes('steps so far are kept'), steps.length > 0, said);
    }
  }
  assert.match(
    troubleOf(state({ status: 'failed', error: { code: 'prompt_too_long', detail: 'x' } })),
    /shorten the question/i,
  );
  const left = troubleOf(state({ status: 'cancelled', cancelReason: 'disconnected' }));
  assert.match(left, /all readers had left/);
  assert.match(
    troubleOf(state({ status: 'interrupted' }), 'open it in the Studio to ask again'),
    /Open it in the Studio/,
  );
});

test('steps and answer are announced once', () => {
  const event = (seq, type, data) => ({ seq, type, data });
  const before = reduceAll(initialState('t'), [event(1, 'trace.started', {}), event(2, 'step.started', { step: 1 })]);
  const text = reduceAll(before, [event(3, 'text.delta', { step: 1, text: 'I look.' })]);
  assert.equal(announcementOf(before, text), '');
  const done = reduceAll(text, [event(4, 'step.completed', { step: 1 })]);
  assert.equal(announcementOf(text, done), 'Step 1: I look.');
  const ended = reduceAll(done, [
    event(5, 'answer.delta', { text: 'red' }),
    event(6, 'trace.completed', { answer: 'red' }),
  ]);
  assert.equal(announcementOf(done, ended), 'The answer is red.');
});

test('only tasks have a verdict', () => {
  const done = { status: 'completed', hasAnswer: true };
  const wrong = { answer: 'wrong', drawings_right: 1, drawings_total: 2 };
  assert.equal(
    verdictOf(state({ ...done, taskId: 'x', verdict: wrong }), 'red').text,
    '✗ wrong (reference: red) · 1 of 2 drawings right',
  );
  assert.equal(
    verdictOf(state({ ...done, taskId: 'x', verdict: { ...wrong, answer: 'right' } }), 'red').text,
    '✓ right · 1 of 2 drawings right',
  );
  assert.equal(verdictOf(state(done)).text, 'not checked');
  assert.equal(verdictOf(state({ ...done, taskId: 'x' })), null); // the verdict is pending
  assert.equal(verdictOf(state({ status: 'running' })), null);
});

test('images have alt texts and facts', () => {
  const drawn = step({
    skill: 'box',
    text: ' around the star ',
    image: { width: 64, height: 64, stats: { codes: 64, flatness: 0.25, tv: 0.1, perception_reward: null, passes: 9 } },
  });
  assert.equal(altOf(drawn), 'Step 1, box drawn: around the star');
  assert.deepEqual(factsOf(drawn), [
    ['size', '64 × 64 px'],
    ['codes', '64'],
    ['flatness', '0.250'],
    ['TV score', '0.100'],
    ['passes', '9'],
  ]);
});

test('token rate is estimated, then exact', () => {
  assert.equal(rateOf(state({ tokens: 100, timings: { total_ms: null } }), 500), 200);
  const ended = {
    status: 'completed',
    tokens: 9,
    usage: { completion_tokens: 300 },
    timings: { total_ms: 1100, queued_ms: 100 },
  };
  assert.equal(rateOf(state(ended), 0), 300);
  assert.equal(rateOf(state({ ...ended, status: 'running', usage: null, tokens: 100 }), 500), 200); // its last pause is no end
  assert.equal(rateOf(state({ tokens: 100 }), null), null); // unknown run time
  assert.equal(rateOf(state({ tokens: 3 }), 500), null);
  assert.equal(seconds(1234), '1.2 s');
  assert.equal(seconds(65_000), '65 s');
});

/** A stopwatch on a clock that a test turns; `wall` is the time of day. */
function stopwatch() {
  const clock = { ms: 1000 };
  const watch = new Stopwatch({ now: () => clock.ms, wall: () => Date.parse('2026-01-01T00:00:00Z') + clock.ms });
  const after = (ms, change) => {
    clock.ms += ms;
    watch.follow(state(change));
    return watch.elapsed;
  };
  return { watch, after };
}

test('pauses are not counted', () => {
  const { after } = stopwatch();
  after(0, { status: 'queued' });
  after(5000, { status: 'running' });
  assert.equal(after(700, { status: 'running' }), 700);
  assert.equal(after(300, { status: 'paused' }), 1000);
  assert.equal(after(60_000, { status: 'paused' }), 1000);
  assert.equal(after(60_000, { status: 'queued', resumed: true }), 1000); // no slot was free
  after(3000, { status: 'running', resumed: true });
  assert.equal(after(250, { status: 'running', resumed: true }), 1250);
  after(0, { status: 'completed' });
  after(0, { status: 'running' });
  assert.equal(after(10, { status: 'running' }), 10);
});

test('late page counts from the start if possible', () => {
  const startedAt = '2026-01-01T00:00:00Z';
  const fresh = stopwatch();
  assert.equal(fresh.after(1000, { status: 'running', startedAt }), 2000);
  const late = stopwatch();
  late.after(1000, { status: 'running', startedAt }); // the row first, then the events
  assert.equal(late.after(0, { status: 'running', startedAt, resumed: true }), null);
  const paused = stopwatch();
  const timings = { queued_ms: 100, total_ms: 900 };
  paused.after(0, { status: 'paused', startedAt, timings });
  paused.after(9000, { status: 'running', startedAt, timings, resumed: true });
  assert.equal(paused.after(50, { status: 'running', startedAt, timings, resumed: true }), 850);
});

test('keys respect sliders and focused buttons', () => {
  const at = (key, change = {}) => actionOf({ key, inSlider: false, onControl: false, ...change });
  assert.equal(at('ArrowLeft'), 'previous');
  assert.equal(at('ArrowRight'), 'next');
  assert.equal(at('End'), 'live');
  assert.equal(at(' '), 'toggle');
  assert.equal(at(' ', { onControl: true }), null);
  assert.equal(at('ArrowLeft', { inSlider: true }), null);
  assert.equal(at('Escape'), 'close');
  assert.equal(at('Escape', { shiftKey: true }), 'stop');
  assert.equal(at('?', { shiftKey: true }), 'help');
  assert.equal(at('ArrowLeft', { altKey: true }), null); // browser navigation
});

test('long question gets one message', () => {
  assert.deepEqual(budgetWords({ prompt_tokens: 100, room_tokens: 600, room_images: 3 }), {
    text: 'room for 3 images',
    over: false,
    tooLong: false,
  });
  assert.equal(budgetWords({ prompt_tokens: 600, room_tokens: 150, room_images: 1 }).text, 'room for 1 image');
  const long = budgetWords({ prompt_tokens: 2167, room_tokens: 0, room_images: 0 });
  assert.ok(long.tooLong && long.text.includes('2,167') && !/\b0 tokens/.test(long.text));
  const words = budgetWords({ prompt_tokens: 700, room_tokens: 60, room_images: 0 });
  assert.ok(words.over && !words.tooLong);
  assert.match(
    budgetError({ status: 422, message: 'String should have at most 8000 characters' }).text,
    /8,000 characters/,
  );
  assert.equal(budgetError({ status: 0, message: 'gone' }), null);
});

test('image references are readable', () => {
  assert.equal(
    readQuestion('Is <image_2> darker than <image_1>? <image>'),
    'Is [image 2] darker than [image 1]? <image>',
  );
});

test('missing image is reported in the words of the server', () => {
  const said = budgetError({
    status: 422,
    code: 'bad_place',
    message: 'The text names <image_2>, and 1 image comes with it',
  });
  assert.deepEqual(said, { text: 'The text names <image_2>, and 1 image comes with it', over: true, tooLong: true });
});
