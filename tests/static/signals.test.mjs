// What modules tell each other whichever of them loads first: signals and the bridge. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Signal } from '../../static/shared/signal.js';
import { titleOf } from '../../static/shared/title.js';
import { addressOf, filtersOf } from '../../static/studio/filters.js';

test('late listener gets the current value', () => {
  const signal = new Signal();
  const heard = [];
  signal.listen((value) => heard.push(['early', value]));
  signal.say('a');
  const stop = signal.listen((value) => heard.push(['late', value]));
  signal.say(null); // a value like any other
  stop();
  signal.say('c');
  assert.deepEqual(heard, [
    ['early', 'a'],
    ['late', 'a'],
    ['early', null],
    ['late', null],
    ['early', 'c'],
  ]);
  signal.clear();
  signal.listen((value) => heard.push(['last', value]));
  assert.equal(heard.length, 5);
});

test('failed request is reported to a watch that starts later', async () => {
  const { onUnreachable, reach } = await import('../../static/shared/api.js');
  const answers = [() => Promise.reject(new TypeError('failed')), () => Promise.resolve({ status: 200 })];
  globalThis.fetch = () => answers.shift()();
  await assert.rejects(reach('/v1/tasks'));
  let told = 0;
  onUnreachable(() => (told += 1));
  assert.equal(told, 1);
  await reach('/v1/tasks');
  onUnreachable(() => (told += 1));
  assert.equal(told, 1);
});

test('calls before a part is ready are made once it is', async () => {
  globalThis.omniR1 = [['studio', 'start', 'auto']]; // Gradio's components push before the module is loaded
  const { serve } = await import('../../static/shared/bridge.js');
  const done = [];
  globalThis.omniR1.push(['studio', 'stop']);
  globalThis.omniR1.push(['gallery', 'open', 1]);
  serve('studio', { start: (mode) => done.push(mode), stop: () => done.push('stop') });
  globalThis.omniR1.push(['studio', 'start', 'step']);
  assert.deepEqual(done, ['auto', 'stop', 'step']);
  serve('gallery', { open: (at) => done.push(at) });
  assert.equal(done.at(-1), 1);
  assert.deepEqual(Object.keys(globalThis.omniR1.parts), ['studio', 'gallery']);
});

test('title names the page or the question', () => {
  assert.equal(titleOf({}), 'Omni-R1 Studio');
  assert.equal(titleOf({ page: 'Gallery' }), 'Gallery · Omni-R1 Studio');
  assert.equal(titleOf({ question: ' What\n is it? ', live: true }), '● What is it? · Omni-R1 Studio');
  const long = titleOf({ question: 'word '.repeat(99) });
  assert.ok(long.length < 90 && long.includes('…'));
});

test('filters and address are the same', () => {
  const filters = { q: 'red & blue', slice: 'natural', verdict: 'wrong', checkpoint: 'nano-base' };
  assert.deepEqual(filtersOf(addressOf(filters).split('?')[1]), filters);
  assert.equal(addressOf({}), '/gallery');
  assert.deepEqual(filtersOf('?slice=magic&verdict=&q=%20&checkpoint=gone&limit=7'), { checkpoint: 'gone' });
});
