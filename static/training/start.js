// Starting a job: presets as cards, or the full spec with the equivalent request and command.

import { studioUrl } from '../shared/address.js';
import { api } from '../shared/api.js';
import { copyButton, h, setText, show } from '../shared/dom.js';
import { cliOf, curlOf, dataOf, howLong, parseSpec, stepsOf } from './words.js';

const pretty = (spec) => JSON.stringify(spec, null, 2);

class Card {
  constructor(preset, { onStart, onEdit }) {
    this.preset = preset;
    const { spec } = preset;
    const fact = (name, value) => (value ? [h('dt', {}, name), h('dd', {}, value)] : []);
    this.time = h('dd', { class: 'or-num' });
    this.start = h('button', { type: 'button', class: 'or-primary', 'aria-label': `Start ${preset.title}` }, 'Start');
    this.edit = h(
      'button',
      { type: 'button', class: 'or-secondary', 'aria-label': `Full spec of ${preset.title}` },
      'Full spec',
    );
    this.start.addEventListener('click', () => onStart(preset.spec, this));
    this.edit.addEventListener('click', () => onEdit(preset, this.edit));
    this.error = h('p', { class: 'or-error', role: 'alert', hidden: true });
    this.element = h(
      'li',
      { class: 'or-preset', 'data-preset': preset.name },
      h('h3', {}, preset.title),
      h('p', { class: 'or-quiet' }, preset.what),
      h(
        'dl',
        {},
        fact('starts from', spec.base_checkpoint),
        fact('on', dataOf(spec)),
        fact('does', stepsOf(spec)),
        h('dt', {}, 'takes'),
        this.time,
      ),
      this.error,
      h('div', { class: 'or-row' }, this.start, this.edit),
    );
    this.jobs([]);
  }

  jobs(jobs) {
    setText(this.time, howLong(this.preset.spec, jobs).text);
  }

  fail(error) {
    setText(this.error, error?.message ?? '');
    show(this.error, Boolean(error));
  }
}

class Editor {
  #opener = null;

  constructor({ presets, onStart }) {
    this.presets = presets;
    this.onStart = onStart;
    this.preset = h(
      'select',
      { 'aria-label': 'Preset' },
      presets.map((one) => h('option', { value: one.name }, one.title)),
    );
    this.base = h('select', {});
    this.seed = h('input', { type: 'text', inputmode: 'numeric', class: 'or-input', size: 8 });
    this.activate = h('input', { type: 'checkbox' });
    this.text = h('textarea', {
      class: 'or-code',
      rows: 18,
      spellcheck: 'false',
      autocomplete: 'off',
      'aria-label': 'The spec as JSON',
      'aria-describedby': 'or-spec-error',
    });
    this.error = h('div', { class: 'or-error', id: 'or-spec-error', role: 'alert', hidden: true });
    this.curl = h('pre', { class: 'or-code', tabindex: '0', 'aria-label': 'The job as curl' });
    this.cli = h('pre', { class: 'or-code', tabindex: '0', 'aria-label': 'The job as a command' });
    this.start = h('button', { type: 'button', class: 'or-primary', onclick: () => this.#start() }, 'Start this job');
    this.close = h('button', { type: 'button', class: 'or-secondary', onclick: () => this.hide() }, 'Close');
    const field = (label, input) => h('label', { class: 'or-field' }, h('span', {}, label), input);
    const line = (label, box) =>
      h(
        'div',
        { class: 'or-line-of-code' },
        h(
          'div',
          { class: 'or-block-head' },
          h('h4', {}, label),
          h('span', { class: 'or-spring' }),
          copyButton('copy', () => box.textContent),
        ),
        box,
      );
    this.element = h(
      'section',
      { class: 'or-block or-editor', 'aria-label': 'Full spec', hidden: true },
      h('div', { class: 'or-block-head' }, h('h3', {}, 'Full spec'), h('span', { class: 'or-spring' }), this.close),
      h(
        'div',
        { class: 'or-editor-fields' },
        field('preset', this.preset),
        field('starts from', this.base),
        field('seed', this.seed),
        h('label', { class: 'or-check' }, this.activate, h('span', {}, 'activate the result')),
      ),
      h(
        'div',
        { class: 'or-editor-main' },
        h('div', { class: 'or-editor-json' }, this.text, this.error, h('div', { class: 'or-row' }, this.start)),
        h(
          'div',
          { class: 'or-editor-lines' },
          line('curl', this.curl),
          line('command line', this.cli),
          h(
            'p',
            { class: 'or-quiet' },
            'Omitted fields take their defaults. The spec is validated before the job starts, and shown in full with the results.',
          ),
        ),
      ),
    );
    this.preset.addEventListener('change', () =>
      this.#fill(this.presets.find((one) => one.name === this.preset.value).spec),
    );
    this.text.addEventListener('input', () => this.#changed());
    this.base.addEventListener('change', () => this.#set('base_checkpoint', this.base.value));
    this.seed.addEventListener('change', () => {
      const seed = Number(this.seed.value.trim());
      if (Number.isInteger(seed) && seed >= 0) this.#set('seed', seed);
      else this.fail({ message: 'The seed must be a non-negative integer.' });
    });
    this.activate.addEventListener('change', () => this.#set('activate', this.activate.checked));
    this.element.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') this.hide();
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.#start();
    });
  }

  async open(preset, opener) {
    this.#opener = opener;
    show(this.element, true);
    this.preset.value = preset.name;
    this.#fill(preset.spec);
    this.text.focus({ preventScroll: true });
    this.element.scrollIntoView({ block: 'nearest' });
    try {
      const { data } = await api.checkpoints();
      const names = data.filter((one) => !one.problem).map((one) => one.id);
      this.base.replaceChildren(...names.map((name) => h('option', { value: name }, name)));
      this.#mirrorBase(); // keep what is being typed in other fields
    } catch {
      // the text can still be edited and sent
    }
  }

  hide() {
    if (this.element.hidden) return;
    show(this.element, false);
    this.#opener?.focus({ preventScroll: true });
  }

  #fill(spec) {
    this.text.value = pretty(spec);
    this.#changed();
  }

  #set(name, value) {
    const { value: spec } = parseSpec(this.text.value);
    if (spec) this.#fill({ ...spec, [name]: value });
  }

  #changed() {
    const { value, error } = parseSpec(this.text.value);
    this.fail(error ? { message: error } : null);
    this.start.disabled = Boolean(error);
    this.text.rows = Math.max(10, Math.min(26, this.text.value.split('\n').length + 1));
    if (!value) return;
    setText(this.curl, curlOf(studioUrl(), value));
    setText(this.cli, cliOf(studioUrl(), value));
    this.#mirror();
  }

  #mirrorBase() {
    const base = parseSpec(this.text.value).value?.base_checkpoint ?? '';
    if (base && ![...this.base.options].some((one) => one.value === base))
      this.base.append(h('option', { value: base }, base));
    this.base.value = base;
  }

  #mirror() {
    const { value } = parseSpec(this.text.value);
    if (!value) return;
    this.#mirrorBase();
    this.seed.value = value.seed ?? 0;
    this.activate.checked = value.activate === true;
    this.activate.disabled = value.method === 'benchmark';
  }

  #start() {
    const { value } = parseSpec(this.text.value);
    if (value && !this.start.disabled) this.onStart(value, this);
  }

  fail(error) {
    const fields = error?.errors ?? [];
    this.error.replaceChildren(
      ...(!error
        ? []
        : fields.length
          ? [
              h(
                'ul',
                {},
                fields.map((one) =>
                  h('li', {}, h('strong', {}, one.path.replace(/^body\.?/, '') || 'spec'), `: ${one.message}`),
                ),
              ),
            ]
          : [error.message]),
    );
    show(this.error, Boolean(error));
  }
}

export class Start {
  /** presets: those of `training.spec.presets`, as plain objects. onJob(job): a job was accepted. */
  constructor(presets, { onJob }) {
    this.onJob = onJob;
    this.presets = presets;
    this.editor = new Editor({ presets, onStart: (spec, from) => this.#start(spec, from) });
    const handlers = {
      onStart: (spec, from) => this.#start(spec, from),
      onEdit: (preset, opener) => this.editor.open(preset, opener),
    };
    this.cards = presets.filter((one) => one.card).map((preset) => new Card(preset, handlers));
    this.element = h(
      'section',
      { class: 'or-start', 'aria-label': 'Start a job' },
      h(
        'header',
        { class: 'or-start-head' },
        h('h2', {}, 'Start a job'),
        h(
          'p',
          { class: 'or-quiet' },
          'Jobs run in parallel with the studio, at a lower priority. They can be watched below, stopped and resumed; their checkpoints can be activated on the Checkpoints page.',
        ),
      ),
      h(
        'ul',
        { class: 'or-presets' },
        this.cards.map((card) => card.element),
      ),
      this.editor.element,
    );
  }

  jobs(jobs) {
    for (const card of this.cards) card.jobs(jobs);
  }

  /** Opens the spec of a PeSFT job on these traces. */
  trainOn(traceIds) {
    this.use('pesft', { source: 'traces', trace_ids: traceIds });
  }

  /** Opens the spec of a job of this method on this data. */
  use(method, data) {
    const opener = document.activeElement;
    const found = this.presets.find((one) => one.card && one.spec.method === method);
    const bare = { method, base_checkpoint: method === 'zero' ? 'nano-base' : 'nano-omni-r1', seed: 0 };
    this.editor.open({ name: found?.name ?? '', spec: { ...(found?.spec ?? bare), data } }, opener);
  }

  async #start(spec, from) {
    from.fail(null);
    from.start.disabled = true;
    try {
      const job = await api.startJob(spec);
      this.editor.hide();
      this.onJob(job);
    } catch (error) {
      from.fail(error);
    } finally {
      from.start.disabled = false;
    }
  }
}
