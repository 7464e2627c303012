// Texts of the Training page: statuses, times, warnings with remedies, the job as curl and as a command. Pure functions,
// testable without a browser.

export const METHODS = {
  pesft: 'PeSFT',
  perpo: 'PeRPO',
  zero: 'Zero',
  benchmark: 'Benchmark',
  pipeline: 'Whole recipe',
};

/** The name of a stage; for `benchmark:NAME` the name of the compared checkpoint. */
export function stageName(stage) {
  const [name, other] = String(stage ?? '').split(':');
  return `${METHODS[name] ?? name}${other ? ` of ${other}` : ''}`;
}

/** The position of a sample in its job. */
export const whereOf = ({ stage, step, prompt }) =>
  String(stage).startsWith('benchmark') ? `question ${(prompt ?? 0) + 1}` : `step ${Number(step).toLocaleString('en')}`;

/** `{tone, text}` of a job's status. tone: wait | run | done | stop | fail, as in the trace viewer. */
export function statusOf(job) {
  switch (job.status) {
    case 'queued':
      return { tone: 'wait', text: 'queued' };
    case 'running':
      if (job.cancelRequested) return { tone: 'run', text: 'stopping at the end of this step' };
      return job.progress?.waiting
        ? { tone: 'wait', text: waitsFor(job.progress.waiting) }
        : { tone: 'run', text: 'running' };
    case 'succeeded':
      return { tone: 'done', text: 'done' };
    case 'cancelled':
      return { tone: 'stop', text: 'stopped' };
    case 'interrupted':
      return { tone: 'fail', text: 'interrupted' };
    case 'failed':
      return { tone: 'fail', text: 'failed' };
    default:
      return { tone: 'wait', text: 'opening the job' };
  }
}

/** How a job ended and what to do now; null while all is well. */
export function troubleOf(job) {
  const detail = job.error?.detail ? ` ${job.error.detail.trim()}` : '';
  const full = /[.!?]$/.test(detail) || !detail ? detail : `${detail}.`;
  const kept = job.resumable ?? job.resumable === undefined; // null: unknown
  const afresh = job.resumable === false ? ' No state was saved: start it again.' : '';
  if (job.status === 'interrupted') {
    const why = 'The server or the machine stopped while this job ran.';
    return kept ? `${why} Resume continues from its last checkpoint, with identical results.` : `${why}${afresh}`;
  }
  if (job.status === 'failed' && job.error?.code === 'activation_failed') {
    return `The training is done and its checkpoints are kept, but the last one could not be activated.${full} Try to activate it on the Checkpoints page.`;
  }
  if (job.status === 'failed') {
    const then = kept
      ? ' Its saved state is kept: fix the cause and press Resume, or start again with another spec.'
      : afresh;
    return `This job failed.${full}${then}`;
  }
  if (job.status === 'cancelled' && full)
    return `Stopped by force:${full}${kept ? ' Resume continues from there.' : afresh}`;
  if (job.status === 'cancelled' && !job.startedAt) return 'Stopped before it started.';
  if (job.status === 'cancelled')
    return kept
      ? 'Stopped at the end of a step, with its state saved. Resume continues from there.'
      : `Stopped.${afresh}`;
  return null;
}

/** `4 min 10 s`, `1 h 5 min`: two units at most. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return '';
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60)
    return minutes < 10 && whole % 60 ? `${minutes} min ${whole % 60} s` : `${Math.round(whole / 60)} min`;
  const hours = Math.floor(minutes / 60);
  return `${hours} h${minutes % 60 ? ` ${minutes % 60} min` : ''}`;
}

const between = (from, to) => (from && to ? (Date.parse(to) - Date.parse(from)) / 1000 : null);

/** The run time of an ended job; null for one that is running or never started. */
export const tookOf = (job) =>
  job.started_at && job.finished_at ? (job.running_s ?? between(job.started_at, job.finished_at)) : null;

const TOO_SHORT = 10; // a job this many times shorter is dominated by its start-up

/** The expected time of a preset, from the longest job that has run here: `{text, known}`. */
export function howLong(spec, jobs) {
  const steps = (one) => one?.hyperparameters?.steps ?? null;
  const done = jobs.filter((job) => job.status === 'succeeded' && job.method === spec.method && tookOf(job) > 0);
  if (!done.length) return { known: false, text: 'unknown until it has run here' };
  const longest = done.reduce((a, b) => ((steps(b.spec) ?? 0) > (steps(a.spec) ?? 0) ? b : a));
  const took = tookOf(longest);
  const scale = steps(spec) && steps(longest.spec) ? steps(spec) / steps(longest.spec) : null;
  if (scale === null || scale === 1) return { known: true, text: `${duration(took)} in the last run here` };
  if (scale > TOO_SHORT) return { known: false, text: 'unknown until it has run here at this length' };
  return {
    known: true,
    text: `about ${duration(took * scale)} here (${steps(longest.spec)} steps took ${duration(took)})`,
  };
}

const count = (value) => Number(value).toLocaleString('en');
const SOURCES = {
  unitasks: 'the procedural world',
  tasks: 'a task family of your own',
  jsonl: 'files',
  traces: 'saved traces',
  zebra_cot: 'Zebra-CoT',
  m3cot: 'M3CoT',
  omni_bench: 'Omni-Bench',
};

function many(data) {
  if (data.num_samples)
    return `${count(data.num_samples)} ${['unitasks', 'tasks'].includes(data.source) ? 'tasks' : 'samples'}`;
  return data.trace_ids ? count(data.trace_ids.length) : 'all samples';
}
const origin = (data) =>
  `${SOURCES[data.source] ?? data.source}${(data.path ?? data.family) ? ` (${data.path ?? data.family})` : ''}`;

/** A job's training data as text; stages that share a source name it once. */
export function dataOf(spec) {
  const data = spec.data ?? {};
  if (data.source) return `${many(data)} of ${origin(data)}`;
  const bySource = new Map();
  for (const [stage, one] of Object.entries(data)) {
    if (one?.source)
      bySource.set(origin(one), [...(bySource.get(origin(one)) ?? []), `${stageName(stage)} ${many(one)}`]);
  }
  return [...bySource].map(([from, stages]) => `${stages.join(', ')} of ${from}`).join(' · ');
}

/** The number of steps as text. */
export function stepsOf(spec) {
  const given = spec.hyperparameters ?? {};
  if (spec.method !== 'pipeline') return given.steps ? `${count(given.steps)} steps` : '';
  return Object.entries(given)
    .filter(([, one]) => one?.steps)
    .map(([stage, one]) => `${stageName(stage)} ${count(one.steps)} steps`)
    .join(' · ');
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The curl command that starts this job. */
export function curlOf(origin, spec) {
  return `curl -s ${origin}/v1/jobs -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(spec))}`;
}

/** The command that starts this job. */
export function cliOf(origin, spec) {
  const { host } = new URL(origin);
  const address = host === '127.0.0.1:7860' ? '' : `OMNI_R1_URL=${origin} `; // the default
  const { method, ...rest } = spec;
  return `${address}.venv/bin/omni-r1 train ${method} --spec ${quoted(JSON.stringify(rest))}`;
}

/** `{value}` or `{error}`: the editor's text as a spec; the error names the line if the browser reports it. */
export function parseSpec(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const at = /position (\d+)/.exec(error.message);
    const line = at ? ` (line ${text.slice(0, Number(at[1])).split('\n').length})` : '';
    return { error: `This is not valid JSON${line}: ${error.message.replace(/ in JSON at position.*$/, '')}.` };
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value))
    return { error: 'A spec must be one JSON object: { … }.' };
  if (!METHODS[value.method]) return { error: `“method” must be one of ${Object.keys(METHODS).join(', ')}.` };
  return { value };
}

/** The warnings of jobs: meaning and remedy. Mirrored in docs/training-page.md. */
export const WARNINGS = {
  blank_pictures: {
    title: 'Blank images are increasing',
    means:
      'More of the generated images are (nearly) one colour. The perception score alone would reward them, so they count 0 here.',
    todo: 'Look at the samples. If it continues: stop, return to the last good checkpoint, and raise the weight of accuracy or lower the learning rate; in PeSFT try a smaller λ (perception_weight).',
  },
  reward_collapse: {
    title: 'The perception reward no longer distinguishes images',
    means:
      'All scores of R_Pe are nearly equal and provide no training signal: τ is far from the scale of this codebook’s energies. A larger τ pushes every score toward 1.',
    todo: 'Stop and set reward.tau to the checkpoint’s own value (omit it), or choose one from the τ sweep in docs/experiments.',
  },
  format_errors_rising: {
    title: 'Format errors are rising',
    means:
      'More traces fail to parse: an image is incomplete, or the answer part is missing. In reinforcement learning this means that the policy is drifting from the trained format.',
    todo: 'Raise kl_coef or the weight of the format reward (reward.beta), or lower the learning rate; a larger max_new_tokens helps when traces hit the length limit.',
  },
  degenerate_groups: {
    title: 'Most groups provide no training signal',
    means:
      'For most prompts, all answers were right or all were wrong, so their groups were dropped. The tasks are too easy or too hard for the current model.',
    todo: 'Set data.difficulty to adaptive, choose a harder or easier level or other slices, or raise rollouts_per_prompt or oversampling.',
  },
  copied_pictures: {
    title: 'Images are being copied',
    means:
      'More images repeat the previous one instead of drawing something. A copy is smooth and would score well, so it counts 0 here.',
    todo: 'Look at the samples. If it continues: lower reward.gamma or the learning rate, or return to the last good checkpoint.',
  },
  capped_pictures: {
    title: 'Images are smoother than real ones',
    means:
      'More images reach the cap of the perception reward: they are smoother than the reference images, which is how blank images begin.',
    todo: 'Watch the share of blank images. Lower reward.gamma if it rises.',
  },
  logprob_mismatch: {
    title: 'Sampler and trainer disagree',
    means:
      'The sampling probabilities of the traces differ from those the trainer computes. In fp32 they should agree within 0.0001; the update is unintentionally off-policy.',
    todo: 'Use precision fp32. If it is fp32 already, this is a bug: please report it with the spec.',
  },
  tracker_failed: {
    title: 'A tracker was given up',
    means: 'The metrics of this job no longer reach one of the trackers in report_to. The job itself goes on.',
    todo: 'Install its package in the environment of the server, or check its address and key, before the next job; all metrics are also on the Runs page.',
  },
  tracker_behind: {
    title: 'A tracker does not keep up',
    means:
      'A tracker in report_to takes rows of metrics more slowly than the job makes them, so some are missing there.',
    todo: 'Raise log_every, or look at the metrics here, where none is missing.',
  },
  precision_emulated: {
    title: 'bf16 is only emulated here',
    means:
      'The spec requests bf16, but this CPU does not support it in hardware. PyTorch emulates it, which is many times slower than fp32.',
    todo: 'Set precision to auto or fp32, or train on a machine with AVX-512 BF16, AMX or a GPU.',
  },
  samples_rejected: {
    title: 'Some samples were skipped',
    means: 'They were invalid, too long, or lacked an image. Samples are never truncated or repaired silently.',
    todo: 'The first of each kind is named here with its line; all are listed in runs/…/rejected.jsonl in the job’s folder. Fix the file, or raise max_len if they are only too long.',
  },
  context_exceeded: {
    title: 'The context is shorter than the lengths asked for',
    means:
      'What the job’s lengths ask for exceeds its context: samples of more tokens are left out, and completions end there.',
    todo: 'Raise context (at most 16,384 tokens), or lower max_len or max_new_tokens.',
  },
  fewer_samples: {
    title: 'The data has fewer rows than requested',
    means: 'num_samples is an upper bound: all rows of the data were read, and the job runs on those.',
    todo: 'Nothing, if the data is complete. Otherwise add rows, or lower num_samples.',
  },
  scoring_errors: {
    title: 'Some traces could not be scored',
    means: 'Scoring raised an error; these traces were left out of the update. In a validation they count as wrong.',
    todo: 'See the log for the reason. The job ends when more than a tenth of the traces fail.',
  },
  judge_silent: {
    title: 'The judge gave no verdict on some answers',
    means: 'The endpoint did not reply, or its reply had no verdict. These answers were graded by the rules.',
    todo: 'Check the endpoint’s address, key and load, then start the benchmark again.',
  },
  save_failed: {
    title: 'A checkpoint could not be written',
    means: 'The folder is not writable. Training continues, and the next checkpoint is attempted as scheduled.',
    todo: 'Check the reason and the permissions of the folder. The job fails only if its last checkpoint cannot be written; then fix the cause and press Resume.',
  },
  disk_full: {
    title: 'The disk was full',
    means:
      'The job waits for free space and then continues where it was. Nothing is lost; older optimiser states were deleted first.',
    todo: 'Free space on the home’s disk: delete unneeded checkpoints, jobs or other files. Stop works while the job waits.',
  },
  events_lost: {
    title: 'Events were lost',
    means:
      'The job’s log could not be written for a while. Training continued; the charts and samples of that time are missing.',
    todo: 'Check the reason in the log: a failing disk, or permissions of the folder. Later checkpoints are not affected.',
  },
  checkpoint_exists: {
    title: 'A checkpoint’s name was taken',
    means:
      'Another checkpoint got this name while the job ran. The files are in the job’s folder, but they are not listed.',
    todo: 'Register the folder under another name, or delete the other checkpoint.',
  },
};

/** `{title, means, todo}` of a warning; unknown codes of newer servers are shown with their detail. */
export function warningOf({ code, detail }) {
  return (
    WARNINGS[code] ?? {
      title: code.replaceAll('_', ' '),
      means: detail || 'Reported by the job.',
      todo: 'See the log below.',
    }
  );
}

/** The screen reader announcement for the change from `before` to `after`. */
export function announcementOf(before, after) {
  const said = [];
  if (before.status !== after.status && after.status !== 'loading') said.push(`Job ${statusOf(after).text}.`);
  if (before.progress?.stage !== after.progress?.stage && after.progress)
    said.push(`Stage ${stageName(after.progress.stage)}.`);
  for (const one of after.checkpoints) {
    if (!before.checkpoints.some((other) => other.name === one.name)) said.push(`Checkpoint ${one.name} saved.`);
  }
  for (const one of after.warnings) {
    if (!before.warnings.some((other) => other.code === one.code)) said.push(`Warning: ${warningOf(one).title}.`);
  }
  return said.join(' ');
}

/** A number of bytes as `1.5 MB`. */
export function bytes(value) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  const at = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, value)) / 3));
  return `${at ? (value / 1000 ** at).toFixed(1) : value} ${units[at]}`;
}

const waitsFor = (waiting) => (waiting.for === 'disk' ? 'waiting for disk space' : 'waiting for room in the cluster');

/** `needs 1.2 GB of disk space, 3.0 MB free`, for a waiting job; of a cluster what the server says. */
export const roomOf = ({ for: what, needed_bytes: needed, free_bytes: free, detail }) =>
  what === 'disk' ? `needs ${bytes(needed)} of disk space, ${bytes(free)} free` : detail;

/** `step 40 of 60 · 2 min left` for a running job. */
export function progressOf({ status, progress }) {
  if (!progress) return status === 'running' ? 'starting' : '';
  if (progress.waiting) return roomOf(progress.waiting);
  const { step = 0, total = 0, eta_s: eta } = progress;
  const where = total ? `step ${count(step)} of ${count(total)}` : `step ${count(step)}`;
  return eta > 0 ? `${where} · ${duration(eta)} left` : where;
}

/** The rows of a reward's breakdown: `[name, value, share]`, share = the length of the bar. */
export function rewardRows(rewards) {
  const names = [
    ['total', 'reward'],
    ['accuracy', 'accuracy'],
    ['format', 'format'],
    ['perception', 'perception'],
    ['functional', 'right drawings'],
  ];
  return names
    .filter(([key]) => typeof rewards?.[key] === 'number')
    .map(([key, name]) => [name, rewards[key]])
    .concat(Object.entries(rewards?.custom ?? {}))
    .map(([name, value]) => [name, value, Math.max(0, Math.min(1, value))]);
}

const CHECKS = {
  exact: 'word for word',
  option: 'by the options that both name',
  number: 'by their numbers',
  unit: 'by their numbers and units',
  date: 'by their dates',
  time: 'by their times of day',
  ratio: 'by their ratios',
  set: 'by their items',
  formula: 'by the values of their formulas',
  text: 'by their words',
  similarity: 'by the similarity of their words',
};

/** Options from a text with one per line; empty lines are ignored. */
export const choicesOf = (text) =>
  text
    .split('\n')
    .map((line) => line.trim())
    .filter(Boolean);

/** `{tone, text, facts}` for the response of POST /v1/rewards. facts: [name, value] pairs. */
export function verdictOf({ accuracy, check, answer, reference, details }) {
  if (check === 'none')
    return { tone: 'bad', text: 'Wrong: there is no answer or no reference to compare.', facts: [] };
  const word = accuracy === 1 ? 'Right' : accuracy === 0 ? 'Wrong' : `${Math.round(accuracy * 100)} % right`;
  const facts = [
    ['answer read as', answer],
    ['reference read as', reference],
  ];
  const shown = Object.entries(details).map(([name, value]) => [name.replaceAll('_', ' '), value]);
  return {
    tone: accuracy === 1 ? 'good' : 'bad',
    text: `${word}: compared ${CHECKS[check] ?? check}.`,
    facts: [...facts, ...shown],
  };
}
