// The texts of the Training page. Run: node --test tests/static
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { extensionRows, filesNote } from '../../static/training/extensions.js';
import { pairText, sorted } from '../../static/training/report.js';
import { initialJob, reduce, reduceAll, withJob, withWaiting } from '../../static/training/state.js';
import {
  METHODS,
  WARNINGS,
  announcementOf,
  bytes,
  choicesOf,
  cliOf,
  curlOf,
  dataOf,
  duration,
  howLong,
  parseSpec,
  progressOf,
  rewardRows,
  statusOf,
  stepsOf as stepsIn,
  tookOf,
  troubleOf,
  verdictOf,
  warningOf,
} from '../../static/training/words.js';

const number = (events) => events.map(([type, data], k) => ({ seq: k + 1, type, data }));
const play = (...events) => reduceAll(initialJob('j'), number(events));
const row = (step, values, stage = 'pesft') => ['metrics', { stage, step, values }];

// ---- texts

test('every status has a text and a remedy', () => {
  for (const status of ['queued', 'running', 'succeeded', 'failed', 'cancelled', 'interrupted'])
    assert.ok(statusOf({ status }).text);
  const startedAt = '2026-11-22T10:00:00Z';
  for (const status of ['failed', 'cancelled', 'interrupted'])
    assert.match(troubleOf({ status, startedAt }), /[Rr]esume/);
  assert.equal(troubleOf({ status: 'cancelled', startedAt: null }), 'Stopped before it started.');
  const killed = { code: 'killed', detail: 'it did not stop within 60 s' };
  assert.match(
    troubleOf({ status: 'cancelled', startedAt, error: killed }),
    /^Stopped by force: it did not stop within 60 s\. Resume/,
  );
  assert.match(
    troubleOf({ status: 'failed', error: { code: 'nan_loss', detail: 'the loss is not a number' } }),
    /the loss is not a number\./,
  );
  assert.match(troubleOf({ status: 'failed', error: { code: 'activation_failed', detail: 'x' } }), /Checkpoints page/);
  assert.equal(troubleOf({ status: 'running' }), null);
  assert.match(statusOf({ status: 'running', cancelRequested: true }).text, /stopping/);
});

test('resume is offered only with saved state', () => {
  const startedAt = '2026-11-22T10:00:00Z';
  for (const status of ['failed', 'cancelled', 'interrupted']) {
    for (const error of [undefined, { code: 'x', detail: 'it broke' }]) {
      assert.match(troubleOf({ status, startedAt, error, resumable: true }), /Resume/);
      assert.doesNotMatch(troubleOf({ status, startedAt, error, resumable: false }), /Resume|kept|checkpoint/);
      assert.match(troubleOf({ status, startedAt, error, resumable: false }), /No state was saved: start it again/);
      assert.doesNotMatch(troubleOf({ status, startedAt, error, resumable: null }), /Resume|kept|No state/);
    }
  }
});

test('interruption is reported once', () => {
  const error = { code: 'interrupted', detail: 'the server stopped or died while the job ran' };
  assert.equal(troubleOf({ status: 'interrupted', error, resumable: true }).match(/stopped/g).length, 1);
});

test('row decides whether an ended job is resumable', () => {
  const ended = withJob(initialJob('j'), { id: 'j', status: 'failed', resumable: true, running_s: 12.5 });
  assert.deepEqual([ended.resumable, ended.runningS], [true, 12.5]);
  assert.equal(reduce(ended, { seq: 1, type: 'job.status', data: { status: 'interrupted' } }).resumable, null);
  assert.equal(withJob(ended, { id: 'j', status: 'queued', resumable: false }).resumable, null);
});

test('job waiting for disk space has a text', () => {
  const waiting = { for: 'disk', needed_bytes: 1_234_567_890, free_bytes: 3_000_000 };
  const progress = { stage: 'pesft', step: 4, total: 60, eta_s: 9, waiting };
  assert.equal(progressOf({ status: 'running', progress }), 'needs 1.2 GB of disk space, 3.0 MB free');
  assert.equal(statusOf({ status: 'running', progress }).text, 'waiting for disk space');
  assert.match(statusOf({ status: 'running', progress, cancelRequested: true }).text, /stopping/);
  const inCluster = { ...progress, waiting: { for: 'cluster', detail: 'needs 1 CPU and 2 GPU, 0 GPU free' } };
  assert.equal(progressOf({ status: 'running', progress: inCluster }), 'needs 1 CPU and 2 GPU, 0 GPU free');
  assert.equal(statusOf({ status: 'running', progress: inCluster }).text, 'waiting for room in the cluster');
  assert.deepEqual([0, 999, 1000, 5e15].map(bytes), ['0 bytes', '999 bytes', '1.0 kB', '5000.0 TB']);
  const works = withJob(initialJob('j'), { id: 'j', status: 'running', progress: { ...progress, waiting: undefined } });
  const waits = withWaiting(works, { progress });
  assert.equal(waits.progress.waiting, waiting);
  assert.equal(
    progressOf(withWaiting(waits, { progress: { stage: 'pesft', step: 5, total: 60 } })),
    'step 4 of 60 · 9 s left',
  );
  assert.equal(withWaiting(initialJob('j'), { progress }).progress, null);
});

test('duration ignores the wall clock', () => {
  const job = { started_at: '2026-01-04T00:00:00Z', finished_at: '2026-01-04T00:00:00Z', running_s: 61 };
  assert.equal(tookOf(job), 61);
  assert.equal(tookOf({ ...job, started_at: null }), null);
});

test('every warning has a meaning and a remedy', () => {
  for (const [code, words] of Object.entries(WARNINGS)) {
    // tests/test_docs.py compares the codes with those sent
    for (const part of ['title', 'means', 'todo']) assert.ok(words[part].length > 10, `${code} ${part}`);
  }
  assert.deepEqual(warningOf({ code: 'quite_new', detail: 'this happened' }).means, 'this happened');
});

test('durations use two units at most', () => {
  assert.deepEqual([0, 41.4, 60, 250, 3599, 3600, 5400, null, Infinity].map(duration), [
    '0 s',
    '41 s',
    '1 min',
    '4 min 10 s',
    '60 min',
    '1 h',
    '1 h 30 min',
    '',
    '',
  ]);
  const at = (eta) => ({ status: 'running', progress: { stage: 'a', step: 40, total: 60, eta_s: eta } });
  assert.equal(progressOf(at(120)), 'step 40 of 60 · 2 min left');
  assert.equal(progressOf(at(null)), 'step 40 of 60');
  assert.equal(progressOf({ status: 'running', progress: null }), 'starting');
  assert.equal(progressOf({ status: 'queued', progress: null }), '');
});

test('expected time comes from earlier runs', () => {
  const spec = { method: 'pesft', hyperparameters: { steps: 400 } };
  const job = {
    method: 'pesft',
    status: 'succeeded',
    spec: { hyperparameters: { steps: 100 } },
    started_at: '2026-01-01T00:00:00Z',
    finished_at: '2026-01-01T00:01:00Z',
  };
  assert.equal(howLong(spec, []).known, false);
  assert.equal(
    howLong(spec, [
      { ...job, status: 'failed' },
      { ...job, method: 'perpo' },
    ]).known,
    false,
  );
  assert.equal(howLong(spec, [job]).text, 'about 4 min here (100 steps took 1 min)');
  assert.equal(howLong({ method: 'pesft', hyperparameters: { steps: 100 } }, [job]).text, '1 min in the last run here');
  const tiny = { ...job, spec: { hyperparameters: { steps: 4 } } };
  assert.equal(howLong(spec, [tiny]).known, false); // four steps are dominated by the start
  assert.equal(howLong(spec, [tiny, job]).text, howLong(spec, [job]).text);
});

test('data and steps have texts', () => {
  assert.equal(dataOf({ data: { source: 'unitasks', num_samples: 8000 } }), '8,000 tasks of the procedural world');
  assert.equal(dataOf({ data: { source: 'jsonl', path: 'mine' } }), 'all samples of files (mine)');
  assert.equal(
    dataOf({
      data: {
        zero: { source: 'unitasks', num_samples: 8 },
        pesft: null,
        perpo: { source: 'unitasks', num_samples: 9 },
      },
    }),
    'Zero 8 tasks, PeRPO 9 tasks of the procedural world',
  );
  assert.equal(
    stepsIn({ method: 'pipeline', hyperparameters: { pesft: { steps: 300 }, perpo: { steps: 40 }, benchmark: {} } }),
    'PeSFT 300 steps · PeRPO 40 steps',
  );
});

test('apostrophes survive both shells', () => {
  const spec = { method: 'pesft', data: { path: "it's" } };
  assert.ok(curlOf('http://x', spec).endsWith(`-d '{"method":"pesft","data":{"path":"it'\\''s"}}'`));
  assert.match(cliOf('http://127.0.0.1:7860', spec), /^\.venv\/bin\/omni-r1 train pesft /);
  assert.match(cliOf('http://127.0.0.1:8000', spec), /^OMNI_R1_URL=http:\/\/127\.0\.0\.1:8000 /);
});

test('invalid spec is reported before sending', () => {
  assert.deepEqual(parseSpec('{"method": "pesft"}').value, { method: 'pesft' });
  assert.match(parseSpec('{"method": }').error, /not valid JSON/);
  assert.match(parseSpec('[]').error, /one JSON object/);
  assert.match(parseSpec('{"method": "magic"}').error, new RegExp(Object.keys(METHODS)[0]));
});

test('screen reader hears important events only', () => {
  const before = play(row(1, { a: 1 }));
  assert.equal(
    announcementOf(
      before,
      reduce(before, { seq: 2, ...{ type: 'metrics', data: { stage: 'pesft', step: 2, values: { a: 1 } } } }),
    ),
    '',
  );
  const after = reduceAll(before, [
    { seq: 2, type: 'checkpoint', data: { name: 'n-step-4' } },
    { seq: 3, type: 'warning', data: { code: 'blank_pictures' } },
    { seq: 4, type: 'job.status', data: { status: 'succeeded' } },
  ]);
  assert.match(announcementOf(before, after), /Job done\..*n-step-4 saved\..*Blank/);
});

test('own rewards and families show how a job names them', () => {
  const rows = extensionRows({
    rewards: [
      { name: 'tidy', package: 'mine 2.1' },
      { file: 'own.py:short', description: 'Few steps.' },
    ],
    families: [{ name: 'dots', package: 'mine 2.1' }],
  });
  assert.deepEqual(
    rows.map(({ kind, name, about }) => [kind, name, about]),
    [
      ['reward', 'tidy', 'from mine 2.1'],
      ['reward', 'own.py:short', 'Few steps.'],
      ['task family', 'dots', 'from mine 2.1'],
    ],
  );
  for (const { spec } of rows) assert.ok(JSON.parse(`{${spec}}`), spec);
  assert.match(
    filesNote({ rewards: [], families: [], files_allowed: false }),
    /knows none yet.*set OMNI_R1_REWARDS_DIR/,
  );
  assert.match(filesNote({ rewards: [{}], families: [], files_allowed: true }), /^Rewards may also/);
});

test('data of a task family names the family', () => {
  assert.equal(
    dataOf({ data: { source: 'tasks', family: 'dots', num_samples: 20 } }),
    '20 tasks of a task family of your own (dots)',
  );
});

test('reward parts have a fixed order', () => {
  assert.deepEqual(rewardRows({ perception: 0.4, total: 1.2, accuracy: 1 }), [
    ['reward', 1.2, 1],
    ['accuracy', 1, 1],
    ['perception', 0.4, 0.4],
  ]);
  assert.deepEqual(rewardRows(null), []);
  assert.deepEqual(rewardRows({ total: 1, custom: { tidy: 2.5, 'tidy/few': -1 } }), [
    ['reward', 1, 1],
    ['tidy', 2.5, 1],
    ['tidy/few', -1, 0],
  ]);
});

test('report values are grouped by shape', () => {
  const parts = sorted({
    kind: 'bootstrapping',
    time: 't',
    accepted: 7,
    rejected: { blank: 2 },
    interval: [0.1, 0.2],
    ids: ['a', 'b'],
    none: null,
    by_slice: { natural: { chains: 3 }, grids: { chains: 4 } },
    tv: { edges: [0, 1, 2], counts: [3, 4], mean: 0.5 },
    sheet: '/v1/jobs/j/files/samples/x.png',
  });
  assert.deepEqual(parts.facts, [
    ['accepted', 7],
    ['rejected, blank', 2],
    ['interval', [0.1, 0.2]],
    ['tv, mean', 0.5],
  ]);
  assert.deepEqual(
    parts.tables.map(([name]) => name),
    ['by slice'],
  );
  assert.deepEqual(parts.histograms, [['tv', { counts: [3, 4], edges: [0, 1, 2] }]]);
  assert.deepEqual(parts.images, [['sheet', '/v1/jobs/j/files/samples/x.png']]);
});

// ---- grader

test('verdict names what was compared', () => {
  const graded = { accuracy: 1, check: 'unit', answer: '5 km', reference: '5000 m', details: { answer_value: '5' } };
  assert.deepEqual(verdictOf(graded), {
    tone: 'good',
    text: 'Right: compared by their numbers and units.',
    facts: [
      ['answer read as', '5 km'],
      ['reference read as', '5000 m'],
      ['answer value', '5'],
    ],
  });
  assert.equal(verdictOf({ ...graded, accuracy: 0 }).tone, 'bad');
  assert.match(verdictOf({ ...graded, accuracy: 0.9, check: 'similarity' }).text, /^90 % right: /);
  assert.match(verdictOf({ ...graded, accuracy: 0, check: 'none' }).text, /no answer/);
  assert.deepEqual(choicesOf(' red \n\n blue\n'), ['red', 'blue']);
});

test('only intervals are shown as ranges', () => {
  assert.equal(pairText('difference_ci95', [0.1, 0.25]), '0.1 – 0.25');
  assert.equal(pairText('accuracy', [0.1, 0.25]), '0.1, 0.25');
});
