// Monitoring of the server and its version; the environment is a fake. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ServerWatch, onBack, wordsOf } from '../../static/viewer/server.js';

const settle = async () => {
  for (let k = 0; k < 10; k += 1) await Promise.resolve();
};

/** A page of version `a` whose server answers with `page.answer`; null = nobody is there. */
function makePage() {
  const page = {
    answer: { phase: 'ready', version: 'a', detail: '' },
    said: [],
    looks: 0,
    timer: null,
    visibilityState: 'visible',
  };
  const document = new EventTarget();
  Object.defineProperty(document, 'visibilityState', { get: () => page.visibilityState });
  page.env = {
    document,
    window: new EventTarget(),
    fetch: async () => {
      page.looks += 1;
      if (page.answer === null) throw new TypeError('failed');
      return { json: async () => page.answer };
    },
    onUnreachable: (listener) => (page.unreachable = listener),
    setTimeout: (callback, ms) => (page.timer = { callback, ms }),
    clearTimeout: () => (page.timer = null),
  };
  page.watch = new ServerWatch({
    version: 'a',
    onState: (state, text) => page.said.push([state, text]),
    env: page.env,
  });
  page.ring = async () => {
    const { callback } = page.timer;
    page.timer = null;
    callback();
    await settle();
  };
  page.show = async (visible) => {
    page.visibilityState = visible ? 'visible' : 'hidden';
    document.dispatchEvent(new Event('visibilitychange'));
    await settle();
  };
  return page;
}

test('outage is reported, retried and recovered', async () => {
  const page = makePage();
  let backs = 0;
  const stop = onBack(() => (backs += 1));
  page.answer = null;
  page.unreachable(); // a request failed
  assert.ok(page.timer.ms < 1000);
  await page.ring();
  assert.deepEqual(
    page.said.map(([state]) => state),
    ['gone'],
  );
  assert.match(page.said[0][1], /unreachable.*keeps trying/);
  const waits = [];
  for (let k = 0; k < 6; k += 1) {
    waits.push(page.timer.ms);
    await page.ring();
  }
  assert.deepEqual(
    waits,
    [...waits].sort((a, b) => a - b),
  );
  assert.ok(waits.at(-1) <= 5000);
  assert.equal(page.said.length, 1); // reported once
  page.answer = { phase: 'starting', version: 'a', detail: 'the engine loads' };
  await page.ring();
  assert.deepEqual(page.said.at(-1), ['starting', 'The server is not ready yet: the engine loads.']);
  assert.equal(backs, 0);
  page.answer = { phase: 'ready', version: 'a', detail: '' };
  await page.ring();
  assert.deepEqual(page.said.at(-1), ['ready', '']);
  assert.equal(backs, 1);
  assert.ok(page.timer.ms > 10_000); // regular checks
  stop();
});

test('listeners are called after a failure that no check has seen', async () => {
  const page = makePage();
  const heard = [];
  const stop = onBack((outage) => heard.push(outage));
  const waits = [];
  for (let k = 0; k < 9; k += 1) {
    page.unreachable();
    page.unreachable(); // one more at the same time
    waits.push(page.timer.ms);
    await page.ring();
  }
  assert.deepEqual(heard, Array(9).fill(false));
  assert.deepEqual(page.said, []); // there was no outage to report
  assert.ok(waits[0] < 1000 && waits[8] > 10_000, waits); // a request that always fails is not repeated at full speed
  await page.ring(); // a regular check
  assert.equal(heard.length, 9);
  page.unreachable();
  assert.equal(page.timer.ms, waits[0]);
  stop();
});

test('newer server is reported once', async () => {
  for (const answer of [
    { phase: 'ready', version: 'b' },
    { phase: 'starting', version: 'b', detail: '' },
  ]) {
    const page = makePage();
    page.answer = answer;
    await page.ring();
    assert.equal(page.watch.state, 'updated');
    assert.match(page.said[0][1], /was updated.*Reload/);
    assert.equal(page.timer, null);
    const { looks } = page;
    page.unreachable();
    await page.show(true);
    assert.equal(page.looks, looks);
  }
});

test('server without a version is no update', async () => {
  const page = makePage();
  page.answer = { phase: 'ready', detail: '' };
  await page.ring();
  assert.equal(page.watch.state, 'ready');
});

test('hidden page sends no requests', async () => {
  const page = makePage();
  page.answer = null;
  await page.show(false);
  await page.ring();
  assert.equal(page.timer, null);
  page.answer = { phase: 'ready', version: 'a' };
  await page.show(true);
  assert.equal(page.watch.state, 'ready');
});

test('proxy page counts as an outage', async () => {
  const page = makePage();
  page.env.fetch = async () => ({ json: async () => JSON.parse('<html>') });
  await page.ring();
  assert.equal(page.watch.state, 'gone');
});

test('every state but ready has a message', () => {
  assert.equal(wordsOf('ready'), '');
  for (const state of ['gone', 'starting', 'stopping', 'failed', 'updated']) {
    for (const detail of ['', 'loading weights', 'loading weights.'])
      assert.match(wordsOf(state, detail), /^The (server|studio) [^.]+\.( [A-Z][^.]+\.)?$/);
  }
});
