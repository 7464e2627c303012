// The world's reference solution next to the model's: fetched on demand, only after the trace has ended.

import { api } from '../shared/api.js';
import { h, openDialog } from '../shared/dom.js';

/** `natural-1000000123` → `{slice, seed}`, `natural-5-1000000123` → also its level; null if it is not a task id. */
export function parseTaskId(taskId) {
  const match = /^([a-z]+)-(?:(hard|[1-8])-)?(\d+)$/.exec(taskId ?? '');
  if (!match) return null;
  const [, slice, level, seed] = match;
  return level ? { slice, seed, level } : { slice, seed };
}

export async function fetchReference(taskId) {
  const query = parseTaskId(taskId);
  return query ? api.task({ ...query, reveal: 'true' }) : null;
}

function cell(title, text, url) {
  return h(
    'div',
    { class: 'or-reference-cell' },
    h('h3', {}, title),
    url
      ? h('img', { src: url, alt: `${title}: ${text ?? ''}`, class: 'or-pixels' })
      : h('div', { class: 'or-reference-none' }, 'no image'),
    h('p', { dir: 'auto' }, text ?? ''),
  );
}

export async function openReference(state) {
  const task = await fetchReference(state.taskId);
  if (!task) return;
  const rows = [];
  const length = Math.max(task.steps.length, state.steps.length);
  for (let k = 1; k <= length; k += 1) {
    const ours = state.steps.find((step) => step.index === k);
    const theirs = task.steps.find((step) => step.index === k);
    rows.push(
      h(
        'div',
        { class: 'or-reference-row' },
        ours ? cell(`Model, step ${k}`, ours.text.trim(), ours.image?.url) : cell(`Model, step ${k}`, 'none', null),
        theirs
          ? cell(`Reference, step ${k}`, theirs.text, theirs.image?.url)
          : cell(`Reference, step ${k}`, 'none', null),
      ),
    );
  }
  const answers = h(
    'div',
    { class: 'or-reference-row' },
    h(
      'p',
      { class: 'or-reference-answer' },
      h('span', {}, 'Model’s answer'),
      h('strong', {}, state.answer.trim() || '–'),
    ),
    h('p', { class: 'or-reference-answer' }, h('span', {}, 'Reference'), h('strong', {}, task.answer)),
  );
  openDialog(
    'Reference trace',
    h('h2', {}, 'Reference trace'),
    h('p', { class: 'or-quiet', dir: 'auto' }, task.question),
    answers,
    ...rows,
  );
}
