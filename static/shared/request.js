// The bodies of POST /v1/traces: of a new question, and of a trace to be repeated. Pure, testable without a browser.

// Previews per image; few enough for a busy server's streams to update several times a second.
const PARTIAL_IMAGES = 32;

/** The fields that are not empty. */
const filled = (fields) =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null && value !== undefined));

/**
 * A question with its image.
 *
 * image: {image_id, width, height}, or null. own: it is not one of the world's, so `fit` (crop or pad) makes it square.
 * task: {task_id, question, image_id}; its id is sent only with its own question and image. checkpoint: null = active.
 * sampling: values by name; the server's defaults for missing ones. candidates: images drawn per step; 1 = no choice.
 */
export function requestOf({
  question,
  image = null,
  own = false,
  fit = 'crop',
  task = null,
  mode = 'auto',
  checkpoint = null,
  sampling = {},
  candidates = 1,
}) {
  const same = task && task.question === question && task.image_id === image?.image_id;
  const square = image && own && image.width !== image.height ? { fit } : {};
  const given = filled(sampling);
  return filled({
    question,
    images: image ? [{ image_id: image.image_id, ...square }] : [],
    task_id: same ? task.task_id : null,
    mode,
    checkpoint,
    sampling: Object.keys(given).length ? given : null,
    verify: candidates === 1 ? null : { candidates },
    partial_images: PARTIAL_IMAGES,
    background: true,
  });
}

/** The question of a trace, with its weights, sampling and seed; `state` is the viewer's (viewer/state.js). */
export function repeated(state) {
  const sampling = filled({ ...state.sampling, seed: state.seed });
  return filled({
    question: state.question,
    images: state.images.map(({ image_id, fit }) => (fit && fit !== 'crop' ? { image_id, fit } : { image_id })),
    task_id: state.taskId,
    checkpoint: state.checkpoint,
    mode: 'auto',
    verify: state.verify,
    sampling: Object.keys(sampling).length ? sampling : null,
  });
}

/** The same question again: on this page, with a seed that the server draws. */
export function withAnotherSeed(state) {
  const { sampling, ...request } = repeated(state);
  const { seed: _, ...kept } = sampling ?? {};
  return filled({
    ...request,
    sampling: Object.keys(kept).length ? kept : null,
    partial_images: PARTIAL_IMAGES,
    background: true,
  });
}
