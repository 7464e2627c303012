// Editing, trees, groups and comparisons: their pure parts. Run: node --test tests/static
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { branchOf } from '../../static/branches/edit.js';
import {
  endOf,
  grown,
  nameOf,
  partingOf,
  rowsOf,
  stepsIn,
  withState,
  withoutInterventions,
} from '../../static/branches/layout.js';
import { pixelsOf, squareAt } from '../../static/branches/pens.js';
import { differencesOf, wordsOf } from '../../static/compare/differences.js';
import { missingOf, wrongAddress } from '../../static/compare/trouble.js';
import { viewOf } from '../../static/compare/views.js';
import { groupSource, traceSource } from '../../static/shared/events.js';
import { fromTrace, initialState, reduceAll } from '../../static/viewer/state.js';
import { headOf, isGreedy, phaseOfWall, reduceWall, replacedOf, tallyOf, wallOf } from '../../static/wall/members.js';
import { countOf } from '../../static/wall/samples.js';
import { answersOf, noteOf } from '../../static/wall/stack.js';

const recorded = JSON.parse(readFileSync(new URL('./recorded.json', import.meta.url)));
const IMAGE = { image_id: 'i1', url: '/v1/images/i1', width: 64, height: 64, skill: 'mark', stats: { codes: 64 } };
const number = (events) => events.map(([type, data], k) => ({ seq: k + 1, type, data }));
const node = (id, parent, after, edited = [], more = {}) => ({
  id,
  parent_id: parent,
  after_step: after,
  edited_steps: edited,
  status: 'completed',
  answer: 'red',
  verdict: 'wrong',
  ...more,
});

test('kept steps are complete, with their images', () => {
  const state = reduceAll(
    initialState('b'),
    number([
      ['trace.queued', { position: 0 }],
      ['trace.started', { seed: 5 }],
      ['step.kept', { step: 1, text: 'I look.', image: IMAGE, edited: true, reencoded: true, source_image_id: 'i0' }],
      ['step.kept', { step: 2, text: 'I think.', edited: false }],
      ['step.started', { step: 3 }],
      ['text.delta', { step: 3, text: 'On' }],
    ]),
  );
  assert.deepEqual(
    state.steps.map(({ index, text, complete, edited, skill }) => [index, text, complete, edited, skill]),
    [
      [1, 'I look.', true, true, 'mark'],
      [2, 'I think.', true, false, null],
      [3, 'On', false, false, null],
    ],
  );
  assert.equal(state.steps[0].image.image_id, 'i1');
  assert.equal(state.lastSeq, 6);
  assert.equal(state.tokens, 1); // kept tokens were not generated
});

test('row of a branch names its parent, its group and its edits', () => {
  const parent = { trace_id: 'a', after_step: 1, edited_steps: [1], group_id: null };
  const steps = [{ index: 1, text: 'I look.', image: IMAGE, edited: true }];
  const state = fromTrace({ ...recorded.trace, parent, group_id: 'gr_1', steps });
  assert.deepEqual(state.parent, parent);
  assert.equal(state.groupId, 'gr_1');
  assert.equal(state.steps[0].edited, true);
  assert.equal(fromTrace(recorded.trace).parent, null);
});

test('streams know kept steps, and groups their end', () => {
  assert.ok(traceSource('t').types.includes('step.kept'));
  const source = groupSource('g/1');
  assert.equal(source.url(7), '/v1/groups/g%2F1/events?after=7');
  assert.ok(source.types.includes('group.completed'));
  assert.ok(source.ends({ type: 'group.completed' }));
  assert.ok(!source.ends({ type: 'trace.completed' })); // one member only
  assert.ok(source.over({ status: 'completed' }) && !source.over({ status: 'running' }));
});

test('body of a branch holds what was changed', () => {
  const background = true;
  assert.deepEqual(branchOf({ step: 2, text: 'New.' }), {
    after_step: 2,
    edits: [{ step: 2, text: 'New.' }],
    background,
  });
  assert.deepEqual(branchOf({ step: 1, image: { use: 'blank' } }).edits, [{ step: 1, image: { use: 'blank' } }]);
  const again = branchOf({ step: 3 });
  assert.equal(again.edits, undefined);
  assert.ok(Number.isInteger(again.sampling.seed));
});

test('pen draws whole pixels without gaps', () => {
  assert.deepEqual(pixelsOf([1.9, 2.2], [4, 2]), [
    [1, 2],
    [2, 2],
    [3, 2],
    [4, 2],
  ]);
  assert.deepEqual(pixelsOf([3, 3], [3, 3]), [[3, 3]]);
  const slanted = pixelsOf([10, 9], [2, 4]);
  assert.deepEqual(
    [slanted[0], slanted[slanted.length - 1]],
    [
      [10, 9],
      [2, 4],
    ],
  );
  for (const [k, [x, y]] of slanted.slice(1).entries()) {
    assert.ok(Math.abs(x - slanted[k][0]) <= 1 && Math.abs(y - slanted[k][1]) <= 1);
  }
  assert.deepEqual(squareAt([5, 5], 3), [4, 4, 3, 3]);
});

test('tree has one row per trace, below its parent', () => {
  const nodes = [node('a', null, null), node('b', 'a', 2, [2]), node('c', 'a', 1), node('d', 'b', 1, [1])];
  const rows = rowsOf({ root: 'a', nodes });
  assert.deepEqual(
    rows.map((row) => [row.node.id, row.level, row.parentRow, row.from, row.stem]),
    [
      ['a', 1, null, 0, null],
      ['b', 2, 0, 1, 0],
      ['d', 3, 1, 0, 0], // parts before its parent's own steps: from the first trace
      ['c', 2, 0, 1, 0],
    ],
  );
  assert.deepEqual(
    rows.map((row) => [row.position, row.of]),
    [
      [1, 1],
      [1, 2],
      [1, 1],
      [2, 2],
    ],
  );
});

test('tree says where traces part and how they end', () => {
  const [root, edited, resumed] = rowsOf({
    root: 'a',
    nodes: [
      node('a', null, null),
      node('b', 'a', 3, [2, 3], { verdict: 'right' }),
      node('c', 'a', 0, [], { answer: null }),
    ],
  });
  assert.match(partingOf(root), /no parent/);
  assert.equal(partingOf(edited), 'Diverges from its parent at step 2: steps 2 and 3 were edited.');
  assert.equal(partingOf(resumed), 'Diverges from its parent right after the question.');
  assert.equal(nameOf(edited), 'Branch, steps 2 and 3 edited: answer red, right');
  assert.equal(endOf(resumed.node).text, 'no answer');
  assert.equal(endOf(node('x', 'a', 1, [], { status: 'deleted' })).text, 'deleted');
  assert.equal(stepsIn([1, 2, 4]), 'steps 1, 2 and 4');
});

test('tree names follow-up questions', () => {
  const nodes = [node('a', null, null), node('b', 'a', null), node('c', 'a', 1)];
  const [root, followUp, branch] = rowsOf({ root: 'a', nodes });
  assert.equal(followUp.from, 0);
  assert.equal(partingOf(followUp), 'Follows up on its parent with another question.');
  assert.deepEqual(
    [root, followUp, branch].map((row) => nameOf(row).split(':')[0]),
    ['First trace', 'Follow-up question', 'Branch'],
  );
});

test('tree grows with a branch before the server is asked', () => {
  const parent = { ...fromTrace(recorded.trace), traceId: 'a' };
  const branch = { id: 'b', status: 'queued', parent: { trace_id: 'a', after_step: 1, edited_steps: [1] } };
  const tree = grown(null, parent, branch);
  assert.deepEqual(
    tree.nodes.map(({ id, parent_id }) => [id, parent_id]),
    [
      ['a', null],
      ['b', 'a'],
    ],
  );
  const later = withState(tree, { traceId: 'b', status: 'completed', hasAnswer: true, answer: ' blue', verdict: null });
  assert.equal(later.nodes[1].answer, ' blue');
  assert.equal(grown(later, { ...parent, traceId: 'b' }, { ...branch, id: 'c' }).nodes.length, 3);
});

const GROUP = { id: 'g', trace_ids: ['t1', 't2', 't3'], status: 'running', tally: [], agreement: null };
const ROW = { ...recorded.started, id: 't1' };
const event = (seq, type, trace_id, data = {}) => ({ seq, type, data: { trace_id, ...data } });

test('one stream feeds all members', () => {
  let wall = wallOf(GROUP, [ROW]);
  assert.equal(wall.members[2].question, ROW.question); // the same for all
  assert.equal(phaseOfWall(wall), 'running');
  wall = reduceWall(wall, [
    event(1, 'trace.queued', 't1'),
    event(2, 'trace.queued', 't2'),
    event(3, 'trace.started', 't2', { seed: 8 }),
    event(4, 'step.started', 't2', { step: 1 }),
    event(5, 'text.delta', 't2', { step: 1, text: 'I look' }),
    event(6, 'trace.completed', 't2', { answer: ' blue', finish_reason: 'stop' }),
    event(7, 'trace.completed', 't1', { answer: 'red', finish_reason: 'stop' }),
  ]);
  assert.equal(wall.members[1].steps[0].text, 'I look');
  assert.equal(wall.members[1].gap, false);
  assert.equal(headOf(wall), '2 of 3 samples done');
  assert.deepEqual(
    tallyOf(wall).map(({ answer, share }) => [answer, share]),
    [
      ['red', 0.5],
      ['blue', 0.5],
    ],
  );
  const tally = [
    { answer: 'blue', count: 2, share: 0.6667, mean_logprob: -0.1, verdict: 'right' },
    { answer: 'red', count: 1, share: 0.3333, mean_logprob: -0.2, verdict: 'wrong' },
  ];
  wall = reduceWall(wall, [
    event(8, 'trace.completed', 't3', { answer: 'blue', finish_reason: 'stop' }),
    { seq: 9, type: 'group.completed', data: { status: 'completed', tally, agreement: 0.6667 } },
  ]);
  assert.equal(headOf(wall), '3 samples · 67 % agree');
  assert.deepEqual(
    tallyOf(wall),
    tally.map((row) => ({ ...row, word: row.answer })),
  );
  assert.equal(wall.members[1].verdict.answer, 'right');
  assert.equal(phaseOfWall(wall), 'ended');
});

test('differences are found step by step', () => {
  const step = (index, text, image_id) => ({ index, text, image: image_id ? { image_id } : null });
  const state = (answer, ...steps) => ({ steps, answer, hasAnswer: answer !== null });
  const left = state('red', step(1, 'I look. ', 'a'), step(2, 'I mark.', 'b'), step(3, 'I zoom.', 'c'));
  const right = state('blue', step(1, 'I look.', 'a'), step(2, 'I box.', 'x'));
  assert.deepEqual(differencesOf(left, right), { text: 2, images: [2], missing: [3] });
  assert.equal(
    wordsOf(left, right),
    'The texts first differ at step 2. The images differ in step 2. Only one trace has step 3. ' +
      'One answers red, the other blue.',
  );
  assert.equal(wordsOf(left, left), 'The steps are the same. Both answer red.');
});

test('addresses name what is shown', () => {
  assert.deepEqual(viewOf('?trace=tr_1'), { view: 'trace', ids: ['tr_1'] });
  assert.deepEqual(viewOf('?group=gr_1'), { view: 'wall', ids: ['gr_1'] });
  assert.deepEqual(viewOf('?compare=tr_1,tr_2'), { view: 'compare', ids: ['tr_1', 'tr_2'] });
  assert.deepEqual(viewOf('?compare=tr_1'), { view: 'compare', ids: ['tr_1'] });
  assert.deepEqual(viewOf('?compare='), { view: 'compare', ids: [] });
  assert.deepEqual(viewOf(''), { view: 'trace', ids: [] });
});

test('counts of samples are whole and bounded', () => {
  assert.deepEqual(['4', '0', '99', '2.4', 'many', ''].map(countOf), [4, 1, 16, 2, 1, 1]);
});

test('stack lists the answers of its group', () => {
  const tally = [
    { answer: 'blue', count: 5 },
    { answer: null, count: 2 },
    { answer: '', count: 1 },
  ];
  assert.equal(answersOf(tally), 'blue ×5, (empty) ×1');
  assert.equal(answersOf([{ answer: null, count: 3 }]), 'no answers');
  assert.equal(answersOf([]), '');
});

test('stack says how many match and how many have ended', () => {
  const ended = { trace_ids: Array(8).fill('t'), status: 'completed', tally: [{ answer: 'blue', count: 8 }] };
  assert.equal(noteOf({ ...ended, kind: 'intervention' }, null), 'images replaced');
  assert.equal(noteOf(ended, null), '');
  assert.equal(noteOf(ended, 8), '');
  assert.equal(noteOf(ended, 3), '3 of 8 match');
  const running = { ...ended, status: 'running', tally: [{ answer: 'blue', count: 2 }] };
  assert.equal(noteOf(running, 1), '2 of 8 done · 1 of 8 match');
  const stopped = { ...ended, tally: [{ answer: null, count: 5 }] };
  assert.equal(noteOf(stopped, null), ''); // “no answers” says it
  assert.equal(noteOf({ ...stopped, tally: [...stopped.tally, ...running.tally] }, null), '5 without an answer');
});

test('stopped samples are no answer with a share', () => {
  const cancelled = (seq, id) => event(seq, 'trace.cancelled', id, { reason: 'user' });
  let wall = reduceWall(wallOf(GROUP, [ROW]), [
    event(1, 'trace.completed', 't1', { answer: 'red', finish_reason: 'stop' }),
    event(2, 'answer.delta', 't2', { text: 're' }),
    cancelled(3, 't2'),
    event(4, 'trace.failed', 't3', { error: { code: 'engine_died' } }),
  ]);
  const shown = () => tallyOf(wall).map(({ word, count, share }) => [word, count, share === null ? null : share > 0]);
  const wanted = [
    ['red', 1, true],
    ['stopped', 1, null],
    ['failed', 1, null],
  ];
  assert.deepEqual(shown(), wanted);
  const tally = [
    { answer: null, count: 2, share: 0.6667 },
    { answer: 'red', count: 1, share: 0.3333 },
  ];
  wall = reduceWall(wall, [
    { seq: 4, type: 'group.completed', data: { status: 'completed', tally, agreement: 0.3333 } },
  ]);
  assert.deepEqual(shown(), wanted);
  assert.equal(headOf(wall), '3 samples · 1 stopped');
});

test('samples that ended without an answer keep their share', () => {
  const ended = (seq, id) => event(seq, 'trace.completed', id, { answer: null, finish_reason: 'length' });
  const wall = reduceWall(wallOf(GROUP, [ROW]), [ended(1, 't1'), ended(2, 't2'), ended(3, 't3')]);
  assert.deepEqual(tallyOf(wall), [{ answer: null, word: 'no answer', count: 3, share: 1, verdict: null }]);
  assert.equal(headOf(wall), '3 samples, no answer');
});

test('wall knows greedy and deleted samples', () => {
  assert.ok(!isGreedy(wallOf(GROUP, [{ ...ROW, sampling: { temperature: 1 } }])));
  const wall = wallOf(GROUP, [{ ...ROW, sampling: { temperature: 0 } }], { complete: true });
  assert.ok(isGreedy(wall));
  assert.deepEqual(
    wall.members.map(({ missing }) => missing),
    [null, 't2', 't3'],
  );
});

test('address of a comparison takes two traces', () => {
  assert.equal(wrongAddress(['a', 'b']), null);
  assert.deepEqual(wrongAddress(['a/b']).links[0], ['open this trace', '/?trace=a%2Fb']);
  for (const ids of [[], ['a'], ['a', 'b', 'c']]) assert.match(wrongAddress(ids).text, /two traces/);
});

test('branch without its parent is shown alone', () => {
  const gone = { ...initialState(null), missing: 'a' };
  const branch = { ...fromTrace(recorded.trace), traceId: 'b', parent: { trace_id: 'a' } };
  for (const pair of [
    [gone, branch],
    [branch, gone],
  ]) {
    assert.match(missingOf(...pair).text, /parent of this branch was deleted/);
    assert.deepEqual(missingOf(...pair).links[0], ['open the branch', '/?trace=b']);
  }
  assert.match(missingOf(branch, { ...gone, missing: 'x' }).text, /second trace does not exist/);
  assert.match(missingOf(gone, gone).text, /Neither trace/);
  assert.equal(missingOf(gone, initialState('b')), null); // not known yet
  assert.equal(missingOf(branch, branch), null);
});

test('tree leaves interventions out unless one is shown or was continued', () => {
  const node = (id, parent, intervention = false) => ({ id, parent_id: parent, intervention });
  const nodes = [node('a', null), node('b', 'a', true), node('c', 'a', true), node('d', 'a'), node('e', 'b')];
  const shown = (current) => withoutInterventions(nodes, current).map(({ id }) => id);
  assert.deepEqual(shown('a'), ['a', 'b', 'd', 'e']);
  assert.deepEqual(shown('c'), ['a', 'b', 'c', 'd', 'e']);
  assert.deepEqual(shown('unknown'), ['a', 'b', 'd', 'e']);
});

test('wall of an intervention names what was replaced', () => {
  const effects = GROUP.trace_ids.map((id, k) => ({ trace_id: id, step: k + 1, with: 'blank' }));
  const wall = wallOf({ ...GROUP, effects }, [ROW]);
  assert.equal(replacedOf(wall, GROUP.trace_ids[1]), 'step 2: a blank image');
  assert.match(headOf(wall), /^0 of \d+ replaced images done$/);
  assert.equal(replacedOf(wallOf(GROUP, [ROW]), GROUP.trace_ids[1]), null);
});
