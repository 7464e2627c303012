// The tree of a trace as rows, and its words. Pure, for tests.

const VERDICTS = { right: '✓ right', wrong: '✗ wrong' };
const STATUS = {
  queued: 'waiting',
  running: 'running',
  paused: 'paused',
  cancelled: 'stopped',
  failed: 'failed',
  interrupted: 'interrupted',
  deleted: 'deleted',
};

/** The last step that a branch shares with its parent: before its first edit. */
export const partsAfter = ({ after_step: after, edited_steps: edited }) =>
  edited.length ? Math.min(...edited) - 1 : (after ?? 0);

/** The nodes without interventions, which are often many; the shown trace and the ancestors of the others stay. */
export function withoutInterventions(nodes, current) {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const kept = new Set();
  for (const node of nodes) {
    if (node.intervention && node.id !== current) continue;
    for (let one = node; one && !kept.has(one); one = byId.get(one.parent_id)) kept.add(one);
  }
  return nodes.filter((node) => kept.has(node));
}

/**
 * One row per trace, each branch below its parent: `[{node, level, row, parentRow, from, stem, position, of}]`. `from`:
 * the step after which it leaves its parent; `stem`: the row where that step is drawn, which the parent itself may have
 * from its own; position and of: its place among the branches of its parent.
 */
export function rowsOf({ root, nodes }) {
  const children = new Map();
  for (const node of nodes) {
    const parent = node.id === root ? null : node.parent_id;
    children.set(parent, [...(children.get(parent) ?? []), node]);
  }
  const rows = [];
  const add = (node, level, parentRow, position, of) => {
    const row = rows.length;
    const from = parentRow === null ? 0 : partsAfter(node);
    let stem = parentRow;
    while (stem !== null && rows[stem].from > from) stem = rows[stem].stem;
    rows.push({ node, level, row, parentRow, from, stem, position, of });
    const own = children.get(node.id) ?? [];
    own.forEach((child, k) => add(child, level + 1, row, k + 1, own.length));
  };
  const roots = children.get(null) ?? [];
  roots.forEach((node, k) => add(node, 1, null, k + 1, roots.length));
  return rows;
}

/** `steps 2 and 3`. */
export function stepsIn(numbers) {
  if (numbers.length === 1) return `step ${numbers[0]}`;
  return `steps ${numbers.slice(0, -1).join(', ')} and ${numbers[numbers.length - 1]}`;
}

/** What stands at the end of a row: `{text, verdict}`. */
export function endOf(node) {
  const answered = node.answer !== null && node.answer !== undefined && node.status !== 'deleted';
  return {
    text: answered ? node.answer.trim() || '(empty)' : (STATUS[node.status] ?? 'no answer'),
    answered,
    verdict: node.verdict ?? null,
    mark: VERDICTS[node.verdict] ?? '',
  };
}

/** Whether the trace asks another question than its parent, and keeps no step of it. */
const isFollowUp = (node) => (node.after_step ?? null) === null && node.status !== 'deleted';

/** Where a trace leaves its parent, as a sentence. */
export function partingOf({ node, parentRow }) {
  if (parentRow === null) return 'The first trace: it has no parent.';
  const { edited_steps: edited, after_step: after } = node;
  if (isFollowUp(node)) return 'Follows up on its parent with another question.';
  if (edited.length) {
    const verb = edited.length === 1 ? 'was' : 'were';
    return `Diverges from its parent at ${stepsIn([Math.min(...edited)])}: ${stepsIn(edited)} ${verb} edited.`;
  }
  if (!after) return 'Diverges from its parent right after the question.';
  return `Diverges from its parent after step ${after}.`;
}

/** The name of a row for screen readers. */
export function nameOf(row) {
  const { text, answered, mark } = endOf(row.node);
  const what = row.parentRow === null ? 'First trace' : isFollowUp(row.node) ? 'Follow-up question' : 'Branch';
  const edits = row.node.edited_steps.length ? `, ${stepsIn(row.node.edited_steps)} edited` : '';
  return `${what}${edits}: ${answered ? `answer ${text}` : text}${mark ? `, ${row.node.verdict}` : ''}`;
}

/** The tree with a new branch, so that it is shown before anybody asks the server. */
export function grown(tree, parent, trace) {
  const known = tree?.nodes.some((node) => node.id === parent.traceId) ? tree : treeOf(parent);
  const node = {
    id: trace.id,
    parent_id: parent.traceId,
    after_step: trace.parent.after_step,
    edited_steps: trace.parent.edited_steps,
    status: trace.status,
    answer: null,
    verdict: null,
  };
  return { ...known, nodes: [...known.nodes.filter(({ id }) => id !== trace.id), node] };
}

const treeOf = (state) => ({
  root: state.traceId,
  nodes: [
    {
      id: state.traceId,
      parent_id: null,
      after_step: null,
      edited_steps: [],
      status: state.status,
      answer: state.hasAnswer ? state.answer : null,
      verdict: state.verdict?.answer ?? null,
    },
  ],
});

/** The tree with what the page knows of the trace that it shows. */
export function withState(tree, state) {
  const nodes = tree.nodes.map((node) =>
    node.id === state.traceId
      ? {
          ...node,
          status: state.status,
          answer: state.hasAnswer ? state.answer : null,
          verdict: state.verdict?.answer ?? node.verdict,
        }
      : node,
  );
  return { ...tree, nodes };
}
