// The Gallery: all traces as cards, newest first, filtered, paginated. Opens them in the Studio's viewer.

import { studioUrl, urlOf } from '../shared/address.js';
import { api } from '../shared/api.js';
import { serve } from '../shared/bridge.js';
import { Place, copyButton, h, icon, openDialog, setText, show, sureButton } from '../shared/dom.js';
import { onBack } from '../viewer/server.js';
import { Viewer } from '../viewer/viewer.js';
import { readQuestion } from '../shared/words.js';
import { whenOf } from '../shared/when.js';
import { Rating } from '../curate/rating.js';
import { curate, onCurated } from '../curate/save.js';
import { Selection } from '../curate/selection.js';
import { tagRow } from '../curate/tags.js';
import { Stack } from '../wall/stack.js';
import { Filters } from './filters.js';
import { forgetTrace } from './header.js';

const PAGE = 24;
const LARGE_PAGE = 100;
const FEW = 12; // tiles; a group may take up a whole page of traces
const MOST_LARGE_PAGES = 4;
const WAIT_MS = 200;
const GONE = 'This trace was deleted after this page was loaded. Close this to remove its card.';
const MOST_TAGS = 4; // on a card
const STATUS = {
  queued: 'waiting',
  running: 'running',
  paused: 'paused',
  cancelled: 'stopped',
  failed: 'failed',
  interrupted: 'interrupted',
};

const thumbnail = (image, label) =>
  h(
    'span',
    { class: 'or-card-picture' },
    image
      ? h('img', {
          src: image.url,
          alt: label,
          loading: 'lazy',
          width: 96,
          height: 96,
          class: image.width <= 96 ? 'or-pixels' : '',
        })
      : null,
  );

class Gallery {
  #stacks = new Map(); // group id -> its tile
  #drawn = new Map(); // trace id -> update(trace) of its card
  #turn = 0;
  #timer = 0;
  #last = null;
  #failed = false;
  #place = new Place();

  mount(element) {
    return this.#place.into(element, () => this.#draw(element));
  }

  #draw(element) {
    this.grid = h('ul', { class: 'or-cards', 'aria-label': 'Traces' });
    this.word = h('p', { class: 'or-quiet or-gallery-word', role: 'status' });
    this.more = h(
      'button',
      { type: 'button', class: 'or-secondary', hidden: true, onclick: () => this.#page() },
      'show more',
    );
    this.filters = new Filters({ onChange: () => this.#changed() });
    this.selection = new Selection({
      grid: this.grid,
      onCompare: (...ids) => location.assign(urlOf(`/?compare=${ids.map(encodeURIComponent).join(',')}`)),
      onDelete: (item) => this.#delete(item),
      say: (text) => setText(this.word, text),
    });
    const bar = h('div', { class: 'or-gallery-bar' }, this.word, this.selection.toggle);
    const more = h('div', { class: 'or-more' }, this.more);
    element.replaceChildren(this.filters.element, bar, this.selection.bar, this.grid, more);
    onBack(() => this.#back());
    onCurated((trace) => this.#curated(trace));
    this.#skeleton();
    this.#names();
    return this.#begin();
  }

  // the cards report an unreachable server
  #names() {
    return this.filters.load().catch(() => {});
  }

  // After an outage: load what is missing.
  #back() {
    this.#names();
    if (this.#failed) this.#begin();
  }

  #changed() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#begin(), WAIT_MS);
  }

  #skeleton() {
    this.grid.replaceChildren(
      ...Array.from({ length: 8 }, () => h('li', { class: 'or-card or-skeleton', 'aria-hidden': 'true' })),
    );
  }

  async #begin() {
    this.#last = null;
    const turn = ++this.#turn;
    await this.#page(turn);
  }

  // `large`: how many large pages have followed because the page had only few tiles.
  async #page(turn = ++this.#turn, large = 0) {
    const first = this.#last === null;
    this.more.disabled = true;
    try {
      const query = {
        limit: large ? LARGE_PAGE : PAGE,
        ...this.filters.value,
        ...(first ? {} : { after: this.#last }),
      };
      const { data, has_more: hasMore } = await api.traces(query);
      if (turn !== this.#turn) return;
      this.#failed = false;
      if (first) {
        this.#stacks.clear();
        this.#drawn.clear();
        this.selection.clear();
      }
      const cards = data.map((trace) => this.#tile(trace, data)).filter(Boolean);
      if (first) this.grid.replaceChildren(...cards);
      else this.grid.append(...cards);
      if (data.length) this.#last = data[data.length - 1].id;
      show(this.more, hasMore);
      const filtered = Object.keys(this.filters.value).length > 0;
      setText(
        this.word,
        first && !data.length
          ? filtered
            ? 'No trace matches these filters.'
            : 'No traces yet. Ask a question in the Studio to create one.'
          : '',
      );
      if (!first && !large) cards[0]?.querySelector('.or-card-open')?.focus({ preventScroll: true });
      if (hasMore && cards.length < FEW && large < MOST_LARGE_PAGES) await this.#page(turn, large + 1);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#failed = true;
      if (first) this.grid.replaceChildren();
      setText(this.word, error.message);
    } finally {
      this.more.disabled = false;
    }
  }

  // Samples that were asked for together are one tile.
  #tile(trace, page) {
    if (!trace.group_id) return this.#card(trace);
    if (this.#stacks.has(trace.group_id)) return null;
    const drawn = page.find((one) => one.group_id === trace.group_id && one.last_image) ?? trace;
    const remove = () => api.removeGroup(trace.group_id);
    const stack = new Stack(trace, {
      pictures: [thumbnail(trace.first_image, 'Question'), thumbnail(drawn.last_image, 'Last image')],
      foot: [
        this.#origin(trace),
        h('span', { class: 'or-spring' }),
        this.#deleteButton('Delete all of these samples', 'delete all?', remove, () => stack.element),
      ],
    });
    this.#stacks.set(trace.group_id, stack);
    const traces = async () => {
      const [group, { data }] = await Promise.all([
        api.group(trace.group_id),
        api.traces({ group: trace.group_id, limit: 100 }),
      ]);
      return data.map((member) => ({ ...member, intervention: group.kind === 'intervention' }));
    };
    this.selection.adopt(stack.element, { name: `samples of ${readQuestion(trace.question)}`, traces });
    this.#count(trace.group_id, stack);
    return stack.element;
  }

  // The listed traces are only those of this page that match: the group knows all, and the filters how many match.
  async #count(groupId, stack) {
    const filters = this.filters.value;
    const filtered = Object.keys(filters).length > 0;
    try {
      const [group, found] = await Promise.all([
        api.group(groupId),
        filtered ? api.traces({ ...filters, group: groupId, limit: 100 }) : null,
      ]);
      stack.update(group, found && found.data.length);
    } catch (error) {
      if (this.#stacks.get(groupId) !== stack) return;
      if (error.status === 404) this.#drop(stack.element);
      else {
        this.#failed = true;
        setText(this.word, error.message);
      }
    }
  }

  #origin(trace) {
    const time = h('time', { datetime: trace.created_at, title: trace.created_at }, whenOf(trace.created_at));
    return h('span', { class: 'or-quiet or-card-origin', title: trace.checkpoint }, `${trace.checkpoint} · `, time);
  }

  #card(trace) {
    const open = h(
      'button',
      { type: 'button', class: 'or-card-open', 'aria-label': `Open the trace: ${readQuestion(trace.question)}` },
      h(
        'span',
        { class: 'or-card-pictures' },
        thumbnail(trace.first_image, 'Question'),
        h('span', { class: 'or-card-arrow', 'aria-hidden': 'true' }, '→'),
        thumbnail(trace.last_image, 'Last image'),
      ),
      h('span', { class: 'or-card-question', dir: 'auto' }, readQuestion(trace.question)),
    );
    const rating = new Rating({ onRate: (value) => this.#rate(trace.id, value) });
    const tags = h('div', { class: 'or-card-tagging' });
    const update = (curated) => {
      trace = { ...trace, rating: curated.rating, tags: curated.tags };
      rating.update(trace.rating);
      tags.replaceChildren(tagRow(trace.tags, MOST_TAGS, (tag) => this.filters.pick(tag)));
    };
    const verdict = trace.verdict?.answer;
    const answer =
      trace.answer === null || trace.answer === undefined
        ? h('span', { class: 'or-quiet' }, STATUS[trace.status] ?? 'no answer')
        : h('strong', { dir: 'auto' }, trace.answer.trim() || '(empty)');
    const remove = async () => {
      await api.remove(trace.id);
      forgetTrace(trace.id);
    };
    const item = h(
      'li',
      { class: 'or-card', 'data-trace': trace.id },
      open,
      h(
        'div',
        { class: 'or-card-answer' },
        answer,
        verdict
          ? h('span', { class: 'or-verdict', 'data-tone': verdict }, verdict === 'right' ? '✓ right' : '✗ wrong')
          : null,
      ),
      tags,
      h(
        'div',
        { class: 'or-card-foot' },
        this.#origin(trace),
        rating.element,
        h('span', { class: 'or-spring' }),
        copyButton('link', () => `${studioUrl()}/?trace=${encodeURIComponent(trace.id)}`),
        this.#deleteButton('Delete this trace', 'delete?', remove, () => item),
      ),
    );
    update(trace);
    this.#drawn.set(trace.id, update);
    this.selection.adopt(item, { name: readQuestion(trace.question), traces: () => [trace] });
    open.addEventListener('click', () => this.#open(trace, item));
    return item;
  }

  async #rate(traceId, rating) {
    try {
      await curate(traceId, { rating });
    } catch (error) {
      setText(this.word, error.message);
    }
  }

  #curated(trace) {
    this.#drawn.get(trace.id)?.(trace);
  }

  // What a selected card stands for: a trace, or the samples of a group.
  async #delete(item) {
    try {
      if (item.dataset.group) await api.removeGroup(item.dataset.group);
      else {
        await api.remove(item.dataset.trace);
        forgetTrace(item.dataset.trace);
      }
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    this.#drop(item);
  }

  #deleteButton(label, question, remove, itemOf) {
    const act = async () => {
      try {
        await remove();
      } catch (error) {
        if (error.status !== 404) return setText(this.word, error.message);
      }
      return this.#drop(itemOf());
    };
    return sureButton(label, question, act, icon('trash'));
  }

  #drop(item) {
    const next = item.nextElementSibling ?? item.previousElementSibling;
    const focused = item.contains(document.activeElement);
    this.selection.drop(item);
    item.remove();
    if (focused) next?.querySelector('.or-card-open')?.focus();
    if (!this.grid.children.length) this.#begin();
  }

  #open(trace, item) {
    const place = h('div');
    const studio = h('a', { href: `/?trace=${encodeURIComponent(trace.id)}`, class: 'or-link' }, 'open in the Studio');
    const dialog = openDialog('Trace', h('p', { class: 'or-dialog-bar' }, studio), place);
    dialog.classList.add('or-wide');
    const gone = () => {
      studio.replaceWith(h('span', { role: 'alert' }, GONE));
      place.remove();
      dialog.classList.remove('or-wide');
      dialog.addEventListener('close', () => this.#drop(item));
    };
    const viewer = new Viewer(place, {
      traceId: trace.id,
      again: 'open it in the Studio to ask again',
      onState: ({ state }) => state.missing === trace.id && place.isConnected && gone(),
    });
    dialog.addEventListener('close', () => viewer.destroy());
    viewer.root.focus({ preventScroll: true });
  }
}

export const gallery = new Gallery();

serve('gallery', gallery);
