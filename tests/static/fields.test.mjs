// Names of the API's fields in messages. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { detailOf, nameOf } from '../../static/shared/fields.js';

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
