// Why an address shows no comparison, and the way on. Pure, for tests.

import { GALLERY, NEW } from '../viewer/notice.js';

const openOne = (label, id) => [label, `/?trace=${encodeURIComponent(id)}`];

/** The notice for an address that does not name two traces, or null. */
export function wrongAddress(ids) {
  if (ids.length === 2) return null;
  const links = [['choose two in the gallery', '/gallery'], NEW];
  if (ids.length !== 1) return { text: 'A comparison takes two traces: ?compare=ID,ID.', links };
  const text = 'A comparison takes two traces: ?compare=ID,ID. This address names only one.';
  return { text, links: [openOne('open this trace', ids[0]), ...links] };
}

/** The notice for traces that this server does not have, or null; left and right are the states of the viewers. */
export function missingOf(left, right) {
  if (left.missing && right.missing) {
    const text =
      'Neither trace exists on this server. They may have been deleted, or the link is from another machine.';
    return { text, links: [GALLERY, NEW] };
  }
  if (!left.missing && !right.missing) return null;
  const [gone, other] = left.missing ? [left, right] : [right, left];
  if (!other.traceId || other.status === 'loading') return null;
  const side = gone === left ? 'first' : 'second';
  const [what, label] =
    other.parent?.trace_id === gone.missing
      ? ['The parent of this branch was deleted, so the branch is shown alone.', 'open the branch']
      : [`The ${side} trace does not exist on this server, so the other one is shown alone.`, 'open this trace'];
  return { text: what, links: [openOne(label, other.traceId), GALLERY] };
}
