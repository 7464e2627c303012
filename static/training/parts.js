// The parts of a job's page that are functions of their data: stages, warnings, checkpoints, the tail of an error's log.

import { h, setAttr, setText } from '../shared/dom.js';
import { stageName, warningOf } from './words.js';

/** One bar for each stage, updated in place. */
export function drawStages(list, bars) {
  if (list.children.length !== bars.length) {
    list.replaceChildren(
      ...bars.map(() =>
        h(
          'li',
          {},
          h('span', { class: 'or-stage-name' }),
          h('span', { class: 'or-stage-bar' }, h('span')),
          h('span', { class: 'or-sr' }),
        ),
      ),
    );
  }
  for (const [k, { stage, share, state }] of bars.entries()) {
    const item = list.children[k];
    setAttr(item, 'data-state', state);
    setAttr(item, 'aria-current', state === 'running' ? 'step' : null);
    setText(item.children[0], stageName(stage));
    item.children[1].firstChild.style.width = `${(share * 100).toFixed(1)}%`;
    setText(
      item.children[2],
      state === 'done' ? 'done' : state === 'waiting' ? 'not yet' : `${Math.round(share * 100)} percent`,
    );
  }
}

export function warningItem(warning) {
  const { title, means, todo } = warningOf(warning);
  return h(
    'li',
    { class: 'or-warning', 'data-code': warning.code },
    h('h3', {}, title, warning.count > 1 ? h('span', { class: 'or-quiet' }, ` · ${warning.count} times`) : null),
    warning.detail && warning.detail !== means ? h('p', { class: 'or-num' }, warning.detail) : null,
    h('p', {}, means),
    h('p', {}, h('strong', {}, 'What to do: '), todo),
  );
}

export function checkpointItem({ name, step, stage }) {
  return h(
    'li',
    {},
    h('a', { class: 'or-link', href: `/checkpoints?name=${encodeURIComponent(name)}` }, name),
    h('span', { class: 'or-quiet' }, step === null || step === undefined ? '' : `${stageName(stage)}, step ${step}`),
  );
}

export const tailOf = (error) => (Array.isArray(error?.log_tail) ? error.log_tail.join('\n') : (error?.log_tail ?? ''));
