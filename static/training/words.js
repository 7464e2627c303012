// The words of the Training page: statuses, times, what a warning means and what to do about it, the same job as a curl
// and as a command line. Pure functions, so that they are tested without a browser.

export const METHODS = { pesft: 'PeSFT', perpo: 'PeRPO', zero: 'Zero', benchmark: 'Benchmark', pipeline: 'Whole recipe' };

/** The name of a stage; `benchmark:NAME` is that of the checkpoint compared with. */
export function stageName(stage) {
  const [name, other] = String(stage ?? '').split(':');
  return `${METHODS[name] ?? name}${other ? ` of ${other}` : ''}`;
}

/** Where in a job a sample was drawn. */
export const whereOf = ({ stage, step, prompt }) =>
  (String(stage).startsWith('benchmark') ? `question ${(prompt ?? 0) + 1}` : `step ${Number(step).toLocaleString('en')}`);

/** `{tone, text}` of a job's status. tone: wait | run | done | stop | fail, as in the trace viewer. */
export function statusOf(job) {
  switch (job.status) {
    case 'queued':
      return { tone: 'wait', text: 'waiting for its turn' };
    case 'running':
      if (job.cancelRequested) return { tone: 'run', text: 'stopping at the end of this step' };
      return job.progress?.waiting ? { tone: 'wait', text: 'waiting for room on the disk' } : { tone: 'run', text: 'running' };
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

/** The sentence that says how a job ended and what to do now; null while all is well. */
export function troubleOf(job) {
  const detail = job.error?.detail ? ` ${job.error.detail.trim()}` : '';
  const full = /[.!?]$/.test(detail) || !detail ? detail : `${detail}.`;
  const kept = job.resumable ?? job.resumable === undefined; // null: not known yet
  const afresh = job.resumable === false ? ' It had saved nothing yet: start it again.' : '';
  if (job.status === 'interrupted') {
    const why = 'The server or the machine stopped while this job ran.';
    return kept ? `${why} Resume goes on from its last checkpoint, to the same numbers.` : `${why}${afresh}`;
  }
  if (job.status === 'failed' && job.error?.code === 'activation_failed') {
    return `The training is done and its checkpoints are kept, but the last one could not be put to work.${full} Try to activate it on the Checkpoints page.`;
  }
  if (job.status === 'failed') {
    const then = kept ? ' What it had saved is kept: mend the cause and press Resume, or start again with another spec.' : afresh;
    return `This job failed.${full}${then}`;
  }
  if (job.status === 'cancelled' && full) return `Stopped by force:${full}${kept ? ' Resume goes on from there.' : afresh}`;
  if (job.status === 'cancelled' && !job.startedAt) return 'Stopped before it began.';
  if (job.status === 'cancelled') return kept ? 'Stopped at the end of a step, with its state saved. Resume goes on from there.' : `Stopped.${afresh}`;
  return null;
}

/** `4 min 10 s`, `1 h 5 min`: two units at most. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return '';
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return minutes < 10 && whole % 60 ? `${minutes} min ${whole % 60} s` : `${Math.round(whole / 60)} min`;
  const hours = Math.floor(minutes / 60);
  return `${hours} h${minutes % 60 ? ` ${minutes % 60} min` : ''}`;
}

const between = (from, to) => (from && to ? (Date.parse(to) - Date.parse(from)) / 1000 : null);

/** How long the workers of an ended job ran; null for one that runs or never began. */
export const tookOf = (job) => (job.started_at && job.finished_at ? (job.running_s ?? between(job.started_at, job.finished_at)) : null);

const TOO_SHORT = 10; // a job this many times shorter says more about its start than about its steps

/** What a preset will take here, from the longest of the jobs that have run here: `{text, known}`. */
export function howLong(spec, jobs) {
  const steps = (one) => one?.hyperparameters?.steps ?? null;
  const done = jobs.filter((job) => job.status === 'succeeded' && job.method === spec.method && tookOf(job) > 0);
  if (!done.length) return { known: false, text: 'known once it has run here' };
  const longest = done.reduce((a, b) => ((steps(b.spec) ?? 0) > (steps(a.spec) ?? 0) ? b : a));
  const took = tookOf(longest);
  const scale = steps(spec) && steps(longest.spec) ? steps(spec) / steps(longest.spec) : null;
  if (scale === null || scale === 1) return { known: true, text: `${duration(took)} here the last time` };
  if (scale > TOO_SHORT) return { known: false, text: 'known once it has run here at this length' };
  return { known: true, text: `about ${duration(took * scale)} here (${steps(longest.spec)} steps took ${duration(took)})` };
}

const count = (value) => Number(value).toLocaleString('en');
const SOURCES = {
  unitasks: 'the procedural world', jsonl: 'a jsonl folder', traces: 'saved traces', zebra_cot: 'Zebra-CoT', m3cot: 'M3CoT', omni_bench: 'Omni-Bench',
};

const many = (data) => (data.num_samples ? `${count(data.num_samples)} ${data.source === 'unitasks' ? 'tasks' : 'samples'}` : 'all samples');
const origin = (data) => `${SOURCES[data.source] ?? data.source}${data.path ? ` (${data.path})` : ''}`;

/** What a job trains on, in words; stages that share a source name it once. */
export function dataOf(spec) {
  const data = spec.data ?? {};
  if (data.source) return `${many(data)} of ${origin(data)}`;
  const bySource = new Map();
  for (const [stage, one] of Object.entries(data)) {
    if (one?.source) bySource.set(origin(one), [...(bySource.get(origin(one)) ?? []), `${stageName(stage)} ${many(one)}`]);
  }
  return [...bySource].map(([from, stages]) => `${stages.join(', ')} of ${from}`).join(' · ');
}

/** How many steps of what, in words. */
export function stepsOf(spec) {
  const given = spec.hyperparameters ?? {};
  if (spec.method !== 'pipeline') return given.steps ? `${count(given.steps)} steps` : '';
  return Object.entries(given).filter(([, one]) => one?.steps).map(([stage, one]) => `${stageName(stage)} ${count(one.steps)} steps`).join(' · ');
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The curl line that starts this job. */
export function curlOf(origin, spec) {
  return `curl -s ${origin}/v1/jobs -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(spec))}`;
}

/** The command that starts this job. */
export function cliOf(origin, spec) {
  const { host } = new URL(origin);
  const address = host === '127.0.0.1:7860' ? '' : `OMNI_R1_URL=${origin} `; // that one it finds by itself
  const { method, ...rest } = spec;
  return `${address}.venv/bin/omni-r1 train ${method} --spec ${quoted(JSON.stringify(rest))}`;
}

/** `{value}` or `{error}`: the editor's text as a spec; the line is named where the browser says it. */
export function parseSpec(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const at = /position (\d+)/.exec(error.message);
    const line = at ? ` (line ${text.slice(0, Number(at[1])).split('\n').length})` : '';
    return { error: `This is not valid JSON${line}: ${error.message.replace(/ in JSON at position.*$/, '')}.` };
  }
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return { error: 'A spec is one JSON object: { … }.' };
  if (!METHODS[value.method]) return { error: `“method” must be one of ${Object.keys(METHODS).join(', ')}.` };
  return { value };
}

/** The failure signs of training, in plain words: what it means and what to do. */
export const WARNINGS = {
  blank_pictures: {
    title: 'The pictures are going blank',
    means: 'More of the drawn pictures are (nearly) one colour. The perception score alone would reward that, so they count 0 here.',
    todo: 'Look at the samples. If it goes on: stop, go back to the last good checkpoint, and raise the weight of accuracy or lower the learning rate; in PeSFT try a smaller λ (perception_weight).',
  },
  reward_collapse: {
    title: 'The perception reward no longer tells pictures apart',
    means: 'All scores of R_Pe are nearly alike, so it cannot teach anything: τ is far from the scale of this codebook’s energies. A larger τ pushes every score toward 1.',
    todo: 'Stop and set reward.tau to the checkpoint’s own value (leave it out), or choose one by the τ sweep in docs/experiments.',
  },
  format_errors_rising: {
    title: 'Format errors are rising',
    means: 'More traces do not parse: a picture is cut short, or there is no answer part. In reinforcement learning that means the policy drifts from the form it was taught.',
    todo: 'Raise kl_coef or the weight of the format reward (reward.beta), or lower the learning rate; more room (max_new_tokens) helps when traces are cut off by their length.',
  },
  degenerate_groups: {
    title: 'Most groups teach nothing',
    means: 'All answers of a prompt got the same reward, so the group was dropped. The tasks are too easy or too hard for this model now.',
    todo: 'Take a harder or an easier level or other slices, or raise rollouts_per_prompt or oversampling.',
  },
  copied_pictures: {
    title: 'Pictures are being copied',
    means: 'More pictures repeat the one before them instead of drawing something. A copy is smooth and would score well, so it counts 0 here.',
    todo: 'Look at the samples. If it goes on: lower reward.gamma or the learning rate, or go back to the last good checkpoint.',
  },
  capped_pictures: {
    title: 'Pictures are smoother than real ones',
    means: 'More pictures reach the cap of the perception reward: they are smoother than the reference pictures, which is how blank pictures begin.',
    todo: 'Watch the blank share. Lower reward.gamma if it follows.',
  },
  logprob_mismatch: {
    title: 'Sampler and trainer disagree',
    means: 'The probabilities with which the traces were drawn differ from those the trainer computes. In fp32 they should agree within 0.0001; the update is off-policy without meaning to be.',
    todo: 'Use precision fp32. If it is fp32 already this is a fault of the program: please report it with the spec.',
  },
  precision_emulated: {
    title: 'bf16 is only emulated here',
    means: 'The spec asks for bf16, but this CPU has no bf16 in hardware. PyTorch emulates it, which is many times slower than fp32.',
    todo: 'Set precision to auto or fp32, or train on a machine with AVX-512 BF16, AMX or a GPU.',
  },
  samples_rejected: {
    title: 'Some samples were left out',
    means: 'They were broken, too long, or lacked a picture. Nothing is cut or repaired silently.',
    todo: 'The first of each kind is named here with its line; all stand in runs/…/rejected.jsonl of the job’s folder. Mend the file, or raise max_len if they are only too long.',
  },
  scoring_errors: {
    title: 'Some traces could not be scored',
    means: 'Scoring raised an error; these traces were left out of the update instead of being counted as wrong.',
    todo: 'The log has the reason. Above a tenth of them the job ends by itself.',
  },
  judge_silent: {
    title: 'The judge gave no verdict on some answers',
    means: 'The endpoint did not answer, or not with a verdict. For these answers the verdict of the rules counts.',
    todo: 'Check the endpoint’s address, key and load, then start the benchmark again.',
  },
  save_failed: {
    title: 'A checkpoint could not be written',
    means: 'The folder cannot be written. Training goes on, and the next checkpoint is tried at its turn.',
    todo: 'Look at the reason and at the rights of the folder. The job fails only where its last checkpoint cannot be written; then mend the cause and press Resume.',
  },
  disk_full: {
    title: 'The disk was full',
    means: 'The job waits until there is room, and then goes on where it was. Nothing is lost; older optimiser states were removed first.',
    todo: 'Make room on the disk that holds the home: delete checkpoints or jobs that you do not need, or other files. Stop works while it waits.',
  },
  events_lost: {
    title: 'Events were lost',
    means: 'The job’s log could not be written for a while. Training went on; the charts and samples of that time are missing.',
    todo: 'Look at the reason in the log: a disk that fails, or rights of the folder. Later checkpoints are not affected.',
  },
  checkpoint_exists: {
    title: 'A checkpoint’s name was taken',
    means: 'Another checkpoint got this name while the job ran. The files are in the job’s folder, but they are not listed.',
    todo: 'Register the folder under another name, or delete the other checkpoint.',
  },
};

/** `{title, means, todo}` of a warning; a code of a newer server is shown with its own detail. */
export function warningOf({ code, detail }) {
  return WARNINGS[code] ?? { title: code.replaceAll('_', ' '), means: detail || 'The job reports this.', todo: 'The log below has more.' };
}

/** What a screen reader hears when `before` becomes `after`. */
export function announcementOf(before, after) {
  const said = [];
  if (before.status !== after.status && after.status !== 'loading') said.push(`Job ${statusOf(after).text}.`);
  if (before.progress?.stage !== after.progress?.stage && after.progress) said.push(`Stage ${stageName(after.progress.stage)}.`);
  for (const one of after.checkpoints) {
    if (!before.checkpoints.some((other) => other.name === one.name)) said.push(`Checkpoint ${one.name} saved.`);
  }
  for (const one of after.warnings) {
    if (!before.warnings.some((other) => other.code === one.code)) said.push(`Warning: ${warningOf(one).title}.`);
  }
  return said.join(' ');
}

/** `1.5 MB`, for a number of bytes. */
export function bytes(value) {
  const units = ['bytes', 'kB', 'MB', 'GB', 'TB'];
  const at = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, value)) / 3));
  return `${at ? (value / 1000 ** at).toFixed(1) : value} ${units[at]}`;
}

/** `needs 1.2 GB on the disk, 3.0 MB are free`, for a job that waits. */
export const roomOf = ({ needed_bytes: needed, free_bytes: free }) => `needs ${bytes(needed)} on the disk, ${bytes(free)} are free`;

/** `step 40 of 60 · 2 min left` for a running job. */
export function progressOf({ status, progress }) {
  if (!progress) return status === 'running' ? 'getting ready' : '';
  if (progress.waiting) return roomOf(progress.waiting);
  const { step = 0, total = 0, eta_s: eta } = progress;
  const where = total ? `step ${count(step)} of ${count(total)}` : `step ${count(step)}`;
  return eta > 0 ? `${where} · ${duration(eta)} left` : where;
}

/** The rows of a reward's breakdown: `[name, value, share]`, share = how far the bar goes. */
export function rewardRows(rewards) {
  const names = [['total', 'reward'], ['accuracy', 'accuracy'], ['format', 'format'], ['perception', 'perception']];
  return names.filter(([key]) => typeof rewards?.[key] === 'number')
    .map(([key, name]) => [name, rewards[key], Math.max(0, Math.min(1, rewards[key]))]);
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

/** Options from a text with one a line; empty lines do not count. */
export const choicesOf = (text) => text.split('\n').map((line) => line.trim()).filter(Boolean);

/** `{tone, text, facts}` of what POST /v1/rewards answers. facts: [name, value] pairs. */
export function verdictOf({ accuracy, check, answer, reference, details }) {
  if (check === 'none') return { tone: 'bad', text: 'Wrong: there is no answer, or no reference to compare it with.', facts: [] };
  const word = accuracy === 1 ? 'Right' : accuracy === 0 ? 'Wrong' : `${Math.round(accuracy * 100)} % right`;
  const facts = [['answer read as', answer], ['reference read as', reference]];
  const shown = Object.entries(details).map(([name, value]) => [name.replaceAll('_', ' '), value]);
  return { tone: accuracy === 1 ? 'good' : 'bad', text: `${word}: compared ${CHECKS[check] ?? check}.`, facts: [...facts, ...shown] };
}
