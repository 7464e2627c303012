"""The life of a trace over HTTP, from question to end; waiting is in test_pause_and_queue.py."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app.contract.schemas import Trace, TraceList
from app.contract.words import TERMINAL_EVENTS
from app.storage.images import ImageStore
from model.engine.messages import Failed, GenerationRequest
from tests.app.conftest import Serve, Server, both_databases, parse_sse
from tests.app.stream_events import preferred_to
from tests.fakes import Crash, FakeGeneration, Item, Wait, answer_items, emitted, held, png, step_items
from tests.patience import PATIENCE_S


@both_databases
async def test_trace_runs_to_its_answer(server: Server) -> None:
    answer = await server.client.post("/v1/traces", json=await server.body(sampling={"seed": 7}))
    assert answer.status_code == 201
    created = Trace.model_validate(answer.json())
    assert answer.headers["location"] == f"/v1/traces/{created.id}"
    assert (created.status, created.mode, created.sampling.seed) == ("queued", "auto", 7)
    assert created.weight_version == 1
    trace = Trace.model_validate(await server.finished(created.id))
    assert (trace.status, trace.answer, trace.finish_reason) == ("completed", "red", "stop")
    assert [step.text for step in trace.steps] == ["I look for the star.", "I draw a box around it."]
    assert [step.image.skill for step in trace.steps if step.image] == [None, "box"]
    assert trace.usage is not None
    assert trace.usage.completion_tokens == 160
    assert None not in (trace.timings.queued_ms, trace.timings.first_text_ms, trace.timings.total_ms)
    assert trace.created_at < (trace.finished_at or "")
    assert trace.started_at is not None


async def test_events_have_contiguous_ids_in_order(server: Server) -> None:
    created = await server.create(partial_images=2)
    events = await server.stream(created["id"])
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    kinds = [event.type for event in events if event.type not in ("text.delta", "answer.delta")]
    step = ["step.started", "image.started", "image.partial", "image.partial", "image.completed", "step.completed"]
    assert kinds == ["trace.queued", "trace.started", *step, *step, "trace.completed"]
    trace = await server.get(created["id"])
    for number in (1, 2):
        text = "".join(e.data["text"] for e in events if e.type == "text.delta" and e.data["step"] == number)
        assert text == trace["steps"][number - 1]["text"]
    answer = "".join(e.data["text"] for e in events if e.type == "answer.delta")
    assert answer.strip() == trace["answer"]
    started = next(e for e in events if e.type == "trace.started").data
    assert started.keys() == {"seed", "checkpoint", "weight_version", "prompt_tokens", "budget"}
    assert started["budget"].keys() == {"context_len", "max_new_tokens", "room_images"}
    partial = next(e for e in events if e.type == "image.partial").data
    shown = await server.client.get(partial["url"])
    assert shown.headers["content-type"] == "image/png"
    done = next(e for e in events if e.type == "image.completed").data
    assert (await server.client.get(done["url"])).content == png(box=5)
    assert done["stats"]["codes"] == 64
    assert events[-1].data.keys() == {"answer", "finish_reason", "usage", "timings"}


async def test_streaming_post_returns_the_events(server: Server) -> None:
    headers = {"accept": "text/event-stream"}
    answer = await server.client.post("/v1/traces", json=await server.body(), headers=headers)
    assert answer.status_code == 201
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = parse_sse(answer.content)
    trace_id = answer.headers["location"].rsplit("/", 1)[1]
    assert events[-1].type == "trace.completed"
    assert b"".join(e.raw for e in events) == b"".join(e.raw for e in await server.stream(trace_id))


async def test_trace_has_one_terminal_event(server: Server, engine: FakeGeneration) -> None:
    engine.script = held
    created = await server.create()
    await server.until(created["id"], "step.completed")
    engine.go("end")
    await asyncio.gather(*(server.client.post(f"/v1/traces/{created['id']}/cancel") for _ in range(4)))
    events = await server.stream(created["id"])
    assert sum(event.type in TERMINAL_EVENTS for event in events) == 1
    assert events[-1].type in TERMINAL_EVENTS


async def test_cancel_returns_when_the_engine_has_stopped(server: Server, engine: FakeGeneration) -> None:
    engine.script = held
    engine.abort_takes = asyncio.Event()
    created = await server.create()
    await server.until(created["id"], "step.completed")
    cancel = asyncio.create_task(server.client.post(f"/v1/traces/{created['id']}/cancel"))
    while not engine.aborts:
        await asyncio.sleep(0.005)
    assert not cancel.done()
    assert engine.running == 1
    assert engine.abort_takes is not None
    engine.abort_takes.set()
    answer = await cancel
    assert engine.running == 0
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert len(answer.json()["steps"]) == 1
    events = await server.stream(created["id"])
    assert (events[-1].type, events[-1].data) == ("trace.cancelled", {"reason": "user"})


async def test_cancel_of_an_ended_trace_is_a_no_op(server: Server) -> None:
    created = await server.create()
    ended = await server.finished(created["id"])
    answer = await server.client.post(f"/v1/traces/{created['id']}/cancel")
    assert (answer.status_code, answer.json()) == (200, ended)


async def test_engine_error_fails_only_the_trace(server: Server, engine: FakeGeneration) -> None:
    endings: list[Item] = [Failed("engine_died", "the engine process died"), Crash(RuntimeError("boom"))]

    def script(request: GenerationRequest) -> list[Item]:
        return [emitted("step.started", step=1), emitted("text.delta", step=1, text="I"), endings.pop(0)]

    for code in ("engine_died", "internal"):
        engine.script = script
        trace = await server.finished((await server.create())["id"])
        assert (trace["status"], trace["error"]["code"]) == ("failed", code)
        assert "boom" not in trace["error"]["detail"]
        assert trace["steps"] == [{"index": 1, "text": "I"}]
    async with asyncio.timeout(PATIENCE_S):
        while (await server.client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("error", "code", "traced"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", False),
        (OperationalError("INSERT", None, Exception("database is locked")), "database_unavailable", False),
        (ValueError("a mistake of ours"), "internal", True),
    ],
)
async def test_log_traces_only_what_is_not_understood(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: str,
    traced: bool,
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageStore, "bring", broken)
    trace = await server.finished((await server.create())["id"])
    assert (trace["status"], trace["error"]["code"]) == ("failed", code)
    [record] = [one for one in caplog.records if one.levelname == "ERROR"]
    assert str(error).splitlines()[0] in record.getMessage()
    assert bool(record.exc_info) is traced


@both_databases
async def test_delete_removes_partial_images_and_cancels(server: Server, engine: FakeGeneration) -> None:
    engine.script = held
    created = await server.create(partial_images=2)
    reader = asyncio.create_task(server.stream(created["id"]))
    await server.until(created["id"], "step.completed")
    assert (await server.client.delete(f"/v1/traces/{created['id']}")).status_code == 204
    assert engine.aborts == [created["id"]]
    assert (await reader)[-1].type == "trace.cancelled"
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", ""), ("POST", "/pause")):
        answer = await server.client.request(method, f"/v1/traces/{created['id']}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "trace_not_found")
    assert not (server.home / "partials" / created["id"]).exists()


@pytest.mark.parametrize("background", [True, False])
async def test_only_foreground_traces_end_with_their_readers(
    serve: Serve, engine: FakeGeneration, background: bool
) -> None:
    engine.script = held
    async with serve(grace_s=0.1 if background else 0.0) as server:
        created = await server.create(background=background)
        await server.until(created["id"], "step.completed")  # this reader disconnects here
        if background:
            await asyncio.sleep(0.3)
            assert engine.aborts == []
            engine.go("end")
        ended = await server.finished(created["id"])
        assert ended["status"] == ("completed" if background else "cancelled")


async def test_returning_reader_keeps_the_trace_alive(serve: Serve, engine: FakeGeneration) -> None:
    engine.script = held
    async with serve(grace_s=60.0) as server:
        created = await server.create(background=False)
        got = await server.until(created["id"], "step.completed")
        counting_down = server.services.traces._grace._timers
        async with asyncio.timeout(PATIENCE_S):
            while created["id"] not in counting_down:
                await asyncio.sleep(0.01)
            rest = asyncio.create_task(server.stream(created["id"], after=got[-1].id))
            while created["id"] in counting_down:
                await asyncio.sleep(0.01)
        engine.go("end")
        assert (await rest)[-1].type == "trace.completed"


async def test_disconnected_streaming_post_is_cancelled(serve: Serve, engine: FakeGeneration) -> None:
    engine.script = held
    async with serve(grace_s=0.05) as server:
        headers = {"accept": "text/event-stream"}
        async with server.client.stream("POST", "/v1/traces", json=await server.body(), headers=headers) as answer:
            trace_id = answer.headers["location"].rsplit("/", 1)[1]
            async for chunk in answer.aiter_raw():
                if b"step.completed" in chunk:
                    break
        while (await server.get(trace_id))["status"] != "cancelled":
            await asyncio.sleep(0.01)
        events = await server.stream(trace_id)
        assert events[-1].data == {"reason": "disconnected"}


@both_databases
async def test_lists_are_newest_first_without_steps(server: Server) -> None:
    ids = []
    for number in range(5):
        trace = await server.create(question=f"Where is star {number}?")
        await server.finished(trace["id"])
        ids.append(trace["id"])
    first = (await server.client.get("/v1/traces", params={"limit": 2})).json()
    page = TraceList.model_validate(first)
    assert [entry.id for entry in page.data] == [ids[4], ids[3]]
    assert page.has_more
    assert "steps" not in first["data"][0]
    assert page.data[0].first_image is not None
    assert page.data[0].last_image is not None
    assert page.data[0].first_image != page.data[0].last_image
    rest = (await server.client.get("/v1/traces", params={"after": ids[3]})).json()
    assert [entry["id"] for entry in rest["data"]] == ids[2::-1]
    assert not rest["has_more"]
    found = (await server.client.get("/v1/traces", params={"q": "STAR 3", "status": "completed"})).json()
    assert [entry["id"] for entry in found["data"]] == [ids[3]]
    for params in (
        {"status": "paused"},
        {"checkpoint": "other"},
        {"slice": "natural"},
        {"verdict": "right"},
        {"q": "%"},
    ):
        assert (await server.client.get("/v1/traces", params=params)).json()["data"] == []


def with_judge(package: Path) -> None:
    """Add a checkpoint that judges drawings, the base of the one that draws."""
    shutil.copytree(package / "nano-omni-r1", package / "judge")
    for name, change in {"nano-omni-r1": {"base": "judge"}, "judge": {"name": "judge", "verifier": "What?"}}.items():
        path = package / name / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))


def drawn_twice(request: GenerationRequest) -> list[Item]:
    """A step with two candidates, then `held`'s wait and the answer."""
    return [*preferred_to([png(box=3)], step_items(1, "I look.", png(box=9))), Wait("end"), *answer_items("red")]


async def test_candidates_are_shown_and_stored(serve: Serve, package: Path, engine: FakeGeneration) -> None:
    with_judge(package)
    engine.script = drawn_twice
    async with serve() as server:
        created = await server.create(verify={"candidates": 2}, mode="step")
        assert created["verify"] == {"candidates": 2, "verifier": "judge"}
        assert set(engine.loaded) == {"nano-omni-r1", "judge"}
        await server.until(created["id"], "trace.paused")
        await server.client.post(f"/v1/traces/{created['id']}/continue", json={"mode": "auto"})
        engine.go("end")
        trace = await server.finished(created["id"])
        for request in engine.requests:
            assert (request.sampling.candidates, request.verifier) == (2, "judge")
        assert len(engine.requests) == 2
        events = {event.type: event.data for event in await server.stream(created["id"])}
        shown = events["image.candidates"]
        assert shown == {"step": 1, **trace["steps"][0]["candidates"]}
        assert (shown["scores"], shown["chosen"]) == ([None, -1.5], 1)
        for image, pixels in zip(shown["images"], (png(box=3), png(box=9)), strict=True):
            assert (await server.client.get(image["url"])).content == pixels
        assert shown["images"][1]["image_id"] == trace["steps"][0]["image"]["image_id"]
        Trace.model_validate(trace)
        branch = (await server.client.post(f"/v1/traces/{trace['id']}/branches", json={"after_step": 0})).json()
        assert branch["data"][0]["verify"] == created["verify"]
        plain = {"after_step": 0, "verify": {"candidates": 1}}
        branch = (await server.client.post(f"/v1/traces/{trace['id']}/branches", json=plain)).json()
        assert "verify" not in branch["data"][0]


async def test_verifier_stays_loaded_while_traces_need_it(serve: Serve, package: Path, engine: FakeGeneration) -> None:
    with_judge(package)
    engine.script = held
    async with serve() as server:
        pool = server.services.checkpoints.pool
        created = await server.create(verify={"candidates": 2}, n=2)
        async with pool.without("judge", unload=True) as gone:
            assert not gone
        engine.go("end")
        for member in (await server.client.get(f"/v1/groups/{created['group_id']}")).json()["trace_ids"]:
            await server.finished(member)
        async with pool.without("judge", unload=True) as gone:
            assert gone


async def test_candidates_need_a_checkpoint_that_judges(serve: Serve, package: Path) -> None:
    async with serve() as server:
        for verify, path in (
            ({"candidates": 2}, "body.verify.candidates"),
            ({"candidates": 2, "verifier": "nano-omni-r1"}, "body.verify.verifier"),
        ):
            answer = await server.client.post("/v1/traces", json=await server.body(verify=verify))
            assert (answer.status_code, answer.json()["code"]) == (422, "no_verifier")
            assert answer.json()["errors"][0]["path"] == path
        assert "verify" not in await server.create(verify={"candidates": 1})
        limits = {"question": "Where?", "images": 1}
        assert (await server.client.post("/v1/limits", json=limits)).json()["verifier"] is None
        with_judge(package)
        assert (await server.client.post("/v1/limits", json=limits)).json()["verifier"] == "judge"
