// The picture of the question: drop, paste, choose, photograph or sketch it; beside it, what the model sees of it.
//
// A picture goes to POST /v1/images as it is, so there is one place that judges what a picture is, and its words
// ("not a picture", "too large") stand here in red. The studio is told of a picture, never of a file.

import { ApiError, api } from '../shared/api.js';
import { h, icon, setAttr, setText, show } from '../shared/dom.js';
import { hasCamera, openCamera } from './camera.js';
import { receiveImages } from './drops.js';
import { openSketch } from './sketch.js';

export class Well {
  #picture = null; // {image, own}
  #fit = 'crop';
  #checkpoint = null;
  #upload = 0;

  /** onPicture({image, fit}): a person has brought their own picture. onFit(fit). */
  constructor(element, { onPicture, onFit }) {
    this.onPicture = onPicture;
    this.onFit = onFit;
    this.file = h('input', { type: 'file', accept: 'image/*', class: 'or-sr', tabindex: '-1', 'aria-hidden': 'true' });
    this.image = h('img', { alt: '', hidden: true });
    this.prompt = h('span', { class: 'or-drop-hint' }, icon('upload'), h('span', {}, 'drop, paste or choose a picture'));
    this.drop = h('button', { type: 'button', class: 'or-drop', onclick: () => this.file.click() }, this.image, this.prompt);
    this.seen = h('img', { alt: '', hidden: true, class: 'or-pixels' });
    this.seenFrame = h('div', { class: 'or-seen' }, this.seen);
    this.seenLabel = h('figcaption', {}, 'the model sees');
    this.fits = ['crop', 'pad'].map((fit) => {
      const button = h('button', { type: 'button', class: 'or-chipbutton', 'aria-pressed': fit === 'crop' }, fit === 'crop' ? 'cut to a square' : 'fit in whole');
      button.addEventListener('click', () => this.setFit(fit));
      return button;
    });
    this.fitRow = h('div', { class: 'or-fits', role: 'group', 'aria-label': 'How the picture becomes a square', hidden: true }, this.fits);
    const source = (name, label, act) => h('button', { type: 'button', class: 'or-source', onclick: act }, icon(name), label);
    this.sources = h(
      'div', { class: 'or-sources', role: 'group', 'aria-label': 'Your own picture' },
      source('upload', 'upload', () => this.file.click()),
      navigator.clipboard?.read ? source('paste', 'paste', () => this.#pasteButton()) : null,
      hasCamera() ? source('camera', 'camera', () => openCamera((blob) => this.take(blob))) : null,
      source('pen', 'sketch', () => openSketch((blob) => this.take(blob))),
    );
    this.error = h('p', { class: 'or-error', role: 'alert', hidden: true });
    this.honesty = h('p', { class: 'or-honesty', hidden: true });
    element.replaceChildren(
      h(
        'div', { class: 'or-well' },
        h('figure', {}, this.drop, h('figcaption', {}, 'picture')),
        h('figure', {}, this.seenFrame, this.seenLabel),
      ),
      this.sources, this.fitRow, this.error, this.honesty, this.file,
    );
    this.file.addEventListener('change', () => {
      if (this.file.files.length) this.take(this.file.files[0]);
      this.file.value = '';
    });
    this.seen.addEventListener('load', () => {
      setText(this.seenLabel, `the model sees · ${this.seen.naturalWidth}²`);
      show(this.seen, true);
    });
    this.seen.addEventListener('error', () => show(this.seen, false));
    this.#listen();
  }

  get fit() {
    return this.#fit;
  }

  /** On the page and not covered: what is dropped or pasted anywhere is meant for it. */
  get #ready() {
    return this.drop.checkVisibility() && !document.querySelector('dialog[open]');
  }

  #listen() {
    receiveImages({
      ready: () => this.#ready,
      over: (yes) => this.drop.classList.toggle('over', yes),
      take: (blob) => this.take(blob),
      fail: (text) => this.fail(text),
    });
    document.addEventListener('paste', (event) => {
      if (!this.#ready) return;
      const file = [...(event.clipboardData?.files ?? [])][0];
      if (!file) return;
      event.preventDefault();
      this.take(file);
    });
  }

  async #pasteButton() {
    try {
      for (const item of await navigator.clipboard.read()) {
        const type = item.types.find((one) => one.startsWith('image/'));
        if (type) return this.take(await item.getType(type));
      }
      this.fail('There is no picture in the clipboard. Copy one first.');
    } catch {
      this.fail('The browser did not let this page read the clipboard. Press Ctrl+V instead.');
    }
  }

  fail(text) {
    setText(this.error, text ?? '');
    show(this.error, Boolean(text));
  }

  /** Store a picture that a person brought and make it the question's. */
  async take(blob) {
    const turn = ++this.#upload;
    this.fail(null);
    setAttr(this.drop, 'aria-busy', 'true');
    try {
      const image = await api.upload(blob);
      if (turn !== this.#upload) return;
      this.show(image, { own: true });
      this.onPicture(image);
    } catch (error) {
      if (turn === this.#upload) this.fail(error instanceof ApiError ? error.message : 'This picture cannot be read. Try another file.');
    } finally {
      if (turn === this.#upload) setAttr(this.drop, 'aria-busy', null);
    }
  }

  /** Show `image` as the question's picture; `own` = not one of the world's. */
  show(image, { own, alt = 'the question’s picture' }) {
    if (!own) this.#upload += 1; // an upload still under way must not replace what was picked after it
    setAttr(this.drop, 'aria-busy', null);
    this.fail(null);
    this.#picture = { image, own };
    this.image.src = image.url;
    this.image.alt = alt;
    setAttr(this.drop, 'aria-label', `${alt}. Choose another picture`);
    show(this.image, true);
    show(this.prompt, false);
    this.image.classList.toggle('or-pixels', image.width <= 96);
    show(this.fitRow, own && image.width !== image.height);
    show(this.honesty, own && this.honesty.textContent !== '');
    this.#see();
  }

  /** The honest line of the checkpoint's card for pictures that are not of its world. */
  setCheckpoint(name, notes) {
    this.#checkpoint = name;
    setText(this.honesty, notes ?? '');
    show(this.honesty, Boolean(this.#picture?.own && notes));
    this.#see();
  }

  setFit(fit) {
    this.#fit = fit;
    for (const [k, button] of this.fits.entries()) setAttr(button, 'aria-pressed', (k === 0) === (fit === 'crop'));
    this.#see();
    this.onFit(fit);
  }

  #see() {
    if (!this.#picture) return;
    const { image } = this.#picture;
    const checkpoint = this.#checkpoint ? `&checkpoint=${encodeURIComponent(this.#checkpoint)}` : '';
    const url = api.modelViewUrl(image.image_id, this.#fit) + checkpoint;
    if (this.seen.getAttribute('src') !== url) this.seen.src = url;
    this.seen.alt = 'The picture as the model gets it';
  }
}
