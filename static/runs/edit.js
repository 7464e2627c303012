// The dialog of one run: its name, tags and note, and going on from it for more steps.

import { Tags } from '../curate/tags.js';
import { api } from '../shared/api.js';
import { h, openDialog, setText, show } from '../shared/dom.js';

const CONTINUED = new Set(['pesft', 'perpo']);

const field = (label, input) => h('label', { class: 'or-field' }, h('span', {}, label), input);

/** Opens it; onChange(job) after a change, onJob(job) with a new job. */
export function openEdit(job, label, { onChange, onJob }) {
  const name = h('input', { class: 'or-input', maxlength: 100, value: job.name ?? '' });
  let tags = job.tags ?? [];
  const editor = new Tags({ onChange: (all) => (tags = all) });
  editor.update(tags);
  const note = h('textarea', { class: 'or-input', maxlength: 2000, rows: 3 });
  note.value = job.note ?? '';
  const error = h('p', { class: 'or-error', role: 'alert', hidden: true });
  const said = h('div', { role: 'status' });
  const fail = (text) => {
    setText(error, text);
    show(error, Boolean(text));
  };
  const save = h('button', { type: 'submit', class: 'or-primary' }, 'Save');
  const form = h(
    'form',
    { class: 'or-runs-form' },
    field('Name', name),
    h('div', { class: 'or-field' }, h('span', {}, 'Tags'), editor.element),
    field('Note', note),
    h('div', {}, save),
  );
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    fail('');
    const change = { name: name.value.trim() || null, tags, note: note.value };
    try {
      onChange(await api.updateJob(job.id, change));
      dialog.close();
    } catch (problem) {
      fail(problem.message);
    }
  });
  const parts = [h('h2', {}, label), form, error];
  if (job.status === 'succeeded' && CONTINUED.has(job.method)) parts.push(goOn(job, { fail, said, onJob }), said);
  const dialog = openDialog(`Run ${label}`, h('div', { class: 'or-runs-edit' }, ...parts));
}

function goOn(job, { fail, said, onJob }) {
  const steps = h('input', { class: 'or-input', type: 'number', min: 1, required: true });
  steps.value = String(job.result?.steps ?? 100);
  const start = h('button', { type: 'submit', class: 'or-secondary' }, 'Go on');
  const form = h(
    'form',
    { class: 'or-runs-form' },
    h('h3', {}, 'Go on for more steps'),
    h('p', { class: 'or-quiet' }, 'A new run with these weights, this optimiser state and the same order of data.'),
    h('div', { class: 'or-row' }, field('Further steps', steps), start),
  );
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    fail('');
    start.disabled = true;
    try {
      const made = await api.continueJob(job.id, { steps: Number(steps.value) });
      const { differs } = made.continues;
      const words = differs.length
        ? ['It starts, and differs from one longer run: ', ...differs]
        : ['It starts. The result will be that of one run of all steps.'];
      said.replaceChildren(h('p', {}, words.join(' ')));
      onJob(made);
    } catch (problem) {
      fail(problem.message);
      start.disabled = false;
    }
  });
  return form;
}
