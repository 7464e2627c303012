// Handling of drops on a page. By default a browser opens a dropped file in place of the page, losing all input. Here
// nothing is opened, and images go to the registered receiver.

import { urlOf } from '../shared/address.js';

const IMAGE_IN_MARKUP = /<img\b(?:[^>"']|"[^"]*"|'[^']*')*?\ssrc\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))/i;
const WRITABLE =
  'input:not([type=button]):not([type=checkbox]):not([type=file]):not([type=range]), textarea, [contenteditable=true]';

const ELSEWHERE =
  'This image is on another site, which this page cannot read. Save it or copy it, then upload or paste it here.';
const NO_IMAGE = 'Only an image can be dropped here.';

const unescaped = (text) =>
  text
    .replaceAll('&quot;', '"')
    .replaceAll('&#39;', "'")
    .replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>')
    .replaceAll('&amp;', '&');

/** The URL of an image dragged from another page, or null. */
export function imageAddress({ html = '', list = '' }) {
  const found = IMAGE_IN_MARKUP.exec(html);
  if (found) return unescaped(found[1] ?? found[2] ?? found[3]).trim() || null;
  const first =
    list
      .split(/\r?\n/)
      .map((line) => line.trim())
      .find((line) => line && !line.startsWith('#')) ?? '';
  return /^(data:image\/|blob:)/i.test(first) || /\.(png|jpe?g|webp|gif|bmp|avif|heic|svg)([?#]|$)/i.test(first)
    ? first
    : null;
}

/** `{url}` of an image that this page may read, or an `{error}` message. */
export function readable(address, origin) {
  if (!address) return { error: NO_IMAGE };
  if (/^data:image\//i.test(address)) return { url: address };
  try {
    const url = new URL(address, origin);
    if (url.origin === origin) return { url: url.href };
  } catch {
    // not a URL
  }
  return { error: ELSEWHERE };
}

/** Resolves to the dropped image as a Blob; rejects with an Error message. */
export async function imageOf(transfer, origin = globalThis.location?.origin, load = (url) => fetch(urlOf(url))) {
  const [file] = transfer.files;
  if (file) return file; // the server validates it
  const address = imageAddress({ html: transfer.getData('text/html'), list: transfer.getData('text/uri-list') });
  const { url, error } = readable(address, origin);
  if (error) throw new Error(error);
  const response = await load(url);
  const blob = response.ok ? await response.blob() : null;
  if (!blob?.type.startsWith('image/')) throw new Error(NO_IMAGE);
  return blob;
}

/** Whether to allow the browser's default: dropping text into a text field. */
export function isText(types, target) {
  const foreign = types.includes('Files') || types.includes('text/uri-list'); // a file, an image or a link
  return !foreign && Boolean(target?.closest?.(WRITABLE));
}

const receivers = new Set();

/**
 * Register a receiver for dropped images. ready(): whether it accepts one now. over(bool): a drag has entered or left
 * the page. take(blob), fail(text).
 */
export const receiveImages = (receiver) => receivers.add(receiver);

const receiver = () => [...receivers].find((one) => one.ready()) ?? null;

/** Prevents drops from replacing the page. */
export function guardPage(page = document) {
  const over = (yes) => receivers.forEach((one) => one.over(yes && one === receiver()));
  page.addEventListener('dragover', (event) => {
    const types = [...(event.dataTransfer?.types ?? [])];
    if (isText(types, event.target)) return;
    event.preventDefault();
    if (event.dataTransfer) event.dataTransfer.dropEffect = receiver() ? 'copy' : 'none';
    over(true);
  });
  page.addEventListener('dragleave', (event) => event.relatedTarget === null && over(false));
  page.addEventListener('dragend', () => over(false));
  page.addEventListener('drop', async (event) => {
    if (isText([...(event.dataTransfer?.types ?? [])], event.target)) return;
    event.preventDefault();
    over(false);
    const taker = receiver();
    if (!taker || !event.dataTransfer) return;
    try {
      taker.take(await imageOf(event.dataTransfer));
    } catch (error) {
      taker.fail(error.message);
    }
  });
}
