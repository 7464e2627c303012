// The image of the question: drop, paste, choose, photograph or sketch it; next to it, the model's view of it.
//
// Images are sent unchanged to POST /v1/images, the only place that validates them; its messages are shown here. The
// studio receives images, never files.

import { ApiError, api } from '../shared/api.js';
import { h, icon, setAttr, setText, show } from '../shared/dom.js';
import { hasCamera, openCamera } from './camera.js';
import { receiveImages } from './drops.js';
import { openSketch } from './sketch.js';

export class Well {
  #image = null; // {image, own}
  #fit = 'crop';
  #checkpoint = null;
  #upload = 0;

  /** onImage({image, fit}): the user has provided an image. onFit(fit). */
  constructor(element, { onImage, onFit }) {
    this.onImage = onImage;
    this.onFit = onFit;
    this.file = h('input', { type: 'file', accept: 'image/*', class: 'or-sr', tabindex: '-1', 'aria-hidden': 'true' });
    this.image = h('img', { alt: '', hidden: true });
    this.prompt = h('span', { class: 'or-drop-hint' }, icon('upload'), h('span', {}, 'drop, paste or choose an image'));
    this.drop = h(
      'button',
      { type: 'button', class: 'or-drop', onclick: () => this.file.click() },
      this.image,
      this.prompt,
    );
    this.seen = h('img', { alt: '', hidden: true, class: 'or-pixels' });
    this.seenFrame = h('div', { class: 'or-seen' }, this.seen);
    this.seenLabel = h('figcaption', {}, 'the model sees');
    this.fits = ['crop', 'pad'].map((fit) => {
      const button = h(
        'button',
        { type: 'button', class: 'or-chipbutton', 'aria-pressed': fit === 'crop' },
        fit === 'crop' ? 'crop to a square' : 'pad to a square',
      );
      button.addEventListener('click', () => this.setFit(fit));
      return button;
    });
    this.fitRow = h(
      'div',
      { class: 'or-fits', role: 'group', 'aria-label': 'How to make the image square', hidden: true },
      this.fits,
    );
    const source = (name, label, act) =>
      h('button', { type: 'button', class: 'or-source', onclick: act }, icon(name), label);
    this.sources = h(
      'div',
      { class: 'or-sources', role: 'group', 'aria-label': 'Your own image' },
      source('upload', 'upload', () => this.file.click()),
      navigator.clipboard?.read ? source('paste', 'paste', () => this.#pasteButton()) : null,
      hasCamera() ? source('camera', 'camera', () => openCamera((blob) => this.take(blob))) : null,
      source('pen', 'sketch', () => openSketch((blob) => this.take(blob))),
    );
    this.error = h('p', { class: 'or-error', role: 'alert', hidden: true });
    this.honesty = h('p', { class: 'or-honesty', hidden: true });
    element.replaceChildren(
      h(
        'div',
        { class: 'or-well' },
        h('figure', {}, this.drop, h('figcaption', {}, 'image')),
        h('figure', {}, this.seenFrame, this.seenLabel),
      ),
      this.sources,
      this.fitRow,
      this.error,
      this.honesty,
      this.file,
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

  /** Visible and not covered: receives everything dropped or pasted on the page. */
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
      this.fail('There is no image on the clipboard. Copy one first.');
    } catch {
      this.fail('The browser denied access to the clipboard. Press Ctrl+V instead.');
    }
  }

  fail(text) {
    setText(this.error, text ?? '');
    show(this.error, Boolean(text));
  }

  /** Uploads the user's image and shows it as the question's. */
  async take(blob) {
    const turn = ++this.#upload;
    this.fail(null);
    setAttr(this.drop, 'aria-busy', 'true');
    try {
      const image = await api.upload(blob);
      if (turn !== this.#upload) return;
      this.show(image, { own: true });
      this.onImage(image);
    } catch (error) {
      if (turn === this.#upload)
        this.fail(error instanceof ApiError ? error.message : 'This image cannot be read. Try another file.');
    } finally {
      if (turn === this.#upload) setAttr(this.drop, 'aria-busy', null);
    }
  }

  /** Shows `image` as the question's image; `own` = not one of the world's; `fit` makes it square. */
  show(image, { own, alt = 'the question’s image', fit = this.#fit }) {
    if (!own) this.#upload += 1; // a running upload must not replace a later choice
    setAttr(this.drop, 'aria-busy', null);
    this.fail(null);
    this.#image = { image, own };
    this.#choose(fit);
    setAttr(this.image, 'src', image.url);
    this.image.alt = alt;
    setAttr(this.drop, 'aria-label', `${alt}. Choose another image`);
    show(this.image, true);
    show(this.prompt, false);
    this.image.classList.toggle('or-pixels', image.width <= 96);
    show(this.fitRow, own && image.width !== image.height);
    show(this.honesty, own && this.honesty.textContent !== '');
    this.#see();
  }

  /** The note of the checkpoint's card on images outside its world. */
  setCheckpoint(name, notes) {
    this.#checkpoint = name;
    setText(this.honesty, notes ?? '');
    show(this.honesty, Boolean(this.#image?.own && notes));
    this.#see();
  }

  #choose(fit) {
    this.#fit = fit;
    for (const [k, button] of this.fits.entries()) setAttr(button, 'aria-pressed', (k === 0) === (fit === 'crop'));
  }

  setFit(fit) {
    this.#choose(fit);
    this.#see();
    this.onFit(fit);
  }

  #see() {
    if (!this.#image) return;
    const { image } = this.#image;
    const checkpoint = this.#checkpoint ? `&checkpoint=${encodeURIComponent(this.#checkpoint)}` : '';
    const url = api.modelViewUrl(image.image_id, this.#fit) + checkpoint;
    setAttr(this.seen, 'src', url);
    this.seen.alt = 'The image as the model sees it';
  }
}
