"""Every event has a model, an example and a row in docs/api.md, and whatever a server sends fits its model."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.contract.events import TRACE_EVENTS, stream_schemas
from app.contract.events_groups import GROUP_EVENTS
from app.contract.events_jobs import JOB_EVENTS
from app.contract.schemas import Out
from app.contract.words import GROUP_END
from model.engine.messages import Failed, Finished, GenerationRequest
from tests.app.conftest import Serve, Server, Sse
from tests.app.job_helpers import SPEC, events, of_type, post, worker
from tests.app.stream_events import check_event, preferred_to
from tests.fakes import Crash, FakeGeneration, Item, Wait, answer_items, emitted, png, step_items

ROOT = Path(__file__).parents[3]
PLAY_WORKER = (sys.executable, "-m", "tests.play_worker")
WORLD = {"source": "unitasks", "num_samples": 8}
PIPELINE = {
    "method": "pipeline",
    "base_checkpoint": "nano-omni-r1",
    "data": {"zero": WORLD, "perpo": WORLD, "benchmark": WORLD},
    "hyperparameters": {"zero": {}, "pesft": {"steps": 9}, "perpo": {"steps": 5}, "benchmark": {}},
}
ENDS = ("answer", "unmarked", "no answer", "failure", "crash", "endless")
STREAMS = {"TraceEvent": TRACE_EVENTS, "GroupEvent": GROUP_EVENTS, "JobEvent": JOB_EVENTS}
KINDS = {"TraceEvent": "traces", "GroupEvent": "groups", "JobEvent": "jobs"}


def rows(header: str) -> dict[str, str]:
    """The rows of a table of docs/api.md, by event."""
    table = (ROOT / "docs" / "api.md").read_text().partition(f"\n| {header} |")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `([a-z.]+)` \| (.*) \|$", table, re.MULTILINE))


DOCUMENTED = {**TRACE_EVENTS, GROUP_END: GROUP_EVENTS[GROUP_END]}


@pytest.mark.parametrize(("header", "models"), [("event", DOCUMENTED), ("event of a job", JOB_EVENTS)])
def test_models_and_docs_have_the_same_events_and_fields(header: str, models: Mapping[str, type[Out]]) -> None:
    documented = rows(header)
    assert documented.keys() == models.keys()
    for type_, model in models.items():
        named = set(re.findall(r"\w+", documented[type_])) | {"time"}
        assert model.model_json_schema()["properties"].keys() <= named, type_


@pytest.mark.parametrize(("name", "models"), STREAMS.items())
def test_each_event_has_a_schema_with_an_example(name: str, models: Mapping[str, type[Out]]) -> None:
    schemas = stream_schemas(name, models)
    mapping = schemas[name]["discriminator"]["mapping"]
    assert mapping.keys() == models.keys()
    for type_, reference in mapping.items():
        whole = schemas[reference.rpartition("/")[2]]
        assert whole["description"]
        (event,) = whole["examples"]
        assert event["event"] == type_
        check_event(KINDS[name], type_, event["data"])


@pytest.mark.parametrize("type_", TRACE_EVENTS)
def test_models_of_traces_reject_other_fields(type_: str) -> None:
    (data,) = TRACE_EVENTS[type_].model_json_schema()["examples"]
    with pytest.raises(ValidationError):
        check_event("traces", type_, data | {"other": 1})


async def test_events_of_random_traces_fit_their_models(serve: Serve, engine: FakeGeneration) -> None:
    engine.script = random_script
    engine.num_slots = 3
    async with serve(max_queue=64) as server:
        found = await asyncio.gather(*(play(server, seed) for seed in range(48)))
        traces = (await server.client.get("/v1/traces", params={"limit": 12, "status": "completed"})).json()["data"]
        found += await asyncio.gather(*(branch(server, trace["id"]) for trace in traces))
        assert {event.type for log in found for event in log} == TRACE_EVENTS.keys()


async def test_events_of_groups_fit_their_models(server: Server, engine: FakeGeneration) -> None:
    engine.script = random_script
    first = await server.create(sampling={"seed": 0}, n=len(ENDS))
    for member in (await server.client.get("/v1/traces", params={"group": first["group_id"]})).json()["data"]:
        if end_of(member["sampling"]["seed"]) == "endless":
            await server.until(member["id"], "step.completed")
            await server.client.post(f"/v1/traces/{member['id']}/cancel")
    log = await server.stream(first["group_id"], kind="groups")
    assert log[-1].type == "group.completed"
    assert [event.id for event in log] == list(range(1, len(log) + 1))
    assert {event.data["trace_id"] for event in log[:-1]} == set(
        (await server.client.get(f"/v1/groups/{first['group_id']}")).json()["trace_ids"]
    )


async def test_beginning_of_an_answer_is_not_tallied(server: Server, engine: FakeGeneration) -> None:
    engine.script = lambda _request: [emitted("answer.delta", text="re"), Wait("end"), *answer_items("d")]
    first = await server.create(n=2)
    group = f"/v1/groups/{first['group_id']}"
    for trace_id in (await server.client.get(group)).json()["trace_ids"]:
        await server.until(trace_id, "answer.delta")
        await server.client.post(f"/v1/traces/{trace_id}/cancel")
        assert (await server.get(trace_id))["answer"] == "re"
    ended = (await server.client.get(group)).json()
    assert [(entry["answer"], entry["count"]) for entry in ended["tally"]] == [(None, 2)]
    assert ended["agreement"] is None


def end_of(seed: int) -> str:
    return ENDS[seed % len(ENDS)]


def random_script(request: GenerationRequest) -> list[Item]:
    """Steps with and without images and previews, then the end that belongs to the request's seed."""
    dice = random.Random(request.sampling.seed)
    items: list[Item] = []
    for step in range(1, dice.randint(1, 3) + 1):
        text = dice.choice(("I look.", "I draw a box around it.", "é\u2028 {}\n", "I zoom in on the box."))
        image = png(box=dice.randint(5, 30)) if dice.random() < 0.8 else None
        others = [png(box=3)] * dice.randint(0, 2)
        items += preferred_to(others, step_items(step, text, image, partials=request.partial_images))
    if request.partial_images:  # from a busy decoder
        items.append(emitted("image.partial", step=1, index=9, codes_done=64, codes_total=64))
    usage = {"prompt_tokens": 80, "completion_tokens": dice.randint(1, 99), "images": 1}
    answer = emitted("answer.delta", text=" red")
    ends: dict[str, list[Item]] = {
        "answer": [answer, Finished("stop", " red", usage)],
        "unmarked": [answer, Finished("stop", "red", usage, unmarked=True)],
        "no answer": [Finished("length", None, usage)],
        "failure": [Failed("engine_error", "out of memory")],
        "crash": [Crash(RuntimeError("a bug"))],
        "endless": [Wait("never")],
    }
    return [*items, *ends[end_of(request.sampling.seed)]]


async def play(server: Server, seed: int) -> list[Sse]:
    """The whole log of one trace, paused and continued or cancelled on the way."""
    mode = random.Random(seed).choice(("auto", "step"))
    trace = await server.create(sampling={"seed": seed}, mode=mode, partial_images=seed % 3)
    url = f"/v1/traces/{trace['id']}"
    if mode == "step":
        await server.until(trace["id"], "trace.paused")
        await server.client.post(f"{url}/continue", json={"mode": "auto"})
    if end_of(seed) == "endless":
        await server.until(trace["id"], "step.completed")
        await server.client.post(f"{url}/cancel")
    return await server.stream(trace["id"])


async def branch(server: Server, parent_id: str) -> list[Sse]:
    """The whole log of a branch whose first step is edited."""
    edits = [{"step": 1, "text": "I look again.", "image": {"use": "blank"}}]
    sent = {"after_step": 1, "edits": edits, "sampling": {"seed": 0}, "mode": "auto"}
    made = await server.client.post(f"/v1/traces/{parent_id}/branches", json=sent)
    assert made.status_code == 201, made.text
    return await server.stream(made.json()["data"][0]["id"])


async def test_events_of_jobs_fit_their_models(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_PLAY_PACE", "0")
    async with serve(job_command=PLAY_WORKER) as server:
        found = await events(server, (await post(server, PIPELINE))["id"])
        assert {event.type for event in found} == JOB_EVENTS.keys()


@pytest.mark.parametrize("what", ["succeed", "fail", "crash", "full"])
async def test_events_of_ending_and_waiting_jobs_fit_their_models(serve: Serve, what: str) -> None:
    async with serve(job_command=worker(what)) as server:
        job = await post(server, SPEC)
        if what == "full":
            await events(server, job["id"], until=lambda event: bool(event.data.get("waiting")))
            (server.home / "jobs" / job["id"] / "go").touch()
        found = await events(server, job["id"])
        assert of_type("job.status")(found[-1])


def test_recorded_events_fit_their_models() -> None:
    for event in json.loads((ROOT / "tests" / "static" / "recorded.json").read_text())["events"]:
        check_event("traces", event["type"], event["data"])
