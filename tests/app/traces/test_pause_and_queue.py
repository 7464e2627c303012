"""Waiting traces: paused between two steps, or queued for an engine slot."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from app.traces.records import store
from model.engine.messages import GenerationRequest
from tests.app.conftest import Serve, Server, both_databases
from tests.fakes import FakeGeneration, Item, answer_items, held, png, step_items
from tests.patience import PATIENCE_S


def held_early(request: GenerationRequest) -> list[Item]:
    """A wait in the middle of the first step."""
    return [*step_items(1, "I look.", png(box=9), wait="step"), *answer_items("red")]


@both_databases
async def test_step_mode_pauses_after_each_step(server: Server) -> None:
    created = await server.create(mode="step")
    url = f"/v1/traces/{created['id']}"
    events = await server.until(created["id"], "trace.paused")
    assert [e.type for e in events[-2:]] == ["step.completed", "trace.paused"]
    assert events[-1].data == {"step": 1}
    paused = await server.get(created["id"])
    assert (paused["status"], len(paused["steps"]), paused["answer"]) == ("paused", 1, None)
    (entry,) = (await server.client.get("/v1/traces")).json()["data"]
    assert entry["last_image"]["image_id"] == paused["steps"][0]["image"]["image_id"]
    assert server.generation.running == 0
    answer = await server.client.post(f"{url}/continue")
    assert answer.status_code == 200
    assert answer.json()["status"] in ("running", "paused")
    more = await server.stream(created["id"], after=events[-1].id, until=lambda e: e.type == "trace.paused")
    assert more[0].type == "trace.resumed"
    assert more[0].data == {"mode": "step"}
    assert more[-1].data == {"step": 2}
    answer = await server.client.post(f"{url}/continue", json={"mode": "auto"})
    assert answer.status_code == 200
    ended = await server.finished(created["id"])
    assert (ended["status"], ended["answer"], len(ended["steps"])) == ("completed", "red", 2)
    kinds = [e.type for e in await server.stream(created["id"])]
    assert kinds.count("trace.started") == 1


async def test_pause_takes_effect_after_the_running_step(server: Server, engine: FakeGeneration) -> None:
    engine.script = held_early
    created = await server.create()
    await server.until(created["id"], "text.delta")
    for _ in range(2):
        answer = await server.client.post(f"/v1/traces/{created['id']}/pause")
        assert (answer.status_code, answer.json()["mode"], answer.json()["status"]) == (200, "step", "running")
    engine.go("step")
    await server.until(created["id"], "trace.paused")
    again = await server.client.post(f"/v1/traces/{created['id']}/pause")
    assert (again.status_code, again.json()["status"]) == (200, "paused")


async def test_continue_is_rejected_unless_paused(server: Server, engine: FakeGeneration) -> None:
    engine.script = held
    created = await server.create()
    await server.until(created["id"], "step.completed")
    answer = await server.client.post(f"/v1/traces/{created['id']}/continue")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_paused")
    engine.go("end")
    await server.finished(created["id"])
    answer = await server.client.post(f"/v1/traces/{created['id']}/continue", json={"mode": "auto"})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_paused")


@both_databases
async def test_concurrent_continues_resume_once(server: Server, engine: FakeGeneration) -> None:
    engine.script = held
    created = await server.create(mode="step")
    await server.until(created["id"], "trace.paused")
    url = f"/v1/traces/{created['id']}/continue"
    answers = await asyncio.gather(*(server.client.post(url, json={"mode": "auto"}) for _ in range(3)))
    assert sorted(a.status_code for a in answers) == [200, 409, 409]
    engine.go("end")
    events = await server.stream(created["id"])
    assert [e.type for e in events].count("trace.resumed") == 1


async def test_paused_and_queued_traces_can_be_cancelled(server: Server, engine: FakeGeneration) -> None:
    engine.script = held
    engine.num_slots = 1
    paused = await server.create(mode="step")
    await server.until(paused["id"], "trace.paused")
    running = await server.create()
    await server.until(running["id"], "step.completed")
    queued = await server.create()
    for trace in (paused, queued):
        answer = await server.client.post(f"/v1/traces/{trace['id']}/cancel")
        assert answer.json()["status"] == "cancelled"
        assert [e.type for e in await server.stream(trace["id"])][-1] == "trace.cancelled"


async def test_queue_reports_positions_and_rejects_when_full(serve: Serve, engine: FakeGeneration) -> None:
    engine.script = held
    engine.num_slots = 1
    async with serve(max_queue=2) as server:
        first = await server.create()
        await server.until(first["id"], "step.completed")
        waiting = [await server.create() for _ in range(2)]
        rejected = await server.client.post("/v1/traces", json=await server.body())
        assert (rejected.status_code, rejected.json()["code"]) == (429, "queue_full")
        assert int(rejected.headers["retry-after"]) >= 1
        assert rejected.json()["queue"] == {"running": 1, "waiting": 2, "max": 2}
        limits = (await server.client.get("/v1/limits")).json()
        assert limits["queue"] == {"running": 1, "waiting": 2, "max": 2}
        engine.go("end")
        positions = []
        for trace in waiting:
            events = await server.stream(trace["id"])
            positions.append([e.data["position"] for e in events if e.type == "trace.queued"])
            assert events[-1].type == "trace.completed"
        assert positions == [[0], [1, 0]]


async def test_resumed_trace_without_a_slot_queues_again(server: Server, engine: FakeGeneration) -> None:
    engine.script = held
    engine.num_slots = 1
    paused = await server.create(mode="step")
    before = await server.until(paused["id"], "trace.paused")
    other = await server.create()
    await server.until(other["id"], "step.completed")
    await server.client.post(f"/v1/traces/{paused['id']}/continue", json={"mode": "auto"})
    await server.stream(paused["id"], until=lambda e: e.type == "trace.queued" and e.id > len(before))
    assert (await server.get(paused["id"]))["status"] == "queued"
    engine.go("end")
    kinds = [e.type for e in await server.stream(paused["id"], after=len(before))]
    assert kinds[:3] == ["trace.resumed", "trace.queued", "trace.started"]
    assert kinds[-1] == "trace.completed"


@pytest.mark.parametrize("what", ["storage trouble", "cancel all", "stop"])
async def test_trace_whose_row_is_late_gets_a_true_end(
    server: Server, engine: FakeGeneration, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """While the database hangs, a trace that is being stored must not count as one that has ended."""
    body = await server.body()
    service, late, asked = server.services.traces, threading.Event(), threading.Event()
    insert = store.insert

    def hanging(*given: Any) -> None:
        asked.set()
        assert late.wait(PATIENCE_S)
        insert(*given)

    monkeypatch.setattr(store, "insert", hanging)
    creating = asyncio.create_task(server.client.post("/v1/traces", json=body))
    assert await asyncio.to_thread(asked.wait, PATIENCE_S)
    if what == "storage trouble":
        for live in list(service._live.values()):
            await service._runner.fail(live, "database_unavailable", "storing its events failed")
    elif what == "cancel all":
        for live in list(service._live.values()):
            await service._stop_live(live, "user")
    else:
        await service.stop()
    late.set()
    trace_id = (await creating).json()["id"]
    log = await server.stream(trace_id)
    ends = {"storage trouble": "trace.completed", "cancel all": "trace.cancelled", "stop": "trace.failed"}
    assert log[-1].type == ends[what]
    while service.active_ids:
        await asyncio.sleep(0.002)
