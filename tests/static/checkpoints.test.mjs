// Checkpoints: lineage, facts, allowed actions. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  boardsOf,
  factsOf,
  folded,
  forestOf,
  jobOf,
  madeBy,
  measureOf,
  outcomeOf,
  whyNot,
} from '../../static/checkpoints/lineage.js';

const draw = (nodes) => nodes.map(({ one, children }) => (children.length ? [one.id, draw(children)] : one.id));
const made = (id, base, stage, step, job = 'j') => ({
  id,
  base,
  created_at: '2026',
  lineage: { stage, step, job_id: job },
});

test('children hang below their base, ordered by stage and step', () => {
  const list = [
    made('p-20', 'base', 'perpo', 20),
    made('s-200', 'base', 'pesft', 200),
    made('s-100', 'base', 'pesft', 100),
    { id: 'base', base: null, created_at: '2025' },
    made('q', 's-200', 'perpo', 1, 'k'),
  ];
  assert.deepEqual(draw(forestOf(list)), [['base', ['s-100', ['s-200', ['q']], 'p-20'].map((x) => x)]]);
});

test('unknown base is shown as missing', () => {
  const [root] = forestOf([made('a', 'elsewhere', 'pesft', 1)]);
  assert.equal(root.missing, true);
  assert.equal(root.one.id, 'elsewhere');
  assert.deepEqual(draw([root]), [['elsewhere', ['a']]]);
});

test('cyclic bases are all shown', () => {
  const shown = JSON.stringify(draw(forestOf([made('a', 'b'), made('b', 'a'), made('c', 'c')])));
  for (const name of ['a', 'b', 'c']) assert.equal(shown.split(`"${name}"`).length - 1, 1, shown);
});

test('line shows origin and metrics', () => {
  const one = {
    ...made('x', 'b', 'perpo', 1200),
    metrics: { 'accuracy/all': 0.91, 'reward/total': 0.8, 'loss/ce': 1 },
  };
  assert.equal(madeBy(one), 'PeRPO, step 1,200');
  assert.equal(measureOf(one), '91 % right · loss 1');
  assert.equal(jobOf(one), 'j');
  assert.equal(madeBy({ id: 'x' }), '');
  assert.equal(measureOf({ id: 'x' }), '');
});

test('unknown facts are omitted', () => {
  assert.deepEqual(factsOf({ id: 'x', licence: 'MIT', size_bytes: 30e6 }), [
    ['licence', 'MIT'],
    ['size', '30 MB'],
  ]);
});

test('the form of loaded weights is told', () => {
  const told = (one) =>
    factsOf({ id: 'x', size_bytes: 0, weight_version: 2, ...one }).find(([name]) => name === 'weights')[1];
  assert.equal(told({ loaded: true, quant: 'int8' }), 'version 2, in memory as int8');
  assert.equal(told({ loaded: true, quant: null }), 'version 2, in memory');
  assert.equal(told({ loaded: false, quant: null }), 'version 2');
});

test('reasons against actions are given', () => {
  assert.ok(whyNot({ id: 'a', active: true }).activate && whyNot({ id: 'a', active: true }).remove);
  assert.ok(whyNot({ id: 'a', problem: 'torn' }).activate);
  assert.equal(whyNot({ id: 'a', problem: 'torn', source: 'registered' }).remove, null);
  assert.ok(whyNot({ id: 'a', source: 'package' }).remove);
  assert.deepEqual(whyNot({ id: 'a', source: 'job' }), { activate: null, remove: null });
});

test('comparison needs both answers', () => {
  const state = (answer, verdict = null) => ({
    status: 'completed',
    hasAnswer: true,
    answer,
    verdict: verdict && { answer: verdict },
  });
  assert.equal(outcomeOf(state('a'), { ...state('b'), status: 'running' }), '');
  assert.equal(outcomeOf(state('a', 'right'), state('b', 'wrong')), 'Only the first is right.');
  assert.equal(outcomeOf(state('a', 'wrong'), state('b', 'wrong')), 'Both are wrong.');
  assert.equal(outcomeOf(state(' Red'), state('red ')), 'Both give the same answer.');
  assert.equal(outcomeOf(state('red'), state('blue')), 'They give different answers.');
});

test('superseded steps of a job are folded', () => {
  const steps = [100, 200, 300, 400].map((step) => made(`s-${step}`, 'base', 'pesft', step));
  const list = (all, kept) =>
    folded(forestOf([{ id: 'base' }, ...all])[0].children, kept).map(
      ({ node, earlier }) => node?.one.id ?? earlier.map((one) => one.one.id),
    );
  assert.deepEqual(list(steps, null), [['s-100', 's-200', 's-300'], 's-400']);
  assert.deepEqual(list(steps, 's-200'), [['s-100'], 's-200', ['s-300'], 's-400']);
  assert.deepEqual(list([...steps, made('p', 's-300', 'perpo', 1, 'k')], null), [['s-100', 's-200'], 's-300', 's-400']);
  assert.deepEqual(
    list(
      [
        { id: 'a', base: 'base' },
        { id: 'b', base: 'base' },
      ],
      null,
    ),
    ['a', 'b'],
  );
});

test('results are compared on the same questions and settings only, best first', () => {
  const row = (checkpoint, accuracy, data = {}, settings = {}) => ({
    checkpoint,
    accuracy,
    settings,
    data: { source: 'unitasks', num_samples: 100, level: 'normal', ...data },
  });
  const boards = boardsOf([
    row('hard', 0.9, { level: 'hard' }),
    row('a', 0.5),
    row('none', null),
    row('b', 0.7),
    row('voted', 0.99, {}, { votes: 5 }),
    row('seeds', 0.98, { first_seed: 2_000_000_000 }),
  ]);
  assert.deepEqual(
    boards[0].rows.map(({ checkpoint }) => checkpoint),
    ['b', 'a', 'none'],
  );
  assert.equal(boards.length, 4);
  assert.equal(new Set(boards.map(({ label }) => label)).size, 4);
  assert.ok(
    boards.some(({ label }) => label.includes('level hard')) && boards.some(({ label }) => label.includes('votes 5')),
  );
  assert.deepEqual(boardsOf([]), []);
});
