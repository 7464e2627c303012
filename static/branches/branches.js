// The branches of the Studio's trace: steps that are edited in place, and the tree under the timeline.

import { api } from '../shared/api.js';
import { isLive } from '../viewer/state.js';
import { StepEditor } from './edit.js';
import { grown, withState } from './layout.js';
import { Tree } from './tree.js';

export class Branches {
  #viewer;
  #tree = null;
  #traceId = null; // the one that the viewer showed last
  #live = false; // it was live then
  #asked = 0;

  /** onOpen(trace | id): show another trace, a new one as the response of its POST. onCompare(left, right). */
  constructor(viewer, { onOpen, onCompare }) {
    this.#viewer = viewer;
    this.editor = new StepEditor({
      onBranch: (trace, parent) => {
        this.#tree = grown(this.#tree, parent, trace);
        onOpen(trace);
      },
    });
    this.tree = new Tree({ onOpen, onCompare });
    viewer.timeline.element.parentElement.after(this.tree.element);
  }

  edit(index) {
    this.editor.open(this.#viewer, index);
  }

  /** After every change of the viewer. */
  follow() {
    const { state } = this.#viewer;
    this.editor.follow(this.#viewer);
    const { traceId, status } = state;
    if (traceId && status === 'loading') return; // without a trace there is no tree
    const known = this.#tree?.nodes.some((node) => node.id === traceId) ?? false;
    const other = traceId !== this.#traceId;
    const ended = !other && this.#live && !isLive(state);
    this.#traceId = traceId;
    this.#live = isLive(state);
    if (!known) this.#tree = null;
    // a trace that is running for the first time has no branches yet
    if (traceId && ((other && !known && (!isLive(state) || state.parent)) || (ended && known))) this.#ask(traceId);
    if (this.#tree && traceId) this.#tree = withState(this.#tree, state);
    this.tree.update(this.#tree, traceId);
  }

  async #ask(traceId) {
    const turn = ++this.#asked;
    try {
      const tree = await api.tree(traceId);
      if (turn !== this.#asked || this.#viewer.state.traceId !== traceId) return;
      this.#tree = tree;
      this.follow();
    } catch {
      // the trace itself is shown all the same
    }
  }
}
