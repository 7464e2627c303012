// Small DOM helpers. Data enters the page as text nodes and attributes only, never as markup.

import { urlOf } from './address.js';

const ADDRESSES = new Set(['href', 'src']);
const textOf = (name, value) => String(ADDRESSES.has(name) ? urlOf(value) : value);

/** `h('button', {class: 'x', 'aria-label': 'y', onclick: f}, 'text', child)`. Skips null, false and undefined. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith('aria-'))
      element.setAttribute(name, String(value)); // false is a valid value here
    else if (value === false) continue;
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : textOf(name, value));
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** Resolves to the first matching element, now or once it is added: Gradio's components may load later. */
export function appears(selector) {
  const found = document.querySelector(selector);
  if (found) return Promise.resolve(found);
  return new Promise((resolve) => {
    const observer = new MutationObserver(() => {
      const element = document.querySelector(selector);
      if (!element) return;
      observer.disconnect();
      resolve(element);
    });
    observer.observe(document.documentElement, { childList: true, subtree: true });
  });
}

/**
 * The element of a component that is built once, however often Gradio recreates its container: `into(element, draw)`
 * draws once and later moves the result, with its listeners, into the new element.
 */
export class Place {
  element = null;

  into(element, draw) {
    const before = this.element;
    this.element = element;
    if (before === null) return draw(element);
    if (before !== element) element.replaceChildren(...before.childNodes);
    return undefined;
  }
}

/** Sets text only when it differs, so that a selection in the node survives. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** null and undefined remove the attribute; so does false, except for aria- attributes. */
export function setAttr(element, name, value) {
  if (value === null || value === undefined || (value === false && !name.startsWith('aria-'))) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
  } else if (element.getAttribute(name) !== textOf(name, value)) {
    element.setAttribute(name, textOf(name, value));
  }
}

export const show = (element, visible) => {
  if (element.hidden === visible) element.hidden = !visible;
};

const PATHS = {
  box: 'M3.5 3.5h9v9h-9z',
  zoom: 'M7 2.8a4.2 4.2 0 1 0 0 8.4a4.2 4.2 0 0 0 0-8.4zM10.2 10.2l3.3 3.3M7 5.2v3.6M5.2 7h3.6',
  line: 'M3 13L13 3',
  mark: 'M8 5.2a2.8 2.8 0 1 0 0 5.6a2.8 2.8 0 0 0 0-5.6zM8 1.5v2M8 12.5v2M1.5 8h2M12.5 8h2',
  predict: 'M2.5 8h10M8.5 4l4 4l-4 4',
  left: 'M10 3L5 8l5 5',
  right: 'M6 3l5 5l-5 5',
  live: 'M3 3l5 5l-5 5M12.5 3v10',
  close: 'M4 4l8 8M12 4l-8 8',
  trash: 'M3 4.5h10M6.5 4.5v-2h3v2M4.5 4.5l.6 9h5.8l.6-9',
  link: 'M6.5 9.5l3-3M7 4.8l1.4-1.4a2.8 2.8 0 0 1 4 4L11 8.8M9 11.2l-1.4 1.4a2.8 2.8 0 0 1-4-4L5 7.2',
  dice: 'M3 3h10v10H3zM5.7 5.7h.01M10.3 10.3h.01M8 8h.01M10.3 5.7h.01M5.7 10.3h.01',
  upload: 'M8 11V3M4.8 6L8 2.8L11.2 6M3 10.5v2.7h10v-2.7',
  camera: 'M2.5 5h2.6l1-1.6h3.8l1 1.6h2.6v8h-11zM8 7a2.2 2.2 0 1 0 0 4.4A2.2 2.2 0 0 0 8 7z',
  pen: 'M3 13l.7-3L11 2.7L13.3 5L6 12.3zM9.5 4.2l2.3 2.3',
  moon: 'M13 9.6A5.6 5.6 0 0 1 6.4 3a5.6 5.6 0 1 0 6.6 6.6z',
  full: 'M3 6.500V3h3.500M9.500 3H13v3.500M13 9.500V13H9.500M6.500 13H3V9.500',
  undo: 'M4.5 3L2.5 5.5L5 8M2.8 5.5H9.500a3.6 3.6 0 0 1 0 7.2H5',
  save: 'M8 3v8M4.8 8L8 11.2L11.200 8M3 10.500v2.700h10v-2.700',
  star: 'M8 2l1.800 3.900l4.200.500l-3.100 2.900l.800 4.200L8 11.400L4.300 13.500l.800-4.200L2 6.400l4.200-.500z',
  down: 'M10.500 3H5.300a1.500 1.500 0 0 0-1.450 1.100L2.900 7.600A1.200 1.200 0 0 0 4.050 9.200H7l-.600 2.900c-.200 1 .900 1.500 1.400.800l2.700-3.900zM10.500 3h2.700v6h-2.700',
  paste: 'M5.500 3.500H3.500v10h9v-10h-2M5.500 2.500h5v2.500h-5z',
};

/** A 16-px line icon in the current text colour. */
export function icon(name) {
  const ns = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(ns, 'svg');
  svg.setAttribute('viewBox', '0 0 16 16');
  svg.setAttribute('class', 'or-icon');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(ns, 'path');
  path.setAttribute('d', PATHS[name]);
  svg.append(path);
  return svg;
}

/** Copies `text`; resolves to whether it worked. Also works without a secure context. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h('textarea', { readonly: true, class: 'or-sr' });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand('copy');
    area.remove();
    return done;
  }
}

/** A button that copies `text()` and confirms in place, without changing its width. */
export function copyButton(label, text, said = () => {}) {
  const face = h('span', {}, label);
  const done = h('span', { class: 'or-copied' }, 'copied');
  const button = h('button', { type: 'button', class: 'or-link' }, face, done);
  let timer = 0;
  button.addEventListener('click', async () => {
    const ok = await copyText(await text());
    done.textContent = ok ? 'copied' : 'not copied';
    said(ok ? 'Copied.' : 'The browser did not allow copying.');
    button.classList.add('done');
    clearTimeout(timer);
    timer = setTimeout(() => button.classList.remove('done'), 1600);
  });
  return button;
}

/** Saves a Blob as a file of this name, as a link to it would. */
export function saveBlob(blob, name) {
  const href = URL.createObjectURL(blob);
  h('a', { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

/** A button for irreversible actions: the first click asks `question`, the second acts; leaving the button resets. */
export function sureButton(label, question, act, ...face) {
  const button = h(
    'button',
    { type: 'button', class: 'or-round or-delete', 'aria-label': label, title: label },
    ...face,
  );
  let armed = false;
  const reset = () => {
    armed = false;
    button.classList.remove('sure');
    button.replaceChildren(...face);
    button.setAttribute('aria-label', label);
  };
  button.addEventListener('blur', reset);
  button.addEventListener('click', () => {
    if (armed) return act();
    armed = true;
    button.classList.add('sure');
    button.replaceChildren(question);
    button.setAttribute('aria-label', `Really? ${label}`);
    return undefined;
  });
  return button;
}

/** A modal dialog that closes on Esc and on outside clicks, and restores the focus. */
export function openDialog(label, ...content) {
  const opener = document.activeElement;
  const close = h(
    'button',
    { type: 'button', class: 'or-round or-dialog-close', 'aria-label': 'Close' },
    icon('close'),
  );
  const dialog = h('dialog', { class: 'or-dialog', 'aria-label': label }, close, ...content);
  close.addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());
  dialog.addEventListener('keydown', (event) => event.stopPropagation());
  dialog.addEventListener('close', () => {
    dialog.remove();
    if (opener instanceof HTMLElement) opener.focus({ preventScroll: true });
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
