// Drops on a page: their content, and that none replaces the page. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { guardPage, imageAddress, imageOf, isText, readable, receiveImages } from '../../static/studio/drops.js';

const HERE = 'http://127.0.0.1:7860';
const transfer = ({ files = [], html = '', list = '' }) => ({
  files,
  types: [...(files.length ? ['Files'] : []), ...(html ? ['text/html'] : []), ...(list ? ['text/uri-list'] : [])],
  getData: (type) => ({ 'text/html': html, 'text/uri-list': list })[type] ?? '',
});
const png = () => new Response(new Blob(['x'], { type: 'image/png' }));

test('image URL comes from markup or list', () => {
  assert.equal(
    imageAddress({ html: '<meta charset="utf-8"><img alt="a > b" src="https://x.example/a.png?b=1&amp;c=2">' }),
    'https://x.example/a.png?b=1&c=2',
  );
  assert.equal(
    imageAddress({
      html: "<a href='/x'><IMG width=1 SRC = 'data:image/png;base64,AA=='></a>",
      list: 'https://x.example/page',
    }),
    'data:image/png;base64,AA==',
  );
  assert.equal(imageAddress({ html: '<img src=/v1/images/i>' }), '/v1/images/i');
  assert.equal(
    imageAddress({ list: '# a comment\r\nhttps://x.example/b.JPEG#top\r\n' }),
    'https://x.example/b.JPEG#top',
  );
  assert.equal(imageAddress({ html: '<a href="/x.html">a link</a>', list: 'https://x.example/x.html' }), null);
  assert.equal(imageAddress({ html: '<b>some text</b>' }), null);
  assert.equal(imageAddress({}), null);
});

test('foreign images are rejected with a message', () => {
  assert.deepEqual(readable('/v1/images/i', HERE), { url: `${HERE}/v1/images/i` });
  assert.deepEqual(readable('data:image/png;base64,AA==', HERE), { url: 'data:image/png;base64,AA==' });
  for (const far of [
    'https://x.example/a.png',
    'http://127.0.0.1:7861/a.png',
    '//x.example/a.png',
    'file:///a.png',
    'javascript:alert(1)',
    'http://[',
  ]) {
    assert.match(readable(far, HERE).error, /Save it or copy it/, far);
  }
  assert.match(readable(null, HERE).error, /Only an image/);
});

test('files win over URLs; other content is rejected', async () => {
  const file = new Blob(['x'], { type: 'image/png' });
  assert.equal(await imageOf(transfer({ files: [file], list: 'https://x.example/a.png' }), HERE), file);
  const asked = [];
  const load = async (url) => {
    asked.push(url);
    return png();
  };
  assert.equal((await imageOf(transfer({ html: '<img src="/v1/images/i">' }), HERE, load)).type, 'image/png');
  assert.deepEqual(asked, [`${HERE}/v1/images/i`]);
  await assert.rejects(imageOf(transfer({ list: 'https://x.example/a.png' }), HERE, load), /another site/);
  await assert.rejects(
    imageOf(
      transfer({ list: `${HERE}/about.png` }),
      HERE,
      async () => new Response('<p>', { headers: { 'content-type': 'text/html' } }),
    ),
    /Only an image/,
  );
  await assert.rejects(
    imageOf(transfer({ list: `${HERE}/gone.png` }), HERE, async () => new Response('', { status: 404 })),
    /Only an image/,
  );
  assert.equal(asked.length, 1);
});

test('only text drops stay with the browser', () => {
  const field = { closest: () => ({}) };
  assert.equal(isText(['text/plain', 'text/html'], field), true);
  assert.equal(isText(['text/plain'], { closest: () => null }), false);
  assert.equal(isText(['text/uri-list', 'text/plain'], field), false);
  assert.equal(isText(['Files'], field), false);
});

const drag = (type, dataTransfer) =>
  Object.assign(new Event(type, { cancelable: true }), { dataTransfer, relatedTarget: null });

test('no drop replaces the page', async () => {
  const page = new EventTarget();
  guardPage(page);
  const got = { taken: [], failed: [], over: [] };
  let ready = false;
  receiveImages({
    ready: () => ready,
    over: (yes) => got.over.push(yes),
    take: (blob) => got.taken.push(blob.type),
    fail: (text) => got.failed.push(text),
  });
  const image = transfer({ files: [new Blob(['x'], { type: 'image/webp' })] });
  const drop = async (what) => {
    for (const type of ['dragover', 'drop']) {
      const event = drag(type, what);
      page.dispatchEvent(event);
      assert.equal(event.defaultPrevented, true);
    }
    await new Promise((resolve) => setImmediate(resolve));
  };
  await drop(image);
  assert.equal(image.dropEffect, 'none');
  assert.deepEqual(got.taken, []);
  ready = true;
  await drop(image);
  assert.equal(image.dropEffect, 'copy');
  assert.deepEqual(got.taken, ['image/webp']);
  await drop(transfer({ list: 'https://x.example/a.png' }));
  await drop(transfer({ html: '<b>words</b>' }));
  assert.equal(got.failed.length, 2);
  assert.equal(got.over.at(-1), false);
});
