// The stream of one trace: order, resume, turns; its environment is a fake. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { PAUSED_MS, TraceStream } from '../../static/shared/events.js';
import { parser } from '../../static/shared/sse.js';

const settle = async () => {
  for (let k = 0; k < 20; k += 1) await Promise.resolve();
};

/** A browser with one tab: its clock, its EventSources, and a server that holds `log`. */
function makeTab({ channels = null, log = [] } = {}) {
  const clock = { now: 0, timers: [] };
  const tab = {
    log,
    sources: [],
    frames: [],
    clock,
    visibilityState: 'visible',
    fetches: [],
    row: { status: 'running' },
    up: true,
  };
  class Source extends EventTarget {
    constructor(url) {
      super();
      this.url = url;
      this.closed = false;
      tab.sources.push(this);
    }

    close() {
      this.closed = true;
    }

    send(seq, type, data = {}) {
      if (!this.closed)
        this.dispatchEvent(Object.assign(new Event(type), { lastEventId: String(seq), data: JSON.stringify(data) }));
    }
  }
  const document = new EventTarget();
  Object.defineProperty(document, 'visibilityState', { get: () => tab.visibilityState });
  tab.window = new EventTarget();
  tab.document = document;
  tab.env = {
    document,
    window: tab.window,
    channel: channels,
    EventSource: Source,
    frame: (callback) => tab.frames.push(callback),
    setTimeout: (callback, ms) => {
      const timer = { at: clock.now + ms, callback };
      clock.timers.push(timer);
      return timer;
    },
    clearTimeout: (timer) => (clock.timers = clock.timers.filter((one) => one !== timer)),
    fetch: async (url, options = {}) => {
      tab.fetches.push(url);
      if (!tab.up) throw new TypeError('failed');
      if (!url.includes('/events')) return new Response(JSON.stringify(tab.row), { status: tab.row ? 200 : 404 });
      const after = Number(new URL(url, 'http://x').searchParams.get('after'));
      const text = tab.log
        .slice(after)
        .map(([type, data], k) => `id: ${after + k + 1}\nevent: ${type}\ndata: ${JSON.stringify(data)}\n\n`)
        .join('');
      let cancelled;
      const body = new ReadableStream({
        start(controller) {
          controller.enqueue(new TextEncoder().encode(text));
          options.signal?.addEventListener(
            'abort',
            () => !cancelled && controller.error(new DOMException('', 'AbortError')),
          );
        },
        cancel() {
          cancelled = true;
        },
      });
      return new Response(body, { headers: { 'content-type': 'text/event-stream' } });
    },
  };
  tab.advance = async (ms) => {
    const end = clock.now + ms;
    for (;;) {
      await settle();
      clock.timers.sort((a, b) => a.at - b.at);
      if (!clock.timers.length || clock.timers[0].at > end) break;
      const timer = clock.timers.shift();
      clock.now = timer.at;
      timer.callback();
    }
    clock.now = end;
    await settle();
  };
  tab.paint = () => tab.frames.splice(0).forEach((callback) => callback());
  tab.show = (visible) => {
    tab.visibilityState = visible ? 'visible' : 'hidden';
    document.dispatchEvent(new Event('visibilitychange'));
  };
  tab.open = (options = {}) => {
    tab.batches = [];
    tab.words = [];
    tab.stream = new TraceStream({
      traceId: 't',
      fresh: true,
      env: tab.env,
      onEvents: (events) => tab.batches.push(events.map((event) => event.seq)),
      onConnection: (word) => tab.words.push(word),
      ...options,
    });
  };
  Object.defineProperty(tab, 'source', { get: () => tab.sources[tab.sources.length - 1] });
  Object.defineProperty(tab, 'seen', { get: () => tab.batches.flat() });
  return tab;
}

/** BroadcastChannels of one name: `join()` is one of them, and a message reaches all others in order. */
function makeChannels() {
  const open = new Set();
  return () => {
    const channel = {
      onmessage: null,
      postMessage: (data) => {
        for (const other of open)
          if (other !== channel) queueMicrotask(() => open.has(other) && other.onmessage?.({ data }));
      },
      close: () => open.delete(channel),
    };
    open.add(channel);
    return channel;
  };
}

const liveStreams = (tabs) => tabs.map((tab) => tab.sources.filter((source) => !source.closed).length);

test('events of a frame form one batch', async () => {
  const tab = makeTab();
  tab.open();
  assert.equal(tab.source.url, '/v1/traces/t/events?after=0');
  tab.source.send(1, 'trace.queued');
  tab.source.send(2, 'trace.started');
  assert.deepEqual(tab.batches, []);
  tab.paint();
  tab.source.send(3, 'step.started', { step: 1 });
  tab.paint();
  assert.deepEqual(tab.batches, [[1, 2], [3]]);
});

test('stored events form one batch', async () => {
  const tab = makeTab();
  tab.open({ fresh: false });
  for (let seq = 1; seq <= 100; seq += 1) tab.source.send(seq, 'text.delta', { step: 1, text: 'x' });
  tab.paint();
  assert.deepEqual(tab.batches, []);
  await tab.advance(60);
  assert.equal(tab.batches.length, 1);
  assert.equal(tab.seen.length, 100);
});

test('duplicate events are dropped', () => {
  const tab = makeTab();
  tab.open();
  for (const seq of [1, 2, 2, 1, 3]) tab.source.send(seq, 'text.delta');
  tab.paint();
  assert.deepEqual(tab.seen, [1, 2, 3]);
});

test('gap is read again once', () => {
  const tab = makeTab();
  tab.open();
  tab.source.send(1, 'trace.queued');
  tab.source.send(3, 'step.started');
  tab.paint();
  assert.deepEqual(tab.seen, [1]);
  assert.equal(tab.sources.length, 2);
  assert.equal(tab.source.url, '/v1/traces/t/events?after=1');
  tab.source.send(3, 'step.started');
  tab.paint();
  assert.deepEqual(tab.seen, [1, 2, 3]);
});

test('dropped connection resumes after the last event', async () => {
  const tab = makeTab();
  tab.open();
  tab.source.send(1, 'trace.queued');
  tab.source.onerror();
  assert.ok(tab.sources[0].closed);
  await tab.advance(200);
  assert.equal(tab.source.url, '/v1/traces/t/events?after=1');
  assert.deepEqual(tab.seen, [1]);
});

test('outage is reported until the server returns', async () => {
  const tab = makeTab();
  tab.open();
  tab.up = false;
  tab.source.onerror();
  await tab.advance(5000);
  assert.equal(tab.words.at(-1), 'lost');
  tab.up = true;
  await tab.advance(8000);
  tab.source.onopen();
  assert.equal(tab.words.at(-1), 'live');
});

test('deleted trace is unknown, ended one closes', async () => {
  const gone = makeTab();
  gone.open();
  gone.row = null;
  gone.source.onerror();
  await gone.advance(200);
  assert.equal(gone.words.at(-1), 'unknown');
  const ended = makeTab();
  ended.open();
  ended.row = { status: 'completed' };
  ended.source.onerror(); // looks like the 204 after the last event
  await ended.advance(200);
  ended.source.onerror();
  await ended.advance(1000);
  assert.equal(ended.words.at(-1), 'ended');
});

test('terminal event closes the stream', () => {
  const tab = makeTab();
  tab.open();
  tab.source.send(1, 'trace.cancelled', { reason: 'user' });
  tab.paint();
  assert.ok(tab.source.closed);
  assert.equal(tab.words.at(-1), 'ended');
});

test('hidden tab disconnects and resumes when shown', () => {
  const tab = makeTab();
  tab.open();
  tab.source.send(1, 'trace.queued');
  tab.show(false);
  assert.ok(tab.source.closed);
  assert.deepEqual(tab.seen, [1]); // collected events are kept although no frame came
  tab.show(true);
  assert.equal(tab.source.url, '/v1/traces/t/events?after=1');
  assert.equal(tab.sources.filter((source) => !source.closed).length, 1);
});

test('paused trace disconnects after 30 s', async () => {
  const tab = makeTab();
  tab.open();
  tab.source.send(1, 'trace.paused', { step: 1 });
  tab.paint();
  await tab.advance(PAUSED_MS - 1);
  assert.ok(!tab.source.closed);
  await tab.advance(1);
  assert.ok(tab.source.closed);
  tab.document.dispatchEvent(new Event('pointerdown'));
  assert.ok(!tab.source.closed);
  await tab.advance(PAUSED_MS); // nothing new: it pauses again
  assert.ok(tab.source.closed);
  tab.stream.wake();
  tab.source.send(2, 'trace.resumed', { mode: 'auto' });
  tab.paint();
  await tab.advance(10 * PAUSED_MS);
  assert.ok(!tab.source.closed);
});

test('eight tabs share one stream', async () => {
  const channels = makeChannels();
  const log = [
    ['trace.queued', {}],
    ['trace.started', {}],
  ];
  const tabs = [];
  for (let k = 0; k < 8; k += 1) {
    tabs.push(makeTab({ channels, log }));
    tabs[k].open();
    await settle();
  }
  assert.deepEqual(liveStreams(tabs), [0, 0, 0, 0, 0, 0, 0, 1]);
  for (const tab of tabs.slice(0, 7)) {
    await tab.advance(200);
    tab.paint();
    assert.deepEqual(tab.seen, [1, 2]);
  }
  tabs[2].document.dispatchEvent(new Event('keydown'));
  await settle();
  assert.deepEqual(liveStreams(tabs), [0, 0, 1, 0, 0, 0, 0, 0]);
  assert.equal(tabs[2].source.url, '/v1/traces/t/events?after=2');
  tabs[2].source.send(3, 'trace.cancelled', {});
  tabs[2].paint();
  await settle();
  await tabs[5].advance(300); // the turn is free: the first timer takes it
  assert.deepEqual(liveStreams(tabs), [0, 0, 0, 0, 0, 1, 0, 0]);
  for (const tab of tabs) await tab.advance(300);
  assert.deepEqual(liveStreams(tabs), [0, 0, 0, 0, 0, 1, 0, 0]);
});

test('tab with a slow clock gets its turn', async () => {
  const channels = makeChannels();
  const tabs = [makeTab({ channels }), makeTab({ channels })];
  tabs[0].env.now = () => 5000;
  tabs[1].env.now = () => 1000;
  for (const tab of tabs) tab.open();
  await settle();
  assert.deepEqual(liveStreams(tabs), [1, 0]);
  tabs[1].document.dispatchEvent(new Event('keydown'));
  await settle();
  assert.deepEqual(liveStreams(tabs), [0, 1]);
});

test('poll releases its connection and slows down', async () => {
  const channels = makeChannels();
  const looker = makeTab({ channels, log: [['trace.queued', {}]] });
  const { fetch } = looker.env;
  let busy = true;
  looker.env.fetch = async (url, options) => {
    const response = await fetch(url, options);
    if (!busy || !url.includes('/events')) return response;
    // one comment every 50 ms, endlessly
    const body = new ReadableStream({
      start(controller) {
        const more = () => {
          if (looker.cancelled) return;
          controller.enqueue(new TextEncoder().encode(': more\n\n'));
          looker.env.setTimeout(more, 50);
        };
        looker.cancelled = false;
        more();
      },
      cancel() {
        looker.cancelled = true;
      },
    });
    return new Response(body, { headers: { 'content-type': 'text/event-stream' } });
  };
  looker.open();
  makeTab({ channels }).open(); // takes the turn
  await settle();
  await looker.advance(1000);
  assert.equal(looker.cancelled, true);
  busy = false;
  await looker.advance(60_000);
  looker.paint();
  assert.deepEqual(looker.seen, [1]);
  const before = looker.fetches.length;
  await looker.advance(60_000);
  const looks = looker.fetches.length - before;
  assert.ok(looks >= 12 && looks <= 20, `${looks} look-ins a minute`);
});

test('parser accepts frames split anywhere', () => {
  const text = ': hello\r\n\r\nid: 1\nevent: a\ndata: {"x":\ndata: 1}\n\nid: 2\r\nevent: b\r\ndata:2\r\n\r\ndata: cut';
  for (let cut = 0; cut <= text.length; cut += 1) {
    const seen = [];
    const feed = parser((event) => seen.push(event));
    feed(text.slice(0, cut));
    feed(text.slice(cut));
    assert.deepEqual(seen, [
      { id: '1', event: 'a', data: '{"x":\n1}' },
      { id: '2', event: 'b', data: '2' },
    ]);
  }
});

test('awkward text survives any split', () => {
  const texts = ['\u2028\u2029\u0085', 'a\u0000b\u001b[31m', '\ufeffx', 'a: b', ' lead', '\\r\\n', '😀 é \u202e'];
  for (const ending of ['\n', '\r\n', '\r']) {
    const wire =
      `\ufeff: hello${ending}${ending}` +
      texts
        .map(
          (text, k) =>
            `id: ${k + 1}${ending}event: text.delta${ending}data: ${JSON.stringify({ text })}${ending}${ending}`,
        )
        .join('');
    for (const size of [1, 2, 3, 5, 1000]) {
      const seen = [];
      const feed = parser((event) => seen.push(event));
      for (let at = 0; at < wire.length; at += size) feed(wire.slice(at, at + size));
      assert.deepEqual(
        seen.map((event) => JSON.parse(event.data).text),
        texts,
        `${JSON.stringify(ending)} ${size}`,
      );
      assert.deepEqual(
        seen.map((event) => event.id),
        texts.map((_, k) => String(k + 1)),
      );
    }
  }
});

test('id with NUL is ignored', () => {
  const seen = [];
  parser((event) => seen.push(event))('id: 1\ndata: {}\n\nid: 2\0\ndata: {}\n\n');
  assert.deepEqual(
    seen.map((event) => event.id),
    ['1', '1'],
  );
});
