// The members of a group as a plain value, and how the events of its one stream change it. Pure.

import { initialState, isTerminal, reduce, withTrace } from '../viewer/state.js';

/** group: of GET /v1/groups/{id}; rows: what is known of its traces. */
export function wallOf(group, rows = []) {
  const known = new Map(rows.map((row) => [row.id, row]));
  const common = rows[0] ? { ...rows[0], verdict: null, sampling: null, status: 'queued' } : null;
  return {
    groupId: group.id,
    over: false, // all have ended
    tally: group.status === 'completed' ? group.tally : null, // of the server, once all have ended
    agreement: group.agreement ?? null,
    members: group.trace_ids.map((id) => {
      const row = known.get(id) ?? (common && { ...common, id });
      return row ? withTrace(initialState(id), row) : initialState(id);
    }),
  };
}

/** The event's own number is the group's: a member counts its own. */
function withEvent(wall, { type, data }) {
  if (type === 'group.completed') return ended(wall, data);
  const at = wall.members.findIndex((member) => member.traceId === data.trace_id);
  if (at < 0) return wall;
  const members = wall.members.slice();
  members[at] = reduce(members[at], { seq: members[at].lastSeq + 1, type, data });
  return { ...wall, members };
}

// Only the tally has the verdicts.
function ended(wall, { tally, agreement }) {
  const verdicts = new Map(tally.map((row) => [row.answer, row.verdict ?? null]));
  const members = wall.members.map((member) => {
    const answer = verdicts.get(member.hasAnswer ? member.answer.trim() : null) ?? null;
    return answer && !member.verdict ? { ...member, verdict: { answer } } : member;
  });
  return { ...wall, over: true, tally, agreement, members };
}

export const reduceWall = (wall, events) => events.reduce(withEvent, wall);

/** The answers so far: `[{answer, count, share, verdict}]`, the most frequent first. */
export function tallyOf(wall) {
  if (wall.tally) return wall.tally;
  const counts = new Map();
  const done = wall.members.filter(isTerminal);
  for (const member of done) {
    const answer = member.hasAnswer ? member.answer.trim() : null;
    counts.set(answer, (counts.get(answer) ?? 0) + 1);
  }
  return [...counts]
    .map(([answer, count]) => ({ answer, count, share: count / done.length, verdict: null }))
    .sort((a, b) => (a.answer === null) - (b.answer === null) || b.count - a.count);
}

/** `3 of 8 done`, for the head of the wall. */
export function headOf(wall) {
  const all = wall.members.length;
  const done = wall.members.filter(isTerminal).length;
  if (done < all && !wall.tally) return `${done} of ${all} samples done`;
  if (wall.agreement === null) return `${all} samples, no answer`;
  return `${all} samples · ${Math.round(wall.agreement * 100)} % agree`;
}

/** running | paused | ended: determines the buttons. */
export function phaseOfWall(wall) {
  if (wall.tally) return 'ended';
  if (wall.members.some(({ status }) => ['loading', 'queued', 'running'].includes(status))) return 'running';
  return wall.members.some(({ status }) => status === 'paused') ? 'paused' : 'ended';
}
