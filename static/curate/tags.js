// The tags of a trace: chips that can be removed, and a field that adds one.

import { h, icon, setText } from '../shared/dom.js';
import { withTag } from './choose.js';

const LONGEST = 32; // as the server has it
const MOST = 32;
const known = new Set(); // seen or given on this page: suggestions

export const learn = (tags) => tags.forEach((tag) => known.add(tag));

/** A list of known tags for an input; `fill` brings it up to date. */
export function suggestions(id) {
  const element = h('datalist', { id });
  const fill = () => element.replaceChildren(...[...known].sort().map((tag) => h('option', { value: tag })));
  return { element, fill };
}

let count = 0;

export class Tags {
  #tags = [];

  /** onChange(tags): all of them. */
  constructor({ onChange }) {
    this.onChange = onChange;
    const id = `or-known-tags-${++count}`;
    const { element, fill } = suggestions(id);
    this.list = h('ul', { class: 'or-tags', 'aria-label': 'Tags' });
    this.input = h('input', {
      type: 'text',
      class: 'or-input or-tag-input',
      placeholder: 'add a tag',
      'aria-label': 'Add a tag',
      maxlength: LONGEST,
      autocomplete: 'off',
      list: id,
      onfocus: fill,
      onkeydown: (event) => this.#key(event),
      onblur: () => this.#add(),
    });
    this.element = h('div', { class: 'or-tag-editor' }, this.list, this.input, element);
  }

  #key(event) {
    if (event.key === 'Enter' && !event.isComposing) {
      event.preventDefault();
      this.#add();
    } else if (event.key === 'Escape' && this.input.value) {
      event.stopPropagation();
      this.input.value = '';
    } else if (event.key === 'Backspace' && !this.input.value && this.#tags.length) {
      this.#change(this.#tags.slice(0, -1));
    }
  }

  #add() {
    const tags = withTag(this.#tags, this.input.value);
    this.input.value = '';
    if (tags !== this.#tags) this.#change(tags);
  }

  #change(tags) {
    this.update(tags);
    this.onChange(tags);
  }

  #remove(tag) {
    const at = this.#tags.indexOf(tag);
    this.#change(this.#tags.filter((one) => one !== tag));
    (this.list.querySelectorAll('button')[Math.min(at, this.#tags.length - 1)] ?? this.input).focus();
  }

  update(tags) {
    this.#tags = tags;
    learn(tags);
    this.input.hidden = tags.length >= MOST;
    this.list.replaceChildren(
      ...tags.map((tag) => {
        const remove = h('button', { type: 'button', class: 'or-tag-remove', 'aria-label': `Remove the tag ${tag}` });
        remove.append(icon('close'));
        remove.addEventListener('click', () => this.#remove(tag));
        return h('li', { class: 'or-tag' }, h('span', { dir: 'auto' }, tag), remove);
      }),
    );
    this.list.hidden = !tags.length;
  }

  /** Forgets what is being typed. */
  reset() {
    this.input.value = '';
  }
}

/** The tags of a card as buttons, `most` of them: onPick(tag). */
export function tagRow(tags, most, onPick) {
  learn(tags);
  const rest = h('span', { class: 'or-quiet' });
  setText(rest, tags.length > most ? `+${tags.length - most}` : '');
  return h(
    'div',
    { class: 'or-card-tags', hidden: !tags.length },
    tags.slice(0, most).map((tag) =>
      h(
        'button',
        {
          type: 'button',
          class: 'or-tag or-tag-pick',
          title: `Only traces tagged ${tag}`,
          onclick: () => onPick(tag),
        },
        h('span', { dir: 'auto' }, tag),
      ),
    ),
    rest,
  );
}
