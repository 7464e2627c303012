// The Checkpoints page: shows checkpoints and their lineage; activates, reverts, registers, deletes and compares them.

import { urlOf } from '../shared/address.js';
import { whenOf } from '../shared/when.js';
import { refreshCheckpoints } from '../studio/header.js';
import { wordsOf } from '../shared/notes.js';
import { short } from '../shared/series.js';
import { api } from '../shared/api.js';
import { serve } from '../shared/bridge.js';
import { Place, h, icon, setAttr, setText, show, sureButton } from '../shared/dom.js';
import { onBack } from '../viewer/server.js';
import { Activation, previous } from './activate.js';
import { Board, resultTable } from './board.js';
import { Compare } from './compare.js';
import { boardsOf, factsOf, folded, forestOf, madeBy, measureOf, whyNot } from './lineage.js';

class Checkpoints {
  #all = [];
  #selected = null;
  #unread = false; // the list could not be fetched
  #place = new Place();

  mount(element) {
    return this.#place.into(element, () => this.#begin(element));
  }

  async #begin(element) {
    this.tree = h('ul', { class: 'or-tree', 'aria-label': 'Checkpoints by lineage' });
    this.word = h('p', { class: 'or-error', role: 'alert', hidden: true });
    this.back = h(
      'button',
      { type: 'button', class: 'or-secondary', hidden: true, onclick: () => this.#activate(previous()) },
      '',
    );
    this.compareButton = h(
      'button',
      { type: 'button', class: 'or-secondary', onclick: () => this.#compare() },
      'Compare two',
    );
    this.detail = h('div', { class: 'or-block or-checkpoint-detail', 'aria-live': 'off' });
    this.activation = new Activation({ changed: () => this.refresh() });
    this.compare = new Compare();
    this.board = new Board();
    element.replaceChildren(
      h(
        'div',
        { class: 'or-checkpoints-main' },
        h(
          'section',
          { class: 'or-block', 'aria-label': 'Lineage' },
          h(
            'div',
            { class: 'or-block-head' },
            h('h2', {}, 'Checkpoints'),
            h('span', { class: 'or-spring' }),
            this.back,
            this.compareButton,
          ),
          this.word,
          this.tree,
          this.#registerForm(),
        ),
        h(
          'section',
          { class: 'or-checkpoint-side', 'aria-label': 'Selected checkpoint' },
          this.activation.element,
          this.detail,
        ),
      ),
      this.board.element,
      this.compare.element,
    );
    onBack((outage) => (outage || this.#unread) && this.refresh());
    const query = new URLSearchParams(location.search);
    this.#selected = query.get('name');
    await this.refresh();
    const pair = query.get('compare')?.split(',');
    if (pair?.length === 2) this.compare.show(...pair);
    document.documentElement.dataset.checkpoints = 'ready';
  }

  async refresh() {
    try {
      this.#all = (await api.checkpoints()).data;
      this.#unread = false;
      this.fail(null);
    } catch (error) {
      this.#unread = true;
      return this.fail(error);
    }
    const names = this.#all.filter((one) => !one.problem).map((one) => one.id);
    if (!this.#all.some((one) => one.id === this.#selected))
      this.#selected = this.#active()?.id ?? this.#all[0]?.id ?? null;
    this.compare.names(names);
    this.compareButton.disabled = names.length < 2;
    const before = previous();
    const possible = names.includes(before) && before !== this.#active()?.id;
    setText(this.back, possible ? `Back to ${before}` : '');
    show(this.back, possible);
    this.board.update(this.#all.flatMap(({ benchmarks }) => benchmarks ?? []));
    this.#drawTree();
    return this.#drawDetail();
  }

  fail(error) {
    setText(this.word, error?.message ?? '');
    show(this.word, Boolean(error));
  }

  #active() {
    return this.#all.find((one) => one.active) ?? null;
  }

  #select(name) {
    this.#selected = name;
    history.replaceState(null, '', urlOf(`/checkpoints?name=${encodeURIComponent(name)}`));
    for (const button of this.tree.querySelectorAll('button'))
      setAttr(button, 'aria-current', button.dataset.name === name ? 'true' : null);
    this.#drawDetail();
    if (matchMedia('(max-width: 900px)').matches) this.detail.scrollIntoView({ block: 'nearest' });
  }

  #activate(name) {
    if (name) this.activation.activate(name, this.#active()?.id ?? null);
  }

  #compare() {
    const active = this.#active()?.id;
    const others = this.#all.filter((one) => !one.problem && one.id !== active).map((one) => one.id);
    const second = this.#selected !== active && others.includes(this.#selected) ? this.#selected : others[0];
    this.compare.show(active, second);
  }

  // ---- tree

  #drawTree() {
    const focused = document.activeElement?.closest?.('.or-tree') ? document.activeElement.dataset.name : null;
    this.tree.replaceChildren(...forestOf(this.#all).map((node) => this.#node(node)));
    if (focused) this.tree.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  #node({ one, children, missing }) {
    const flag = (text, tone) => h('span', { class: 'or-flag', 'data-tone': tone }, text);
    const face = missing
      ? h(
          'span',
          { class: 'or-node or-quiet' },
          h('span', { class: 'or-node-name' }, one.id),
          h('span', {}, 'not on this machine'),
        )
      : h(
          'button',
          {
            type: 'button',
            class: 'or-node',
            'data-name': one.id,
            'aria-current': one.id === this.#selected ? 'true' : null,
            onclick: () => this.#select(one.id),
          },
          h(
            'span',
            { class: 'or-node-line' },
            h('span', { class: 'or-node-name' }, one.id),
            one.active ? flag('active', 'good') : null,
            one.loaded && !one.active ? flag('in memory', 'quiet') : null,
            one.problem ? flag('unusable', 'bad') : null,
            one.in_store ? flag('in the store', 'quiet') : null,
          ),
          h(
            'span',
            { class: 'or-node-line or-quiet' },
            [madeBy(one), measureOf(one)].filter(Boolean).join(' · ') || one.description || '',
          ),
        );
    const list = (nodes) =>
      h(
        'ul',
        {},
        nodes.map((child) => this.#node(child)),
      );
    const rows = folded(children, this.#selected).map(({ node, earlier }) => {
      if (node) return this.#node(node);
      const words = `${earlier.length} earlier ${earlier.length === 1 ? 'step' : 'steps'} of this job`;
      return h('li', {}, h('details', { class: 'or-details or-earlier' }, h('summary', {}, words), list(earlier)));
    });
    return h('li', {}, face, rows.length ? h('ul', {}, rows) : null);
  }

  // ---- selected checkpoint

  #drawDetail() {
    const one = this.#all.find((other) => other.id === this.#selected);
    show(this.detail, Boolean(one));
    if (!one) return;
    const why = whyNot(one);
    const activate = h(
      'button',
      {
        type: 'button',
        class: 'or-primary',
        disabled: Boolean(why.activate),
        title: why.activate ?? '',
        onclick: () => this.#activate(one.id),
      },
      one.active ? 'Active' : 'Activate',
    );
    const active = this.#active()?.id;
    const compare =
      one.active || one.problem
        ? null
        : h(
            'button',
            { type: 'button', class: 'or-secondary', onclick: () => this.compare.show(active, one.id) },
            `Compare with ${active}`,
          );
    const remove = why.remove
      ? null
      : sureButton(`Delete ${one.id}`, 'delete?', () => this.#remove(one.id), icon('trash'));
    const job = one.lineage?.job_id; // a job of this server, not one that only the manifest names
    const measures = Object.entries(one.metrics ?? {}).filter(([, value]) => typeof value === 'number');
    const parts = [
      h('h2', {}, one.id),
      one.description ? h('p', {}, one.description) : null,
      one.problem ? h('p', { class: 'or-error' }, `Unusable: ${one.problem}`) : null,
      one.in_store ? h('p', {}, 'Its files are in the object store; using it fetches them.') : null,
      h('div', { class: 'or-row' }, activate, compare, h('span', { class: 'or-spring' }), remove),
      h(
        'dl',
        { class: 'or-facts-grid' },
        factsOf(one).map(([name, value]) => [
          h('dt', {}, name),
          h('dd', {}, name === 'made' ? h('time', { datetime: value, title: value }, whenOf(value)) : value),
        ]),
        job
          ? [
              h('dt', {}, 'job'),
              h(
                'dd',
                {},
                h('a', { class: 'or-link', href: `/training?job=${encodeURIComponent(job)}` }, 'open the job'),
              ),
            ]
          : [],
      ),
      measures.length ? h('h3', {}, 'Measures') : null,
      measures.length
        ? h(
            'div',
            { class: 'or-scroll', tabindex: '0', role: 'region', 'aria-label': 'Measures' },
            h(
              'table',
              { class: 'or-table' },
              measures
                .sort()
                .map(([name, value]) =>
                  h('tr', {}, h('th', { scope: 'row' }, name), h('td', { class: 'or-num' }, short(value))),
                ),
            ),
          )
        : null,
      one.benchmarks?.length ? h('h3', {}, 'Benchmarks') : null,
      one.benchmarks?.length
        ? resultTable(
            boardsOf(one.benchmarks).flatMap(({ rows }) => rows),
            'Benchmarks',
            false,
          )
        : null,
      one.card_notes ? h('p', { class: 'or-honesty' }, wordsOf(one.card_notes)) : null,
    ];
    this.detail.replaceChildren(...parts.filter(Boolean));
  }

  async #remove(name) {
    try {
      await api.removeCheckpoint(name);
    } catch (error) {
      if (error.status !== 404) return this.fail(error);
    }
    this.#selected = null;
    await this.refresh();
    await refreshCheckpoints();
    this.tree.querySelector('button')?.focus();
    return undefined;
  }

  // ---- registration

  #registerForm() {
    const input = h('input', {
      type: 'text',
      class: 'or-input',
      autocomplete: 'off',
      spellcheck: 'false',
      placeholder: '/folder/of/a/checkpoint or owner/name',
      'aria-label': 'Folder or hub id of a checkpoint',
    });
    const button = h('button', { type: 'submit', class: 'or-secondary' }, 'Register');
    const error = h('p', { class: 'or-error', role: 'alert', hidden: true });
    const form = h(
      'form',
      { class: 'or-register' },
      h('h3', {}, 'Register a checkpoint'),
      h(
        'p',
        { class: 'or-quiet' },
        'A folder in OMNI_R1_HOME or OMNI_R1_ALLOWED_ROOTS on the server’s machine, or a hub id. It is validated before it appears here.',
      ),
      h('div', { class: 'or-row or-register-row' }, input, button),
      error,
    );
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      const source = input.value.trim();
      if (!source) return input.focus();
      button.disabled = true;
      setText(button, 'Checking …');
      show(error, false);
      try {
        const one = await api.register({ source });
        input.value = '';
        this.#selected = one.id;
        await this.refresh();
        await refreshCheckpoints();
      } catch (problem) {
        setText(error, problem.message);
        show(error, true);
      } finally {
        button.disabled = false;
        setText(button, 'Register');
      }
      return undefined;
    });
    return form;
  }
}

export const checkpoints = new Checkpoints();

serve('checkpoints', checkpoints);

/** For the gr.HTML component. */
export function mountCheckpoints(element) {
  return checkpoints.mount(element.querySelector('[data-checkpoints]'));
}
