/** Creates a trace and a job, follows their events and reads them again, with the types of openapi-typescript. */

import createClient from 'openapi-fetch';
import type { components, paths } from './studio.js';

type Schemas = components['schemas'];
type Event = Schemas['TraceEvent'] | Schemas['JobEvent'];

declare const process: { argv: string[] };
const [baseUrl, image] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl });

/** The data of a response, or its problem as an error. */
function good<T>(answer: { data?: T; error?: unknown }): T {
  if (answer.data === undefined) throw new Error(JSON.stringify(answer.error));
  return answer.data;
}

/** The events of a stream, as they arrive. */
async function* events<E extends Event>(stream: ReadableStream<Uint8Array> | null | undefined): AsyncGenerator<E> {
  if (!stream) return;
  const decoder = new TextDecoder();
  let rest = '';
  for await (const chunk of stream) {
    const frames = (rest + decoder.decode(chunk, { stream: true })).split('\n\n');
    rest = frames.pop() ?? '';
    for (const frame of frames) {
      const fields = new Map(
        frame.split('\n').map((line) => [line.split(': ', 1)[0], line.slice(line.indexOf(': ') + 2)]),
      );
      if (!fields.has('event')) continue; // a keep-alive comment
      yield {
        id: Number(fields.get('id')),
        event: fields.get('event'),
        data: JSON.parse(fields.get('data') ?? ''),
      } as E;
    }
  }
}

const created = good(
  await client.POST('/v1/traces', {
    body: {
      question: 'Where is the red star?',
      images: [{ data_url: image }],
      sampling: { seed: 7 },
      partial_images: 1,
    },
  }),
);
const path = { trace_id: (created as Schemas['Trace']).id };
const seen: string[] = [];
let answer = '';
let codes = 0;
const log = await client.GET('/v1/traces/{trace_id}/events', { params: { path }, parseAs: 'stream' });
for await (const event of events<Schemas['TraceEvent']>(log.data)) {
  seen.push(event.event);
  if (event.event === 'answer.delta') answer += event.data.text;
  if (event.event === 'image.completed') codes = event.data.stats.codes;
  // @ts-expect-error: only some events have a text
  event.data.text;
}
const trace = good(await client.GET('/v1/traces/{trace_id}', { params: { path } }));

const started = good(
  await client.POST('/v1/jobs', {
    body: {
      method: 'pesft',
      base_checkpoint: 'nano-omni-r1',
      data: { source: 'unitasks', num_samples: 64 },
      hyperparameters: { steps: 4 },
    },
  }),
);
const job_id = { job_id: started.id };
const steps: number[] = [];
const progress = await client.GET('/v1/jobs/{job_id}/events', { params: { path: job_id }, parseAs: 'stream' });
for await (const event of events<Schemas['JobEvent']>(progress.data)) {
  if (event.event === 'metrics') steps.push(event.data.step);
}
const job = good(await client.GET('/v1/jobs/{job_id}', { params: { path: job_id } }));

console.log(JSON.stringify({ seen, answer, codes, trace: trace.answer, status: trace.status, steps, job: job.status }));
