// Bodies of POST /v1/traces. Run: node --test tests/static
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { repeated, requestOf, withAnotherSeed } from '../../static/shared/request.js';
import { curlOf } from '../../static/shared/words.js';
import { initialState } from '../../static/viewer/state.js';
import { detailOf, nameOf } from '../../static/shared/fields.js';

const state = (change) => ({ ...initialState('t'), ...change });
const IMAGE = { image_id: 'i', width: 64, height: 64 };
const TASK = { task_id: 'natural-1', question: 'What?', image_id: 'i' };

test('request has only what was given', () => {
  const { partial_images: partials, ...request } = requestOf({
    question: 'What?',
  });
  assert.ok(partials > 0);
  assert.deepEqual(request, {
    question: 'What?',
    images: [],
    mode: 'auto',
    background: true,
  });
  const given = {
    question: 'What?',
    image: IMAGE,
    mode: 'step',
    checkpoint: 'nano',
    sampling: { seed: 0, top_p: null },
  };
  const full = requestOf(given);
  assert.deepEqual(full.images, [{ image_id: 'i' }]);
  assert.deepEqual([full.mode, full.checkpoint, full.sampling], ['step', 'nano', { seed: 0 }]);
});

test('candidates are sent as a choice, and kept when the question is repeated', () => {
  const verify = (candidates) => requestOf({ question: 'What?', candidates }).verify;
  assert.equal(verify(undefined), undefined);
  assert.equal(verify(1), undefined);
  assert.deepEqual(verify(4), { candidates: 4 });
  const drawn = state({ verify: { candidates: 4, verifier: 'base' } });
  assert.deepEqual(repeated(drawn).verify, drawn.verify);
  assert.deepEqual(withAnotherSeed(drawn).verify, drawn.verify);
  assert.equal(repeated(state({})).verify, undefined);
});

test('task is sent only with its own question and image', () => {
  const at = (change) => requestOf({ question: 'What?', image: IMAGE, task: TASK, ...change }).task_id;
  assert.equal(at({}), 'natural-1');
  assert.equal(at({ question: 'What? ' }), undefined);
  assert.equal(at({ image: { ...IMAGE, image_id: 'j' } }), undefined);
  assert.equal(at({ image: null }), undefined);
  assert.equal(at({ task: null }), undefined);
});

test('fit is sent for own images that are not square', () => {
  const images = (change) =>
    requestOf({
      question: 'What?',
      image: IMAGE,
      own: true,
      fit: 'pad',
      ...change,
    }).images;
  assert.deepEqual(images({}), [{ image_id: 'i' }]);
  const wide = { ...IMAGE, width: 96 };
  assert.deepEqual(images({ image: wide }), [{ image_id: 'i', fit: 'pad' }]);
  assert.deepEqual(images({ image: wide, own: false }), [{ image_id: 'i' }]);
});

const ASKED = state({
  question: "What's this?",
  images: [
    { ...IMAGE, fit: 'pad' },
    { image_id: 'j', fit: 'crop' },
  ],
  taskId: 'natural-1',
  checkpoint: 'nano',
  sampling: { temperature: 0, top_p: null, seed: 8 },
  seed: 8,
});

test('curl repeats the request', () => {
  const request = repeated(ASKED);
  assert.deepEqual(request.sampling, { temperature: 0, seed: 8 });
  assert.deepEqual(request.images, [{ image_id: 'i', fit: 'pad' }, { image_id: 'j' }]);
  assert.equal(request.task_id, 'natural-1');
  const line = curlOf('http://127.0.0.1:7860', request);
  assert.match(line, /^curl -s http:\/\/127\.0\.0\.1:7860\/v1\/traces /);
  assert.ok(line.includes("What'\\''s this?"));
});

test('another seed changes nothing but the seed', () => {
  const { partial_images: partials, background, ...request } = withAnotherSeed(ASKED);
  assert.ok(partials > 0 && background);
  const { sampling, ...rest } = repeated(ASKED);
  assert.deepEqual(request, { ...rest, sampling: { temperature: 0 } });
  assert.equal(sampling.seed, 8);
  assert.equal(withAnotherSeed({ ...ASKED, sampling: null }).sampling, undefined);
});

// ---- names of fields in errors

const said = (path, message) => detailOf({ detail: `${path}: ${message}`, errors: [{ path, message }] });

test('messages name the control of a field', () => {
  assert.equal(said('body.sampling.temperature', 'must be at most 5'), 'Temperature: must be at most 5');
  assert.equal(said('body.n', 'must be at most 16'), 'Samples: must be at most 16');
  assert.equal(said('body.edits.0.image.image_id', 'unknown'), 'Image: unknown');
  assert.equal(said('query.q', 'too long'), 'Words: too long');
  assert.equal(said('body.question', 'must not be empty'), 'Question: must not be empty');
});

test('control is not named twice', () => {
  const text = 'the text contains a template mark';
  assert.equal(said('body.edits.0.text', text), text);
  assert.equal(said('body.after_step', 'the trace has 2 complete steps'), 'the trace has 2 complete steps');
});

test('no message shows the body of a request', () => {
  for (const path of ['body.hyperparameters.steps', 'body', 'query', 'body.edits', 'body.images.0.image_id'])
    assert.doesNotMatch(said(path, 'not possible'), /body|query/);
  assert.equal(nameOf('body.hyperparameters.steps'), 'hyperparameters.steps'); // written by hand in a specification
});

test('other details stay as they are', () => {
  assert.equal(detailOf({ detail: 'the queue is full: try again' }), 'the queue is full: try again');
  assert.equal(detailOf({ detail: 'a: b', errors: [{ path: 'body.a', message: 'b' }] }), 'a: b');
  assert.equal(detailOf({}), null);
});

// ---- addresses below the path prefix of a proxy

const ADDRESS = readFileSync(new URL('../../static/shared/address.js', import.meta.url), 'utf8');

/** The module of addresses as if it had come from `url`. */
const from = (url) =>
  import(`data:text/javascript,${encodeURIComponent(ADDRESS.replace('import.meta.url', JSON.stringify(url)))}`);

for (const [folder, prefix] of [
  ['https://lab.example/studio', '/studio'],
  ['https://lab.example/a/static/b', '/a/static/b'],
  ['https://lab.example', ''],
]) {
  for (const version of ['', 'v-0123abcd/']) {
    test(`below ${folder}/${version}`, async () => {
      const { urlOf } = await from(`${folder}/static/${version}shared/address.js`);
      assert.equal(urlOf('/v1/traces?limit=1'), `${prefix}/v1/traces?limit=1`);
      assert.equal(urlOf('/'), `${prefix}/`);
    });
  }
}

test('other addresses stay as they are', async () => {
  const { urlOf } = await from('https://lab.example/studio/static/shared/address.js');
  for (const address of [
    '#x',
    'blob:https://lab.example/1',
    'data:image/png;base64,',
    'https://lab.example/x',
    '',
    null,
  ])
    assert.equal(urlOf(address), address);
});

test('a file has no prefix', async () => {
  const { urlOf } = await from('file:///home/me/static/shared/address.js');
  assert.equal(urlOf('/v1'), '/v1');
});
