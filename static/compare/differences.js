// How two traces differ, step by step. Pure, for tests.

import { stepsIn } from '../branches/layout.js';

/**
 * `{text, images, missing}`: the first step with another text (or null), the steps with another image, and the steps
 * that only one of them has. Step k is compared with step k; the same image has the same id.
 */
export function differencesOf(left, right) {
  const stepOf = (state, index) => state.steps.find((step) => step.index === index);
  const last = Math.max(0, ...[...left.steps, ...right.steps].map((step) => step.index));
  const found = { text: null, images: [], missing: [] };
  for (let index = 1; index <= last; index += 1) {
    const [a, b] = [stepOf(left, index), stepOf(right, index)];
    if (!a || !b) {
      found.missing.push(index);
      continue;
    }
    if (found.text === null && a.text.trim() !== b.text.trim()) found.text = index;
    if ((a.image?.image_id ?? null) !== (b.image?.image_id ?? null)) found.images.push(index);
  }
  return found;
}

/** The differences as sentences. */
export function wordsOf(left, right) {
  const { text, images, missing } = differencesOf(left, right);
  const said = [];
  if (text !== null) said.push(`The texts first differ at step ${text}.`);
  if (images.length) said.push(`The images differ in ${stepsIn(images)}.`);
  if (missing.length) said.push(`Only one trace has ${stepsIn(missing)}.`);
  if (!said.length) said.push('The steps are the same.');
  const answers = [left, right].map((state) => (state.hasAnswer ? state.answer.trim() || '(empty)' : null));
  if (answers[0] !== null && answers[1] !== null) {
    const [one, other] = answers;
    said.push(one === other ? `Both answer ${one}.` : `One answers ${one}, the other ${other}.`);
  }
  return said.join(' ');
}
