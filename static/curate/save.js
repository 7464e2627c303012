// Saves ratings, tags and notes, one change after the other, and reports them to all parts of the page.

import { api } from '../shared/api.js';
import { Signal } from '../shared/signal.js';

const saved = new Signal();
let last = Promise.resolve();

/** Calls `listener(trace)` after each change; returns a function that ends it. */
export const onCurated = (listener) => saved.listen(listener);

/** Sets what `change` gives of rating, tags and note; resolves to the trace. */
export function curate(traceId, change) {
  const turn = last.then(async () => {
    const trace = await api.update(traceId, change);
    saved.say(trace);
    return trace;
  });
  last = turn.catch(() => {});
  return turn;
}
