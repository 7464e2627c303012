// "Why?": its scales, texts and tables. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { actionOf } from '../../static/viewer/keys.js';
import { requestOf } from '../../static/why/interventions.js';
import { viewIn } from '../../static/why/overlay.js';
import { BINS, attended, binOf, lengthsOf, piecesOf, unlikely } from '../../static/why/scale.js';
import {
  attentionOf,
  changeOf,
  codeWordsOf,
  codesOf,
  givenOf,
  leastLikely,
  natsOf,
  percentOf,
  placesOf,
  relianceOf,
  rowsOf,
  shareOf,
  skippedOf,
  summaryOf,
  tallyOf,
} from '../../static/why/words.js';

const token = (text, logprob = -0.1) => ({ text, logprob });
const image = (step, reliance) => ({ step, reliance });

test('bars are relative to the largest and never negative', () => {
  assert.deepEqual(lengthsOf([2, 1, -3, 4]), [0.5, 0.25, 0, 1]);
  assert.deepEqual(lengthsOf([-1, -2]), [0, 0]);
  assert.deepEqual(lengthsOf([0.0001, 0.004]), [0, 0]); // nothing is not blown up to a full bar
  assert.deepEqual(lengthsOf([]), []);
});

test('probabilities fall into bins that cover all of them', () => {
  const bins = [1, 0.95, 0.9, 0.8, 0.6, 0.3, 0.1].map((p) => binOf(Math.log(p)));
  assert.deepEqual(bins, [0, 0, 0, 1, 2, 3, 4]);
  assert.equal(binOf(-60_000), BINS.length - 1);
  assert.ok(BINS.every(({ alpha }, k) => k === 0 || alpha > BINS[k - 1].alpha));
  assert.deepEqual(
    unlikely([
      [0, null],
      [-0.6, -5],
    ]),
    [
      [BINS[0].alpha, null],
      [BINS[2].alpha, BINS[4].alpha],
    ],
  );
});

test('attention is comparable among images', () => {
  const [one, other] = attended([[[0.04, 0]], [[0.01, 0.04]]]);
  assert.equal(one[0][0], other[0][1]);
  assert.equal(one[0][1], 0);
  assert.ok(Math.abs(other[0][0] - one[0][0] / 2) < 1e-9); // square root of a quarter
  assert.deepEqual(attended([[[0]]]), [[[0]]]);
});

test('tokens cover exactly the shown text', () => {
  const tokens = [token('THOUGHT 1:', 0), token(' I', -1), token(' look', null), token('.', -2), token('<break>', 0)];
  assert.deepEqual(piecesOf('I look.', tokens), [
    { text: 'I', logprob: -1 },
    { text: ' look', logprob: null },
    { text: '.', logprob: -2 },
  ]);
  assert.deepEqual(piecesOf('A', [token('\nFinal Answer:'), token(' A', -3), token('</s>')]), [
    { text: 'A', logprob: -3 }, // not that of “Answer”
  ]);
});

test('characters of several tokens keep their text', () => {
  const tokens = [token('THOUGHT 2: '), token('caf\ufffd', -1), token('\ufffd', -2), token(' 🙂', -3)];
  const pieces = piecesOf('café 🙂', tokens);
  assert.equal(pieces.map(({ text }) => text).join(''), 'café 🙂');
  assert.deepEqual(
    pieces.map(({ logprob }) => logprob),
    [-1, -3],
  );
});

test('text without matching tokens stays whole and untinted', () => {
  assert.deepEqual(piecesOf('I look.', [token('We see.')]), [{ text: 'I look.', logprob: undefined }]);
  assert.deepEqual(piecesOf('', []), []);
});

test('reliance is said in plain words', () => {
  assert.equal(natsOf(-0.1234), '−0.12 nats');
  assert.equal(natsOf(-0.0001), '0.00 nats');
  assert.equal(natsOf(669.36), '669 nats');
  assert.equal(changeOf(3.4), '30 times less likely');
  assert.equal(changeOf(0.6129), '46\u00a0% less likely');
  assert.equal(changeOf(-0.1), '11\u00a0% more likely');
  assert.equal(changeOf(18), 'over 1,000 times less likely');
  assert.equal(changeOf(0.001), 'no difference');
  assert.equal(
    relianceOf('step 2', -1.1),
    'Reliance on step 2: −1.10 nats; hiding it makes the answer 3 times more likely.',
  );
  assert.match(relianceOf('question image', 0), /^Reliance on the question image: 0\.00 nats; .*no difference\.$/);
});

test('summary names the image that counts most', () => {
  assert.match(summaryOf([image(0, 0.1), image(1, 3), image(2, 1)]), /^The answer relies most on step 1: .*20 times/);
  assert.match(summaryOf([image(0, 5), image(1, 3)]), /most on the question image:/);
  assert.match(summaryOf([image(0, -2), image(1, 0.001)]), /does not rely on any single image/);
  assert.equal(summaryOf([]), 'This trace has no images.');
  assert.deepEqual(placesOf([image(0), image(0), image(4)]), ['question image 1', 'question image 2', 'step 4']);
});

test('sampled traces get the control', () => {
  assert.deepEqual(requestOf(['previous', 'blank'], 0), { with: ['previous', 'blank'] });
  assert.deepEqual(requestOf(['previous'], 0.7), { with: ['previous', 'none'] });
});

const effect = (step, kind, changed, more = {}) => ({
  trace_id: `t-${step}-${kind}`,
  step,
  with: kind,
  answer_before: ' red',
  answer_after: changed === null ? null : changed ? 'blue' : 'red',
  changed,
  verdict_before: 'wrong',
  verdict_after: changed === null ? null : changed ? 'right' : 'wrong',
  later_images_changed: changed === null ? null : changed ? 1 : 0,
  ...more,
});
const STEPS = [1, 2].map((index) => ({ index, image: {} }));

test('table fills with the answers of its group', () => {
  const running = { status: 'running', effects: [effect(1, 'previous', true), effect(2, 'previous', null)] };
  assert.deepEqual(rowsOf(running, STEPS), [
    {
      traceId: 't-1-previous',
      step: 1,
      replacedBy: 'the image before',
      control: false,
      status: 'changed',
      before: 'red',
      after: 'blue',
      verdict: 'right',
      chance: false,
      later: '1 changed',
    },
    {
      traceId: 't-2-previous',
      step: 2,
      replacedBy: 'the image before',
      control: false,
      status: 'running',
      before: 'red',
      after: null,
      verdict: null,
      chance: false,
      later: '',
    },
  ]);
  assert.equal(tallyOf(rowsOf(running, STEPS)), '1 of 2 done. The replacement changes the answer.');
  const [, stopped] = rowsOf({ ...running, status: 'completed' }, STEPS);
  assert.equal(stopped.status, 'stopped');
});

test('rows say what became of later images and lost answers', () => {
  const effects = [
    effect(1, 'blank', false),
    effect(2, 'blank', true, { answer_after: null, later_images_changed: 0 }),
  ];
  const [first, last] = rowsOf({ status: 'completed', effects }, STEPS);
  assert.deepEqual([first.status, first.later], ['same', 'unchanged']);
  assert.deepEqual([last.after, last.later], ['no answer', 'none']);
});

test('tally counts changes and sets them against the control', () => {
  const group = (...effects) => rowsOf({ status: 'completed', effects }, STEPS);
  const many = [true, true, true, false].map((changed, k) =>
    effect(1, ['previous', 'blank', 'other', 'reference'][k], changed),
  );
  assert.equal(tallyOf(group(...many)), '3 of 4 replacements change the answer.');
  assert.equal(tallyOf(group(many[0], many[3])), '1 of 2 replacements changes the answer.');
  assert.equal(tallyOf(group(many[3], effect(2, 'blank', false))), 'None of the 2 replacements changes the answer.');
  assert.equal(tallyOf(group(many[3])), 'The replacement does not change the answer.');
  const controlled = group(many[0], effect(1, 'none', true), effect(2, 'previous', true), effect(2, 'none', false));
  assert.deepEqual(
    controlled.map(({ chance }) => chance),
    [true, false, false, false],
  );
  assert.match(
    tallyOf(controlled),
    /^2 of 2 replacements change the answer\. With nothing replaced, the answer also changes in 1 of 2/,
  );
  assert.match(
    tallyOf(group(many[0], effect(1, 'none', false))),
    /With nothing replaced, the answer stays the same\.$/,
  );
  assert.match(tallyOf(group(effect(1, 'blank', null))), /^Stopped/);
  assert.equal(tallyOf([]), '');
});

test('skipped replacements give their reasons', () => {
  const skipped = [{ step: 3, with: 'reference', reason: 'the task has no step 3' }];
  assert.deepEqual(skippedOf({ skipped }), ['Step 3, the reference image: the task has no step 3.']);
  assert.deepEqual(skippedOf({}), []);
});

test('codes of an image are counted and the least likely is placed', () => {
  const grid = [
    [0, -1],
    [null, -3],
  ];
  assert.deepEqual(codesOf(grid), { count: 4, unsure: 2, given: 1, least: { row: 2, column: 2, logprob: -3 } });
  assert.match(
    codeWordsOf(2, grid),
    /^Image of step 2: 2 of 4 codes were under 50\u00a0%\. 1 of the 4 .* row 2, column 2, had 5\u00a0%\.$/,
  );
  assert.match(codeWordsOf(1, [[null, null]]), /step 1 was given/);
  assert.match(codeWordsOf(0, undefined), /question’s image is given/);
  assert.match(codeWordsOf(3, undefined), /no image/);
});

test('least likely words come first and sure ones not at all', () => {
  const parts = [
    { place: 'step 1', pieces: [token(' I', -0.5), token(' look', 0), token('x', null)] },
    { place: 'answer', pieces: [token(' red', -2)] },
  ];
  assert.deepEqual(
    leastLikely(parts).map(({ place, text }) => [place, text]),
    [
      ['answer', 'red'],
      ['step 1', 'I'],
    ],
  );
  assert.equal(leastLikely(parts, 1).length, 1);
});

test('percentages never round a chance to none or to all', () => {
  assert.deepEqual([-8, Math.log(0.346), -0.0001].map(percentOf), ['under 1\u00a0%', '35\u00a0%', 'over 99\u00a0%']);
  assert.deepEqual([0, 0.001, 0.534].map(shareOf), ['0\u00a0%', 'under 1\u00a0%', '53\u00a0%']);
});

test('given steps are named', () => {
  const steps = [
    { index: 1, tokens: [token('a', null)] },
    { index: 2, tokens: [token('b', -1)] },
  ];
  assert.match(givenOf({ steps }), /: step 1\.$/);
  assert.equal(givenOf({ steps: [steps[1]] }), '');
});

test('attention lists every image and the rest', () => {
  const images = [
    { step: 0, share: 0.13 },
    { step: 1, share: 0.5 },
  ];
  assert.equal(
    attentionOf('the answer', images),
    'Attention of the answer: 13\u00a0% to the question image, 50\u00a0% to step 1, 37\u00a0% to words.',
  );
});

test('model view lies in the middle of an image of another shape', () => {
  const wide = { left: 10, top: 0, width: 200, height: 100 };
  assert.deepEqual(viewIn(wide, 'crop'), { left: 60, top: 0, side: 100 });
  assert.deepEqual(viewIn(wide, 'pad'), { left: 10, top: -50, side: 200 });
});

test('key w asks why, but not within a field', () => {
  const key = { key: 'w', shiftKey: false, ctrlKey: false, metaKey: false, altKey: false };
  assert.equal(actionOf({ ...key, inSlider: false, onControl: true }), 'why');
  assert.equal(actionOf({ ...key, inSlider: true, onControl: true }), null);
  assert.equal(actionOf({ ...key, ctrlKey: true, inSlider: false, onControl: false }), null);
});
