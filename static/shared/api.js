// fetch with typed errors: every error response becomes an `ApiError` with a message and a remedy.

import { urlOf } from './address.js';
import { detailOf } from './fields.js';
import { Signal } from './signal.js';

export class ApiError extends Error {
  constructor(message, { status = 0, code = 'unknown', retryAfter = null, errors = [], problem = {} } = {}) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
    this.errors = errors; // [{path, message}] of the invalid fields
    this.problem = problem;
  }
}

const GONE = 'The server is unreachable; nothing was changed. Try again when it is back.';
const AWAY = new Set([502, 503, 504]); // a proxy without its server, or a server that is starting or stopping

const unreachable = new Signal();

/** Calls `listener()` for each request that does not reach the server; at once if that was so for the latest one. */
export const onUnreachable = (listener) => unreachable.listen(listener);

/** fetch that reports an unreachable server. */
export async function reach(path, options) {
  try {
    const response = await fetch(urlOf(path), options);
    if (AWAY.has(response.status)) unreachable.say(true);
    else unreachable.clear();
    return response;
  } catch (error) {
    if (error.name !== 'AbortError') unreachable.say(true);
    throw error;
  }
}

async function problemOf(response) {
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // a proxy's page instead of problem+json: fall back to the status
  }
  const retryAfter = Number(response.headers.get('retry-after')) || null;
  let message = detailOf(problem) || problem.title || `The server returned ${response.status}.`;
  if (response.status === 429) {
    const first = message.replace(/[;,]? ?(?:try again|retry).*$/i, '').replace(/[.;]?$/, '.');
    message = `${first} Try again${retryAfter ? ` in ${retryAfter} s` : ' in a moment'}.`;
  }
  // Dotted names stay as they are.
  message = message.replace(/^[a-z](?=[a-z]*[ ,])/, (letter) => letter.toUpperCase());
  if (response.status === 401) message = 'You are signed out. Reload the page to sign in again.';
  const { code = String(response.status), errors = [] } = problem;
  return new ApiError(message, { status: response.status, code, retryAfter, errors, problem });
}

// A file that a response holds, and the number of traces that it leaves out.
async function fileOf(response) {
  const [, name] = /filename="([^"]+)"/.exec(response.headers.get('content-disposition') ?? '') ?? [];
  return { blob: await response.blob(), name, skipped: Number(response.headers.get('x-skipped')) };
}

/**
 * Parsed JSON of `path` (null for 204), or its content `as` a blob or file. Throws ApiError, with status 0 if the server is
 * unreachable.
 */
export async function call(path, { method = 'GET', json, body, signal, headers = {}, as = 'json' } = {}) {
  let response;
  try {
    response = await reach(path, {
      method,
      signal,
      headers: json === undefined ? headers : { 'Content-Type': 'application/json', ...headers },
      body: json === undefined ? body : JSON.stringify(json),
    });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(GONE, { code: 'server_gone' });
  }
  if (!response.ok) throw await problemOf(response);
  if (as === 'file') return fileOf(response);
  return response.status === 204 ? null : response[as]();
}

const id = encodeURIComponent;

export const api = {
  trace: (traceId, options) => call(`/v1/traces/${id(traceId)}`, options),
  film: (traceId) => call(`/v1/traces/${id(traceId)}/film`, { as: 'blob' }),
  create: (request) => call('/v1/traces', { method: 'POST', json: request }),
  pause: (traceId) => call(`/v1/traces/${id(traceId)}/pause`, { method: 'POST' }),
  resume: (traceId, mode) => call(`/v1/traces/${id(traceId)}/continue`, { method: 'POST', json: { mode } }),
  cancel: (traceId) => call(`/v1/traces/${id(traceId)}/cancel`, { method: 'POST' }),
  branch: (traceId, request) => call(`/v1/traces/${id(traceId)}/branches`, { method: 'POST', json: request }),
  tokens: (traceId) => call(`/v1/traces/${id(traceId)}/tokens`),
  reliance: (traceId) => call(`/v1/traces/${id(traceId)}/reliance`, { method: 'POST' }),
  attention: (traceId, step = null) =>
    call(`/v1/traces/${id(traceId)}/attention`, {
      method: 'POST',
      json: { from: step === null ? 'answer' : { step } },
    }),
  intervene: (traceId, request) => call(`/v1/traces/${id(traceId)}/interventions`, { method: 'POST', json: request }),
  tree: (traceId, options) => call(`/v1/traces/${id(traceId)}/tree`, options),
  group: (groupId, options) => call(`/v1/groups/${id(groupId)}`, options),
  cancelGroup: (groupId) => call(`/v1/groups/${id(groupId)}/cancel`, { method: 'POST' }),
  removeGroup: (groupId) => call(`/v1/groups/${id(groupId)}`, { method: 'DELETE' }),
  groupEventsUrl: (groupId, after) => `/v1/groups/${id(groupId)}/events?after=${after}`,
  update: (traceId, change) => call(`/v1/traces/${id(traceId)}`, { method: 'PATCH', json: change }),
  exportUrl: (traceId, format) => `/v1/traces/${id(traceId)}/export?format=${format}`,
  exportMany: (traceIds, format) =>
    call('/v1/exports', { method: 'POST', json: { trace_ids: traceIds, format }, as: 'file' }),
  remove: (traceId) => call(`/v1/traces/${id(traceId)}`, { method: 'DELETE' }),
  traces: (filters, options) => call(`/v1/traces?${new URLSearchParams(filters)}`, options),
  task: (query, options) => call(`/v1/tasks?${new URLSearchParams(query)}`, options),
  limits: (options) => call('/v1/limits', options),
  budget: (question, images, checkpoint = null) =>
    call('/v1/limits', { method: 'POST', json: { question, images, ...(checkpoint ? { checkpoint } : {}) } }),
  upload: (blob) =>
    call('/v1/images', {
      method: 'POST',
      body: blob,
      headers: { 'Content-Type': blob.type.startsWith('image/') ? blob.type : 'image/png' },
    }),
  checkpoints: () => call('/v1/checkpoints'),
  checkpoint: (name) => call(`/v1/checkpoints/${id(name)}`),
  activate: (name, body = {}) => call(`/v1/checkpoints/${id(name)}/activate`, { method: 'POST', json: body }),
  register: (body) => call('/v1/checkpoints', { method: 'POST', json: body }),
  removeCheckpoint: (name) => call(`/v1/checkpoints/${id(name)}?unload=true`, { method: 'DELETE' }),
  grade: (request) => call('/v1/rewards', { method: 'POST', json: request }),
  extensions: () => call('/v1/extensions'),
  uploadDataset: (file) =>
    call('/v1/datasets', { method: 'POST', body: file, headers: { 'Content-Type': 'application/octet-stream' } }),
  dataset: (datasetId, method) => call(`/v1/datasets/${id(datasetId)}${method ? `?method=${id(method)}` : ''}`),
  jobs: (filters = {}, options = {}) => call(`/v1/jobs?${new URLSearchParams(filters)}`, options),
  job: (jobId, options) => call(`/v1/jobs/${id(jobId)}`, options),
  updateJob: (jobId, change) => call(`/v1/jobs/${id(jobId)}`, { method: 'PATCH', json: change }),
  continueJob: (jobId, more) => call(`/v1/jobs/${id(jobId)}/continue`, { method: 'POST', json: more }),
  series: (jobIds, keys, query = {}) =>
    call(`/v1/jobs/metrics?${new URLSearchParams({ ids: jobIds.join(','), keys: keys.join(','), ...query })}`),
  startJob: (spec) => call('/v1/jobs', { method: 'POST', json: spec }),
  cancelJob: (jobId) => call(`/v1/jobs/${id(jobId)}/cancel`, { method: 'POST' }),
  resumeJob: (jobId) => call(`/v1/jobs/${id(jobId)}/resume`, { method: 'POST' }),
  removeJob: (jobId) => call(`/v1/jobs/${id(jobId)}`, { method: 'DELETE' }),
  jobEventsUrl: (jobId, after) => `/v1/jobs/${id(jobId)}/events?after=${after}`,
  jobFileUrl: (jobId, path) => `/v1/jobs/${id(jobId)}/files/${path.split('/').map(id).join('/')}`,
  ready: () => reach('/readyz').then((response) => response.json()),
  eventsUrl: (traceId, after) => `/v1/traces/${id(traceId)}/events?after=${after}`,
  modelViewUrl: (imageId, fit = 'crop') => `/v1/images/${id(imageId)}/model-view?fit=${fit}`,
};
