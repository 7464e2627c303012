"""Creates a trace and a job, follows their events and reads them again, with the client of openapi-python-client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from studio import Client, models
from studio.api.jobs import create_job, get_job
from studio.api.traces import create_trace, get_trace

url, image = sys.argv[1:]
client = Client(base_url=url, raise_on_unexpected_status=True)


def event_classes() -> dict[str, Any]:
    """The generated class of each event of traces and jobs, such as TextDeltaEvent for `text.delta`."""
    names = [name for name in models.__all__ if name.endswith("Event") and not name.startswith("Group")]
    classes = [getattr(models, name) for name in names]
    return {get_args(get_type_hints(class_, localns=vars(models))["event"])[0]: class_ for class_ in classes}


def events(path: str) -> Iterator[Any]:
    """The events of a stream, as they arrive."""
    classes = event_classes()
    fields: dict[str, str] = {}
    with client.get_httpx_client().stream("GET", path) as response:
        for line in response.iter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields and not line:
                whole = {"id": int(fields["id"]), "event": fields["event"], "data": json.loads(fields["data"])}
                yield classes[fields["event"]].from_dict(whole)
                fields = {}


body = models.TraceCreate(
    question="Where is the red star?",
    images=[models.ImageIn(data_url=image)],
    sampling=models.SamplingIn(seed=7),
    partial_images=1,
)
created = create_trace.sync(client=client, body=body)
assert isinstance(created, models.Trace)
seen, answer, codes = [], "", 0
for event in events(f"/v1/traces/{created.id}/events"):
    seen.append(event.event)
    match event:
        case models.AnswerDeltaEvent():
            answer += event.data.text
        case models.ImageCompletedEvent():
            codes = event.data.stats.codes
trace = get_trace.sync(created.id, client=client)
assert isinstance(trace, models.Trace)

spec = models.PeSFTSpec(
    method="pesft",
    base_checkpoint="nano-omni-r1",
    data=models.UniTasksData(num_samples=64),
    hyperparameters=models.PeSFTHyperparameters(steps=4),
)
started = create_job.sync(client=client, body=spec)
assert isinstance(started, models.JobOut)
log = events(f"/v1/jobs/{started.id}/events")
steps = [event.data.step for event in log if isinstance(event, models.JobMetricsEvent)]
job = get_job.sync(started.id, client=client)
assert isinstance(job, models.JobOut)

found = {"seen": seen, "answer": answer, "codes": codes, "trace": trace.answer, "status": trace.status, "steps": steps}
sys.stdout.write(json.dumps(found | {"job": job.status}) + "\n")
