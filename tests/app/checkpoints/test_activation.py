"""Activating and evicting checkpoints under running traces: a scripted engine with gates, a small memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.common.build import build_version
from app.storage.faults import DatabaseGone
from model.engine.messages import Failed, Reading
from tests.app.conftest import Serve, Server, both_databases, is_problem
from tests.fakes import FakeGeneration, Item, Wait, answer_items, png, step_items, write_paper_checkpoint
from tests.patience import PATIENCE_S

OLD, NEW = "nano-omni-r1", "new"
READY = {"phase": "ready", "checkpoint": OLD, "weight_version": 1, "quant": None, "detail": "", "loading": None}
READY |= {"version": build_version()}


def with_a_wait(request: Any) -> list[Item]:
    return [*step_items(1, "I look.", png()), Wait("go"), *step_items(2, "I see.", png()), *answer_items(" red")]


@pytest.fixture
def engine() -> FakeGeneration:
    return FakeGeneration(with_a_wait)


@pytest.fixture
def serve(tmp_path: Path, serve: Serve) -> Serve:
    """With `new` and `third` in addition to the shipped checkpoint."""
    for name in (NEW, "third"):
        write_paper_checkpoint(tmp_path / "home" / "checkpoints" / name)
    return serve


async def activate(server: Server, name: str = NEW, **body: Any) -> httpx.Response:
    return await server.client.post(f"/v1/checkpoints/{name}/activate", json=body)


async def ready(server: Server) -> dict[str, Any]:
    answer = (await server.client.get("/readyz")).json()
    assert answer["phase"] == "ready"
    found: dict[str, Any] = answer
    return found


async def started(server: Server, **more: Any) -> str:
    """A trace that holds its checkpoint until the engine may `go`."""
    trace = await server.create(**more)
    await server.until(trace["id"], "step.completed")
    found: str = trace["id"]
    return found


async def test_new_traces_use_the_new_weights(server: Server, engine: FakeGeneration) -> None:
    before = await started(server)
    answer = await activate(server)
    assert answer.status_code == 200
    assert (answer.json()["active"], answer.json()["weight_version"]) == (True, 2)
    assert (await ready(server))["checkpoint"] == NEW
    after = await started(server)
    engine.go("go")
    ends = [await server.finished(trace_id) for trace_id in (before, after)]
    assert [(t["status"], t["checkpoint"], t["weight_version"]) for t in ends] == [
        ("completed", OLD, 1),
        ("completed", NEW, 2),
    ]
    assert [request.checkpoint for request in engine.requests] == [OLD, NEW]
    back = await activate(server, OLD)
    assert back.json()["weight_version"] == 1, "the same weights keep their number"


@both_databases
async def test_next_start_remembers_the_activation(serve: Serve, engine: FakeGeneration) -> None:
    async with serve() as server:
        await activate(server)
    engine.loaded.clear()
    async with serve() as server:
        assert (await ready(server))["checkpoint"] == NEW
        await started(server)
        assert engine.requests[-1].checkpoint == NEW


async def test_broken_checkpoint_is_replaced_at_start(serve: Serve, engine: FakeGeneration) -> None:
    async with serve() as server:
        await activate(server)
    engine.loaded.clear()
    engine.bad_folders[NEW] = "model.norm.weight is missing"
    async with serve() as server:
        answer = await ready(server)
        assert (answer["checkpoint"], answer["weight_version"]) == (OLD, 1)
        assert NEW in answer["detail"]
        engine.bad_folders.clear()
        await activate(server)
        assert (await ready(server))["detail"] == ""


@pytest.mark.parametrize("where", ["check", "load", "engine", "database"])
async def test_failed_activation_changes_nothing(
    server: Server, engine: FakeGeneration, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    trace_id = await started(server)
    expected = (422, "checkpoint_invalid")
    if where == "check":
        engine.bad_folders[NEW] = "model.norm.weight is missing"
    elif where == "load":
        engine.bad_loads[NEW] = ("load_failed", "no room for the last tensor")
    elif where == "engine":
        engine.bad_loads[NEW] = ("engine_died", "the engine process ended with exit code -9")
        expected = (503, "not_ready")
    else:

        def gone(name: str) -> None:
            raise DatabaseGone("the disk is away")

        monkeypatch.setattr(server.services.checkpoints, "remember", gone)
        expected = (503, "database_unavailable")
    is_problem(await activate(server), *expected)
    assert (await ready(server)) == READY
    after = await started(server)
    engine.go("go")
    for one in (trace_id, after):
        trace = await server.finished(one)
        assert (trace["status"], trace["checkpoint"]) == ("completed", OLD)
    monkeypatch.undo()
    engine.bad_folders.clear()
    engine.bad_loads.clear()
    assert (await activate(server)).status_code == 200


async def test_unknown_checkpoint_or_drain_is_rejected(server: Server) -> None:
    is_problem(await activate(server, "nobody"), 404, "checkpoint_not_found")
    is_problem(await activate(server, ".new"), 404, "checkpoint_not_found")
    is_problem(await activate(server, drain="please"), 422, "invalid")
    is_problem(await activate(server, force=True), 422, "invalid")
    answer = await server.client.post(f"/v1/checkpoints/{NEW}/activate", content="drain=wait")
    is_problem(answer, 415, "not_json")
    assert (await server.client.post(f"/v1/checkpoints/{NEW}/activate")).status_code == 200, "a body is optional"


async def test_only_one_activation_at_a_time(server: Server, engine: FakeGeneration) -> None:
    engine.closed_gates = {f"check {NEW}", f"load {NEW}"}
    first = asyncio.create_task(activate(server))
    for gate, word in ((f"check {NEW}", "validated"), (f"load {NEW}", "loaded")):
        await reaches(server, f"checkpoint {NEW} is being {word}")
        is_problem(await activate(server, "third"), 409, "activation_in_progress")
        is_problem(await activate(server), 409, "activation_in_progress")
        assert (await server.create())["checkpoint"] == OLD, "traces go on meanwhile"
        engine.go(gate)
    assert (await first).status_code == 200
    assert (await ready(server))["detail"] == ""
    assert (await activate(server, "third")).status_code == 200


async def reaches(server: Server, detail: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await ready(server))["detail"] != detail:
            await asyncio.sleep(0.005)


async def test_progress_of_a_load_is_reported_in_bytes(server: Server, engine: FakeGeneration) -> None:
    engine.closed_gates = {f"load {NEW}"}
    swap = asyncio.create_task(activate(server))
    await reaches(server, f"checkpoint {NEW} is being loaded")
    engine.reading = Reading(3_200_000_000, 14_300_000_000)
    await reaches(server, f"checkpoint {NEW} is being loaded: 3.2 of 14.3 GB read")
    assert (await ready(server))["loading"] == {"bytes_read": 3_200_000_000, "bytes_total": 14_300_000_000}
    engine.go(f"load {NEW}")
    assert (await swap).status_code == 200
    assert (await ready(server))["loading"] is None


# ---- memory


def small(engine: FakeGeneration, **sizes_mb: int) -> None:
    """Sizes of the checkpoints; the shipped one has 100 MiB."""
    engine.sizes_mb = {OLD: 100, NEW: 100, "third": 100} | sizes_mb


async def test_requests_evict_the_lru_checkpoint(serve: Serve, engine: FakeGeneration) -> None:
    small(engine)
    engine.go("go")

    async def ask(server: Server, name: str) -> None:
        trace = await server.finished((await server.create(checkpoint=name))["id"])
        assert (trace["status"], trace["checkpoint"]) == ("completed", name)

    async with serve(memory_mb=250) as server:
        await ask(server, NEW)
        assert engine.loaded == {OLD: 1, NEW: 2}
        await ask(server, "third")
        assert engine.loaded == {OLD: 1, "third": 3}, "the active one stays, though it was used before"
        await ask(server, NEW)
        assert engine.loaded == {OLD: 1, NEW: 2}, "loaded again under the number that its weights had"
        assert (await ready(server))["checkpoint"] == OLD


async def test_checkpoints_in_use_are_never_unloaded(serve: Serve, engine: FakeGeneration) -> None:
    small(engine)
    engine.memory_mb = 500
    async with serve(memory_mb=250) as server:
        trace_id = await started(server, checkpoint=NEW)
        answer = await server.client.post("/v1/traces", json=await server.body(checkpoint="third"))
        problem = is_problem(answer, 507, "insufficient_memory")
        assert problem["memory"] == {
            "needed": 100 << 20,
            "needed_while_loading": 100 << 20,
            "held": 200 << 20,
            "budget": 250 << 20,
            "free": 300 << 20,
        }
        assert "budget 250 MiB" in problem["detail"]
        assert engine.loaded == {OLD: 1, NEW: 2}
        engine.go("go")
        assert (await server.finished(trace_id))["status"] == "completed"
        assert (await server.create(checkpoint="third"))["checkpoint"] == "third"


async def test_without_a_budget_whatever_fits_is_loaded(serve: Serve, engine: FakeGeneration) -> None:
    """The active checkpoint and one that is borrowed stay, though they take more than half of the device."""
    small(engine, new=701)
    engine.memory_mb = 800
    async with serve() as server:
        problem = is_problem(await activate(server), 507, "insufficient_memory")
        assert problem["memory"]["free"] == 700 << 20
        assert "OMNI_R1_KV_MB" in problem["detail"]
        engine.sizes_mb[NEW] = 500
        trace_id = await started(server, checkpoint=NEW)
        await started(server, checkpoint="third")
        assert engine.loaded == {OLD: 1, NEW: 2, "third": 3}
        engine.go("go")
        assert (await server.finished(trace_id))["status"] == "completed"


async def test_without_a_budget_idle_ones_leave_half_of_the_device(serve: Serve, engine: FakeGeneration) -> None:
    small(engine)
    engine.memory_mb = 599
    engine.go("go")
    async with serve() as server:
        for name in (NEW, "third"):
            await server.finished((await server.create(checkpoint=name))["id"])
        assert engine.loaded == {OLD: 1, "third": 3}


@pytest.mark.parametrize("drain", ["wait", "cancel"])
async def test_drain_ends_running_traces_on_request(serve: Serve, engine: FakeGeneration, drain: str) -> None:
    small(engine)
    async with serve(memory_mb=150) as server:
        trace_id = await started(server)
        paused = (await server.create(mode="step"))["id"]
        await server.until(paused, "trace.paused")
        is_problem(await activate(server), 507, "insufficient_memory")
        assert engine.loaded == {OLD: 1}
        swap = asyncio.create_task(activate(server, drain=drain))
        if drain == "wait":
            await reaches(server, f"checkpoint {NEW} waits for 1 running trace")
            rejected = await server.client.post("/v1/traces", json=await server.body())
            is_problem(rejected, 503, "not_ready")
            assert int(rejected.headers["Retry-After"]) >= 1
            is_problem(await server.client.post(f"/v1/traces/{paused}/continue"), 503, "not_ready")
            engine.go("go")
        assert (await swap).status_code == 200
        status = {"wait": "completed", "cancel": "cancelled"}[drain]
        assert (await server.finished(trace_id))["status"] == status
        assert engine.loaded == {NEW: 2}
        assert (await server.get(paused))["status"] == "paused"
        is_problem(await server.client.post(f"/v1/traces/{paused}/continue"), 507, "insufficient_memory")
        assert (await server.create())["checkpoint"] == NEW


async def test_failed_drained_load_restores_the_old_weights(serve: Serve, engine: FakeGeneration) -> None:
    small(engine)
    engine.bad_loads[NEW] = ("load_failed", "no room for the last tensor")
    engine.go("go")
    async with serve(memory_mb=150) as server:
        is_problem(await activate(server, drain="wait"), 422, "checkpoint_invalid")
        assert engine.loaded == {OLD: 1}
        assert (await ready(server)) == READY
        assert (await server.finished((await server.create())["id"]))["status"] == "completed"


async def test_oversized_checkpoint_disturbs_no_trace(serve: Serve, engine: FakeGeneration) -> None:
    small(engine, new=600)
    engine.memory_mb = 500
    async with serve(memory_mb=150) as server:
        trace_id = await started(server)
        problem = is_problem(await activate(server, drain="cancel"), 507, "insufficient_memory")
        assert "even alone" in problem["detail"]
        assert (await server.get(trace_id))["status"] == "running"


async def test_every_end_releases_the_checkpoint(serve: Serve, engine: FakeGeneration) -> None:
    """A lease that is never released would block evictions for ever."""
    small(engine)
    engine.num_slots = 2
    async with serve(memory_mb=250) as server:
        running = await started(server, checkpoint=NEW)
        await started(server, checkpoint=NEW)
        queued = (await server.create(checkpoint=NEW))["id"]
        rejected = await server.client.post("/v1/traces", json=await server.body(checkpoint=NEW, task_id="natural-1"))
        assert rejected.status_code == 422
        for trace_id in (running, queued):
            assert (await server.client.post(f"/v1/traces/{trace_id}/cancel")).json()["status"] == "cancelled"
        paused = (await server.create(checkpoint=NEW, mode="step"))["id"]
        await server.until(paused, "trace.paused")
        is_problem(
            await server.client.post("/v1/traces", json=await server.body(checkpoint="third")),
            507,
            "insufficient_memory",
        )
        engine.go("go")
        engine.script = lambda _request: [Failed("engine_error", "a step failed")]
        failed = await server.create(checkpoint=NEW)
        assert (await server.finished(failed["id"]))["status"] == "failed"
        await server.client.delete(f"/v1/traces/{paused}")
        for entry in (await server.client.get("/v1/traces")).json()["data"]:
            await server.finished(entry["id"])
        assert (await server.create(checkpoint="third"))["checkpoint"] == "third"
        assert engine.loaded == {OLD: 1, "third": 3}


# ---- paused traces


async def test_paused_trace_resumes_with_its_weights(serve: Serve, engine: FakeGeneration) -> None:
    small(engine)
    engine.go("go")
    async with serve(memory_mb=250) as server:
        trace_id = (await server.create(mode="step"))["id"]
        await server.until(trace_id, "trace.paused")
        for name in (NEW, "third"):
            assert (await activate(server, name)).status_code == 200
        assert engine.loaded == {NEW: 2, "third": 3}
        await server.client.post(f"/v1/traces/{trace_id}/continue", json={"mode": "auto"})
        trace = await server.finished(trace_id)
        assert (trace["status"], trace["checkpoint"], trace["weight_version"]) == ("completed", OLD, 1)
        assert engine.loaded == {"third": 3, OLD: 1}, "loaded again for it"
        assert (await ready(server))["checkpoint"] == "third"


async def test_paused_trace_never_resumes_with_other_weights(
    server: Server, engine: FakeGeneration, tmp_path: Path
) -> None:
    trace_id = (await server.create(mode="step", checkpoint=NEW))["id"]
    await server.until(trace_id, "trace.paused")
    write_paper_checkpoint(tmp_path / "home" / "checkpoints" / NEW, salt="other")
    answer = await activate(server)
    assert answer.json()["weight_version"] == 3
    is_problem(await server.client.post(f"/v1/traces/{trace_id}/continue"), 409, "weights_gone")
