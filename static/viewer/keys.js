// Keyboard control of the viewer while the focus is inside it, and the help that `?` opens.

import { h, openDialog } from '../shared/dom.js';

export const KEYS = [
  ['←  →', 'previous step, next step'],
  ['End', 'live: follow the latest step'],
  ['Space', 'pause, or continue to the end'],
  ['c', 'candidates of an image'],
  ['w', 'why: what the answer of an ended trace owes to its images'],
  ['Shift + Esc', 'stop'],
  ['Esc', 'close the top dialog'],
  ['?', 'this list'],
  ['Ctrl + Enter', 'in the question: reason'],
];

/** The action for a key event, or null. Pure, testable without a browser. */
export function actionOf({ key, shiftKey, ctrlKey, metaKey, altKey, inSlider, onControl }) {
  if (ctrlKey || metaKey || altKey) return null;
  if (key === 'Escape') return shiftKey ? 'stop' : 'close';
  if (inSlider) return null;
  if (key === 'ArrowLeft') return 'previous';
  if (key === 'ArrowRight') return 'next';
  if (key === 'End') return 'live';
  if (key === 'c') return 'candidates';
  if (key === 'w') return 'why';
  if (key === '?') return 'help';
  if ((key === ' ' || key === 'Spacebar') && !onControl) return 'toggle';
  return null;
}

export function listenForKeys(element, actions) {
  element.addEventListener('keydown', (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const action = actionOf({
      key: event.key,
      shiftKey: event.shiftKey,
      ctrlKey: event.ctrlKey,
      metaKey: event.metaKey,
      altKey: event.altKey,
      inSlider: Boolean(target?.closest('input, textarea, select')),
      onControl: Boolean(target?.closest('button, a, summary')), // space activates the focused control
    });
    if (actions[action] && actions[action]() !== false) event.preventDefault();
  });
}

export function openHelp() {
  openDialog(
    'Keyboard',
    h('h2', {}, 'Keyboard'),
    h('p', { class: 'or-quiet' }, 'These work while the focus is in the trace. Each also has a button.'),
    h(
      'dl',
      { class: 'or-keys' },
      KEYS.map(([key, what]) => [h('dt', {}, h('kbd', {}, key)), h('dd', {}, what)]),
    ),
  );
}
