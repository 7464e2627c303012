// Generated from app/contract by `python -m app.contract.javascript`: statuses, events, slices.
export const SLICES = ['natural', 'structured', 'diagrammatic', 'operational'];
export const TRACE_TERMINAL = ['completed', 'cancelled', 'failed', 'interrupted'];
export const TRACE_EVENTS = [
  'trace.queued',
  'trace.started',
  'step.kept',
  'step.started',
  'text.delta',
  'image.started',
  'image.partial',
  'image.candidates',
  'image.completed',
  'step.completed',
  'trace.paused',
  'trace.resumed',
  'answer.delta',
  'trace.completed',
  'trace.cancelled',
  'trace.failed',
];
export const TRACE_ENDS = ['trace.completed', 'trace.cancelled', 'trace.failed'];
export const GROUP_END = 'group.completed';
export const JOB_TERMINAL = ['succeeded', 'failed', 'cancelled', 'interrupted'];
export const JOB_EVENTS = ['job.status', 'progress', 'metrics', 'sample', 'checkpoint', 'warning', 'log', 'report'];
