// The members of a group as a plain value, and how the events of its one stream change it. Pure.

import { initialState, isTerminal, reduce, withTrace } from '../viewer/state.js';
import { REPLACEMENTS } from '../why/words.js';

/** group: of GET /v1/groups/{id}; rows: what is known of its traces; complete: those without a row were deleted. */
export function wallOf(group, rows, { complete = false } = {}) {
  const known = new Map(rows.map((row) => [row.id, row]));
  const common = rows[0] ? { ...rows[0], verdict: null, sampling: null, status: 'queued' } : null;
  return {
    groupId: group.id,
    replaced: new Map((group.effects ?? []).map((effect) => [effect.trace_id, effect])), // of an intervention
    over: false, // all have ended
    tally: group.status === 'completed' ? group.tally : null, // of the server, once all have ended
    agreement: group.agreement ?? null,
    members: group.trace_ids.map((id) => {
      const row = known.get(id) ?? (common && { ...common, id });
      const state = row ? withTrace(initialState(id), row) : initialState(id);
      return complete && !known.has(id) ? { ...state, missing: id } : state;
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

/** The answer of a sample, or null; one that was stopped may have the beginning of an answer. */
export const answerOf = (member) => (member.status === 'completed' && member.hasAnswer ? member.answer.trim() : null);

// Only the tally has the verdicts.
function ended(wall, { tally, agreement }) {
  const verdicts = new Map(tally.map((row) => [row.answer, row.verdict ?? null]));
  const members = wall.members.map((member) => {
    const answer = verdicts.get(answerOf(member)) ?? null;
    return answer && !member.verdict ? { ...member, verdict: { answer } } : member;
  });
  return { ...wall, over: true, tally, agreement, members };
}

export const reduceWall = (wall, events) => events.reduce(withEvent, wall);

// What stands in the place of an answer, by status.
const WITHOUT = { completed: 'no answer', cancelled: 'stopped', failed: 'failed', interrupted: 'interrupted' };

/**
 * What the samples have come to: `[{answer, word, count, share, verdict}]`, the most frequent answer first, then those
 * without one by `word`. Only what the model has ended by itself has a share.
 */
export function tallyOf(wall) {
  const done = wall.members.filter(isTerminal);
  const answers = wall.tally?.filter(({ answer }) => answer !== null) ?? answersOf(done);
  const rows = answers.map((row) => ({ ...row, word: row.answer || '(empty)' }));
  for (const [status, word] of Object.entries(WITHOUT)) {
    const count = done.filter((member) => member.status === status && answerOf(member) === null).length;
    const share = status === 'completed' ? count / done.length : null;
    if (count) rows.push({ answer: null, word, count, share, verdict: null });
  }
  return rows;
}

function answersOf(done) {
  const counts = new Map();
  for (const answer of done.map(answerOf)) {
    if (answer !== null) counts.set(answer, (counts.get(answer) ?? 0) + 1);
  }
  const rows = [...counts].map(([answer, count]) => ({ answer, count, share: count / done.length, verdict: null }));
  return rows.sort((a, b) => b.count - a.count);
}

function headOfReplaced(wall) {
  const all = wall.members.length;
  const done = wall.members.filter(isTerminal).length;
  return done < all && !wall.tally ? `${done} of ${all} replaced images done` : `${all} replaced images`;
}

/** `step 1: a blank image`: what was replaced in a member of an intervention; null for a sample. */
export function replacedOf(wall, traceId) {
  const effect = wall.replaced.get(traceId);
  return effect ? `step ${effect.step}: ${REPLACEMENTS[effect.with].cell}` : null;
}

/** `3 of 8 samples done`, for the head of the wall. */
export function headOf(wall) {
  const all = wall.members.length;
  if (wall.replaced.size) return headOfReplaced(wall);
  const done = wall.members.filter(isTerminal).length;
  if (done < all && !wall.tally) return `${done} of ${all} samples done`;
  const stopped = wall.members.filter(({ status }) => status === 'cancelled').length;
  if (stopped) return `${all} samples · ${stopped === all ? 'all' : stopped} stopped`;
  if (wall.agreement === null) return `${all} samples, no answer`;
  return `${all} samples · ${Math.round(wall.agreement * 100)} % agree`;
}

/** Whether every sample is the same: the most likely token is always chosen. */
export const isGreedy = (wall) => wall.members.some(({ sampling }) => sampling?.temperature === 0);

/** running | paused | ended: determines the buttons. */
export function phaseOfWall(wall) {
  if (wall.tally) return 'ended';
  if (wall.members.some(({ status }) => ['loading', 'queued', 'running'].includes(status))) return 'running';
  return wall.members.some(({ status }) => status === 'paused') ? 'paused' : 'ended';
}
