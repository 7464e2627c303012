// What the Studio shows in the place of the trace, as its address says: `?trace=ID`, `?group=ID` or `?compare=ID,ID`.

import { urlOf } from '../shared/address.js';
import { Branches } from '../branches/branches.js';
import { h, setAttr, show } from '../shared/dom.js';
import { Wall } from '../wall/wall.js';
import { Why } from '../why/why.js';
import { Compare } from './compare.js';

/** `{view, ids}` of an address's query. Pure, for tests. */
export function viewOf(search) {
  const query = new URLSearchParams(search);
  if (query.has('compare')) return { view: 'compare', ids: query.get('compare').split(',').filter(Boolean) };
  if (query.get('group')) return { view: 'wall', ids: [query.get('group')] };
  return { view: 'trace', ids: query.get('trace') ? [query.get('trace')] : [] };
}

const NARROW = '(max-width: 900px)';
const ADDRESS = { compare: 'compare', wall: 'group', trace: 'trace' };
const addressOf = (view, ids) => (ids.length ? `/?${ADDRESS[view]}=${ids.map(encodeURIComponent).join(',')}` : '/');

export class Views {
  #viewer;
  #view = 'trace';
  #onTrace;
  #onState;

  /**
   * onTrace(): another stored trace or group was opened, or none is shown any more; onState(): the wall or the view has changed;
   * onTravel(): the browser's Back or Forward was used.
   */
  constructor(viewer, { onTrace, onState, onTravel }) {
    this.#viewer = viewer;
    this.#onTrace = onTrace;
    this.#onState = onState;
    const onCompare = (left, right) => this.go('compare', [left, right]);
    this.branches = new Branches(viewer, { onOpen: (trace) => this.#branch(trace), onCompare });
    this.why = new Why(viewer, { onOpen: (id) => this.go('trace', [id]), onCompare });
    this.wall = new Wall({ onOpen: (id) => this.go('trace', [id]), onCompare, onState });
    this.compare = new Compare({ onClose: () => this.go('trace', this.compare.one ? [this.compare.one] : []) });
    this.back = h('button', { type: 'button', class: 'or-link' }, '← all samples');
    this.back.addEventListener('click', () => this.go('wall', [viewer.state.groupId]));
    this.backRow = h('p', { class: 'or-back', hidden: true }, this.back);
    viewer.root.before(this.wall.element, this.compare.element, this.backRow);
    window.addEventListener('popstate', () => {
      onTravel();
      this.open();
    });
  }

  /** trace | wall | compare */
  get view() {
    return this.#view;
  }

  /** The state of the trace, or of the first sample, that is shown. */
  get state() {
    return (this.#view === 'wall' ? this.wall.state : null) ?? this.#viewer.state;
  }

  /** The phase of what is shown, if it is not the viewer's trace. */
  get phase() {
    if (this.#view === 'trace') return null;
    return this.#view === 'wall' ? this.wall.phase : 'ended';
  }

  /** Shows what the address says. */
  async open() {
    const { view, ids } = viewOf(location.search);
    this.#show(view);
    if (view === 'wall') await this.#openWall(ids[0]);
    else if (view === 'compare') this.compare.open(ids);
    else if (!ids.length) {
      if (!this.#viewer.state.traceId) return;
      this.#viewer.clear();
      this.#onTrace();
    } else if (ids[0] !== this.#viewer.state.traceId) {
      await this.#viewer.open(ids[0]);
      const same = viewOf(location.search).ids[0] === ids[0] && this.#viewer.state.traceId === ids[0];
      if (!same || this.#view !== 'trace') return;
      this.#scroll();
      this.#onTrace();
    }
  }

  async #openWall(groupId) {
    const other = groupId !== this.wall.groupId;
    await this.wall.open(groupId);
    if (other && this.#view === 'wall' && this.wall.groupId === groupId) this.#onTrace();
  }

  /** Shows something else, which Back leaves again. */
  async go(view, ids) {
    history.pushState(null, '', urlOf(addressOf(view, ids)));
    await this.open();
    this.#shown.focus({ preventScroll: true });
  }

  /** A trace or a group that this page has just created: `trace` is the response of its POST. */
  started(trace) {
    const group = trace.group_id !== null && trace.group_id !== undefined;
    const [view, id] = group ? ['wall', trace.group_id] : ['trace', trace.id];
    this.#show(view);
    if (group) {
      this.wall.started(trace);
      this.wall.element.focus({ preventScroll: true });
    } else this.#viewer.started(trace);
    history.pushState(null, '', urlOf(addressOf(view, [id])));
    this.#scroll();
  }

  get #shown() {
    return { trace: this.#viewer.root, wall: this.wall.element, compare: this.compare.element }[this.#view];
  }

  #scroll() {
    if (matchMedia(NARROW).matches) this.#shown.scrollIntoView({ block: 'start' });
  }

  #branch(trace) {
    if (typeof trace === 'string') this.go('trace', [trace]);
    else this.started(trace);
  }

  #show(view) {
    this.#view = view;
    if (view !== 'wall') this.wall.rest();
    if (view !== 'compare') this.compare.rest();
    setAttr(document.documentElement, 'data-view', view);
    show(this.#viewer.root, view === 'trace');
    show(this.wall.element, view === 'wall');
    show(this.compare.element, view === 'compare');
    this.follow();
    this.#onState();
  }

  /** After every change of the viewer. */
  follow() {
    this.branches.follow();
    this.why.follow();
    show(this.backRow, this.#view === 'trace' && this.#viewer.state.groupId !== null);
  }

  /** Stops what is shown. */
  stop() {
    return this.#view === 'wall' ? this.wall.stop() : this.#viewer.stop();
  }
}
