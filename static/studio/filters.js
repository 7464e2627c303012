// The Gallery's filters: fields whose values stand in the address, so that reload and Back restore them.

import { urlOf } from '../shared/address.js';
import { api } from '../shared/api.js';
import { SLICES } from '../shared/contract.js';
import { h } from '../shared/dom.js';
import { suggestions } from '../curate/tags.js';

export const CHOICES = {
  slice: SLICES,
  verdict: ['right', 'wrong'],
  rating: ['1', '0', '-1'],
};
const RATINGS = { 1: 'good', 0: 'neither', '-1': 'bad' };
const NAMES = ['q', 'slice', 'verdict', 'rating', 'tag', 'checkpoint'];
const LONGEST = { q: 200, tag: 32, checkpoint: 200 }; // as the server has it

/** The filters in a query string, without unknown and empty ones (pure). */
export function filtersOf(search) {
  const query = new URLSearchParams(search);
  const found = {};
  for (const name of NAMES) {
    const value = (query.get(name) ?? '').trim().slice(0, LONGEST[name]);
    if (value && (CHOICES[name]?.includes(value) ?? true)) found[name] = value;
  }
  return found;
}

/** The Gallery's address with these filters (pure). */
export function addressOf(filters) {
  const query = String(new URLSearchParams(filters));
  return query ? `/gallery?${query}` : '/gallery';
}

export class Filters {
  #typing = false; // the address already has an entry for the words being typed
  #names = [];

  /** onChange(filters): called when the user or Back has changed them. */
  constructor({ onChange }) {
    this.onChange = onChange;
    const menu = (name, any, values) =>
      h(
        'select',
        { name, onchange: () => this.#changed(false) },
        h('option', { value: '' }, any),
        values.map((value) => h('option', { value }, name === 'rating' ? RATINGS[value] : value)),
      );
    const { element: known, fill } = suggestions('or-filter-tags');
    this.fields = {
      q: h('input', {
        type: 'search',
        name: 'q',
        placeholder: 'any words',
        maxlength: LONGEST.q,
        oninput: () => this.#changed(true),
      }),
      slice: menu('slice', 'any slice', CHOICES.slice),
      verdict: menu('verdict', 'any verdict', CHOICES.verdict),
      rating: menu('rating', 'any rating', CHOICES.rating),
      tag: h('input', {
        type: 'search',
        name: 'tag',
        placeholder: 'any tag',
        maxlength: LONGEST.tag,
        list: known.id,
        onfocus: fill,
        oninput: () => this.#changed(true),
      }),
      checkpoint: menu('checkpoint', 'any checkpoint', []),
    };
    const labels = {
      q: 'Words',
      slice: 'Slice',
      verdict: 'Verdict',
      rating: 'Rating',
      tag: 'Tag',
      checkpoint: 'Checkpoint',
    };
    this.element = h(
      'form',
      {
        class: 'or-filters',
        role: 'search',
        'aria-label': 'Filter the traces',
        onsubmit: (event) => event.preventDefault(),
      },
      Object.entries(this.fields).map(([name, field]) =>
        h(
          'label',
          { class: 'or-field', id: `or-filter-${labels[name].toLowerCase()}` },
          h('span', {}, labels[name]),
          field,
        ),
      ),
      known,
    );
    this.#fill(filtersOf(location.search));
    window.addEventListener('popstate', () => {
      this.#typing = false;
      this.#fill(filtersOf(location.search));
      this.onChange(this.value);
    });
  }

  get value() {
    const all = Object.entries(this.fields).map(([name, field]) => [name, field.value.trim()]);
    return Object.fromEntries(all.filter(([, value]) => value));
  }

  /** Shows only traces with this tag, in addition to the other filters. */
  pick(tag) {
    this.fields.tag.value = tag;
    this.#changed(false);
  }

  /** Fetches the names of the checkpoints. */
  async load() {
    this.#names = (await api.checkpoints()).data.map((one) => one.id);
    this.#fill(this.value);
  }

  #fill(filters) {
    const { checkpoint } = this.fields;
    const wanted = filters.checkpoint ?? '';
    // a deleted checkpoint keeps its traces
    const names = this.#names.includes(wanted) || !wanted ? this.#names : [...this.#names, wanted];
    checkpoint.replaceChildren(checkpoint.options[0], ...names.map((value) => h('option', { value }, value)));
    for (const [name, field] of Object.entries(this.fields)) {
      const value = filters[name] ?? '';
      if (field.value.trim() !== value) field.value = value;
    }
    checkpoint.value = wanted;
  }

  // typing makes one entry of the history, every other choice its own
  #changed(typing) {
    const change = typing && this.#typing ? 'replaceState' : 'pushState';
    this.#typing = typing;
    history[change](null, '', urlOf(addressOf(this.value)));
    this.onChange(this.value);
  }
}
