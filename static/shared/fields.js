// The API's fields under the names of the pages' controls: an error says “Temperature”, not `body.sampling.temperature`.
// Pure, testable without a browser.

const NAMES = [
  [/^body\.question$/, 'Question'],
  [/^body\.images\b/, 'Image'],
  [/^body\.task_id$/, 'Example'],
  [/^(body|query)\.checkpoint$/, 'Checkpoint'],
  [/^body\.n$/, 'Samples'],
  [/^body\.sampling\.temperature$/, 'Temperature'],
  [/^body\.sampling\.top_p$/, 'Top-p'],
  [/^(body\.sampling|query)\.seed$/, 'Seed'],
  [/^body\.sampling\.max_images$/, 'Max images'],
  [/^body\.(sampling|verify)\.candidates$/, 'Candidates'],
  [/^body\.sampling\.max_new_tokens$/, 'Max tokens'],
  [/^body\.after_step$/, 'Step'],
  [/^body\.edits\.\d+\.text$/, 'Text'],
  [/^body\.edits\.\d+\.image\b/, 'Image'],
  [/^body\.edits\b/, 'Edit'],
  [/^query\.q$/, 'Words'],
  [/^query\.slice$/, 'Slice'],
  [/^query\.verdict$/, 'Verdict'],
  [/^body\.source$/, 'Folder or hub id'],
  [/^body\.name$/, 'Name'],
  [/^body\.answer$/, 'Answer'],
  [/^body\.reference$/, 'Reference'],
  [/^body\.choices\b/, 'Options'],
];

/**
 * The control of a field, or its path in the body for a job's specification, which is written by hand; empty for the
 * body as a whole.
 */
export const nameOf = (path) =>
  NAMES.find(([pattern]) => pattern.test(path))?.[1] ?? path.replace(/^(body|query)(\.|$)/, '');

/** The detail of a problem document without field paths; null if there is none. */
export function detailOf({ detail, errors = [] }) {
  const path = errors[0]?.path;
  if (!path || !detail?.startsWith(`${path}: `)) return detail ?? null;
  const [name, text] = [nameOf(path), detail.slice(path.length + 2)];
  // “the text contains …” names its control already
  return text.toLowerCase().includes(name.toLowerCase()) ? text : `${name}: ${text}`;
}
