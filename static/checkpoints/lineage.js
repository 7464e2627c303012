// Pure functions on checkpoints: lineage, allowed actions, outcome of a comparison.

import { short } from '../shared/series.js';
import { dataOf, stageName } from '../training/words.js';

export const parentOf = (one) => one.base ?? one.lineage?.base ?? null;
export const stageOf = (one) => one.stage ?? one.lineage?.stage ?? null;
export const stepOf = (one) => one.step ?? one.lineage?.step ?? null;
export const jobOf = (one) => one.job_id ?? one.job ?? one.lineage?.job_id ?? one.lineage?.job ?? null;

const STAGES = ['base', 'zero', 'pesft', 'perpo'];
const inJob = (a, b) => STAGES.indexOf(stageOf(a)) - STAGES.indexOf(stageOf(b)) || (stepOf(a) ?? 0) - (stepOf(b) ?? 0);
const byAge = (a, b) => (a.created_at ?? '').localeCompare(b.created_at ?? '') || a.id.localeCompare(b.id);
const byMaking = (a, b) => (jobOf(a) && jobOf(a) === jobOf(b) ? inJob(a, b) : byAge(a, b));

/** `[{one, children, missing}]`: oldest roots first; an unknown base becomes a root, marked `missing`. */
export function forestOf(checkpoints) {
  const nodes = new Map(checkpoints.map((one) => [one.id, { one, children: [], missing: false }]));
  const roots = [];
  for (const one of checkpoints) {
    const parent = parentOf(one);
    if (!parent || leadsBack(parent, one.id, nodes)) {
      roots.push(nodes.get(one.id));
      continue;
    }
    if (!nodes.has(parent)) {
      const node = { one: { id: parent }, children: [], missing: true };
      nodes.set(parent, node);
      roots.push(node);
    }
    nodes.get(parent).children.push(nodes.get(one.id));
  }
  const order = (list) => list.sort((a, b) => byMaking(a.one, b.one)).forEach((node) => order(node.children));
  order(roots);
  return roots;
}

function leadsBack(from, to, nodes) {
  const seen = new Set();
  for (let at = from; at && !seen.has(at); at = nodes.get(at) && parentOf(nodes.get(at).one)) {
    if (at === to) return true;
    seen.add(at);
  }
  return false;
}

/**
 * The children of a node for the list: `[{node}]`, and `[{earlier: [nodes]}]` for superseded steps of one job and
 * stage. Active and selected (`kept`) checkpoints and bases of others stay visible.
 */
export function folded(children, kept) {
  const key = ({ one }) => (jobOf(one) ? `${jobOf(one)} ${stageOf(one)}` : null);
  const newest = new Map(children.map((node) => [key(node), node]));
  const shown = [];
  for (const node of children) {
    const { one } = node;
    if (!key(node) || newest.get(key(node)) === node || node.children.length || one.active || one.id === kept)
      shown.push({ node });
    else if (shown.length && shown[shown.length - 1].key === key(node)) shown[shown.length - 1].earlier.push(node);
    else shown.push({ key: key(node), earlier: [node] });
  }
  return shown;
}

/** The origin of a checkpoint: `PeRPO, step 60`. */
export function madeBy(one) {
  const stage = stageOf(one);
  const step = stepOf(one);
  if (!stage) return '';
  return step === null ? stageName(stage) : `${stageName(stage)}, step ${Number(step).toLocaleString('en')}`;
}

const share = (value) => `${Math.round(value * 100)} %`;
const FIRST = [
  ['accuracy/all', (value) => `${share(value)} right`],
  ['reward/accuracy', (value) => `${share(value)} right in training`],
  ['drawings/right', (value) => `${share(value)} drawings right`],
  ['loss/ce', (value) => `loss ${short(value)}`],
  ['reward/total', (value) => `reward ${short(value)}`],
];

/** The one or two most important metrics, for the tree. */
export function measureOf(one) {
  const metrics = one.metrics ?? {};
  return FIRST.filter(([name]) => typeof metrics[name] === 'number')
    .slice(0, 2)
    .map(([name, words]) => words(metrics[name]))
    .join(' · ');
}

export const megabytes = (bytes) =>
  typeof bytes === 'number' ? `${Math.round(bytes / 1e6).toLocaleString('en')} MB` : '';

/** `[name, text]` rows about one checkpoint; omits unknown facts. */
export function factsOf(one) {
  const rows = [
    ['made by', madeBy(one)],
    ['from', parentOf(one)],
    ['licence', one.licence],
    ['size', megabytes(one.size_bytes)],
    [
      'images',
      one.resolution ? `${one.resolution} × ${one.resolution} px, ${(one.tokens_per_image ?? 2) - 2} codes` : null,
    ],
    ['context', one.context_len ? `${one.context_len.toLocaleString('en')} tokens` : null],
    ['template', one.template],
    ['weights', one.weight_version ? `version ${one.weight_version}${whereLoaded(one)}` : null],
    ['made', one.created_at],
    ['folder', one.folder],
  ];
  return rows.filter(([, value]) => value);
}

function whereLoaded(one) {
  return one.loaded ? `, in memory${one.quant ? ` as ${one.quant}` : ''}` : '';
}

const KEPT = new Set(['package', 'setting']); // shipped, or named by the settings

/** The reasons against actions: `{activate, remove}` are null or a text. */
export function whyNot(one) {
  return {
    activate: one.problem
      ? 'The checkpoint is unusable; see the reason above.'
      : one.active
        ? 'It is already active.'
        : null,
    remove: one.active || KEPT.has(one.source) ? 'It is active or belongs to the installation.' : null,
  };
}

/** The outcome of a comparison after both have ended. */
export function outcomeOf(left, right) {
  if (![left, right].every((state) => state.status === 'completed' && state.hasAnswer)) return '';
  const verdicts = [left, right].map((state) => state.verdict?.answer ?? null);
  if (verdicts.every((one) => one === 'right')) return 'Both are right.';
  if (verdicts.every((one) => one === 'wrong')) return 'Both are wrong.';
  if (verdicts.every(Boolean))
    return verdicts[0] === 'right' ? 'Only the first is right.' : 'Only the second is right.';
  const same = left.answer.trim().toLowerCase() === right.answer.trim().toLowerCase();
  return same ? 'Both give the same answer.' : 'They give different answers.';
}

/** `[{label, rows}]`: results on the same questions with the same settings, the best first; the largest board first. */
export function boardsOf(rows) {
  const boards = new Map();
  for (const row of rows) {
    const key = JSON.stringify([row.data, row.settings]);
    boards.set(key, [...(boards.get(key) ?? []), row]);
  }
  const names = new Map();
  const named = [...boards.values()].map((all) => {
    const { data, settings } = all[0];
    const level = data.level && data.level !== 'normal' ? `, level ${data.level}` : '';
    const slices = data.slices ? `, ${data.slices.join(' and ')}` : '';
    const seed = typeof data.first_seed === 'number' ? `, from seed ${data.first_seed.toLocaleString('en')}` : '';
    const own = Object.entries(settings).map(([name, value]) => `, ${name} ${JSON.stringify(value)}`);
    const plain = `${dataOf({ data })}${level}${slices}${seed}${own.join('')}`;
    names.set(plain, (names.get(plain) ?? 0) + 1);
    const label = names.get(plain) > 1 ? `${plain} (${names.get(plain)})` : plain;
    const best = all.toSorted((a, b) => (b.accuracy ?? -1) - (a.accuracy ?? -1));
    return { label, rows: best.map((row) => ({ ...row, board: label })) };
  });
  return named.toSorted((a, b) => b.rows.length - a.rows.length);
}
