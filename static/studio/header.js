// The page header: navigation, active checkpoint, theme switch, server status.

import { api } from '../shared/api.js';
import { h, icon, setAttr, show } from '../shared/dom.js';
import { Signal } from '../shared/signal.js';
import { setTitle } from '../shared/title.js';
import { ServerWatch, onBack } from '../viewer/server.js';
import { guardPage } from './drops.js';
import { applyTheme, isDark, toggleTheme } from './theme.js';

const LAST = 'omni-r1-trace';
const CHECKPOINT = 'omni-r1-checkpoint';

const stored = (key) => {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
};

function store(key, value) {
  try {
    if (value) sessionStorage.setItem(key, value);
    else sessionStorage.removeItem(key);
  } catch {
    // without storage the choice is not remembered
  }
}

/** The trace that the Studio link leads to. */
export const rememberTrace = (traceId) => store(LAST, traceId);

/** The trace was deleted: the Studio link leads to a new question, if it led to this trace. */
export function forgetTrace(traceId) {
  if (stored(LAST) !== traceId) return;
  store(LAST, null);
  for (const link of document.querySelectorAll('a[data-link=studio]')) setAttr(link, 'href', '/');
}

/** The checkpoint for new traces; null = the active one. */
export const chosenCheckpoint = () => stored(CHECKPOINT);

const checkpoint = new Signal();

/** Calls `listener(name)` with the checkpoint for new traces: at once if it is known, and on changes. */
export const onCheckpoint = (listener) => checkpoint.listen(listener);

let menu = null; // the select in the header

async function fillCheckpoints() {
  const [{ data }, ready] = await Promise.all([api.checkpoints(), api.ready()]);
  const usable = data.filter((one) => !one.problem);
  const active = data.find((one) => one.active)?.id ?? ready.checkpoint;
  const chosen = usable.some((one) => one.id === chosenCheckpoint()) ? chosenCheckpoint() : active;
  store(CHECKPOINT, chosen === active ? null : chosen);
  menu.dataset.active = active ?? '';
  menu.replaceChildren(
    ...usable.map((one) => {
      const version = one.weight_version ?? (one.id === active ? ready.weight_version : null);
      return h('option', { value: one.id, selected: one.id === chosen }, version ? `${one.id} · v${version}` : one.id);
    }),
  );
  menu.value = chosen;
  menu.disabled = usable.length < 2;
  checkpoint.say(chosen);
}

/** Reloads the checkpoints after a change. `forget` drops this page's choice. */
export async function refreshCheckpoints({ forget = false } = {}) {
  if (forget) store(CHECKPOINT, null);
  if (!menu) return;
  await fillCheckpoints().then(
    () => show(menu, true),
    () => show(menu, false), // the page reports the unreachable server
  );
}

let watch = null;
const note = { element: null, state: 'ready', text: '' };

/** The note below the header for an unreachable or updated server. */
function drawNote() {
  const { element, state, text } = note;
  const reload = h('button', { type: 'button', class: 'or-secondary', onclick: () => location.reload() }, 'Reload');
  setAttr(element, 'data-state', state);
  element.replaceChildren(h('span', {}, text), ...(state === 'updated' ? [reload] : []));
  show(element, Boolean(text));
}

function watchServer(version) {
  guardPage();
  watch = new ServerWatch({ version, onState: (state, text) => drawNote(Object.assign(note, { state, text })) });
  onBack(() => refreshCheckpoints());
}

export function mountHeader(element) {
  applyTheme();
  const { page, title, version } = element.querySelector('[data-page]').dataset;
  setTitle({ page: title });
  note.element = h('div', { class: 'or-server', role: 'status' });
  element.append(note.element);
  drawNote();
  if (watch === null) watchServer(version);
  for (const link of element.querySelectorAll('a[data-link]')) {
    setAttr(link, 'aria-current', link.dataset.link === page ? 'page' : null);
  }
  const last = stored(LAST);
  if (last && page !== 'studio') {
    for (const link of element.querySelectorAll('a[data-link=studio]')) {
      setAttr(link, 'href', `/?trace=${encodeURIComponent(last)}`);
    }
  }
  const theme = element.querySelector('.or-theme');
  const label = () => {
    setAttr(theme, 'aria-label', isDark() ? 'Light colours' : 'Dark colours');
    setAttr(theme, 'title', isDark() ? 'Light colours' : 'Dark colours');
  };
  theme.replaceChildren(icon('moon'));
  theme.addEventListener('click', () => {
    toggleTheme();
    label();
  });
  label();
  menu = element.querySelector('select');
  menu.addEventListener('change', () => {
    store(CHECKPOINT, menu.value === menu.dataset.active ? null : menu.value);
    checkpoint.say(menu.value);
  });
  refreshCheckpoints();
}
