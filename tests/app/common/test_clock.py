"""The wall clock is set while the server runs: durations stay correct, and nothing expires early."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from app.common.clock import Clock, stamp
from app.storage import database
from tests.app.conftest import Serve, Server, both_databases
from tests.app.job_helpers import FakeCheckpoints, events, get, of_type, post, worker
from tests.app.traces.test_pause_and_queue import held_early
from tests.fakes import FakeGeneration, png

DAY = 86_400.0
DAY_MS = DAY * 1000
STEPS = [-3 * DAY, 3 * DAY, 400 * DAY, -400 * DAY]


@dataclass
class Clocks:
    """A wall clock that can be set, and a steady one."""

    wall: float = 1_800_000_000.0
    steady: float = 1_000.0

    def run(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def make(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    """The clocks of all servers in the test."""
    made = Clocks()
    monkeypatch.setattr(database, "clock", made.make())
    return made


def test_stamps_follow_the_wall_clock() -> None:
    clocks = Clocks()
    clock = clocks.make()
    assert clock.now() == stamp(datetime.fromtimestamp(clocks.wall, UTC)) == "2027-01-15T08:00:00.000Z"
    clocks.wall -= DAY
    assert clock.now() == "2027-01-14T08:00:00.000Z"


def test_before_covers_everything_older() -> None:
    clocks = Clocks()
    clock = clocks.make()
    first = clock.now()
    assert clock.before(timedelta(hours=24)) < first
    clocks.run(DAY + 1)
    assert clock.before(timedelta(hours=24)) > first


@pytest.mark.parametrize("steps", [[s] for s in STEPS] + [[3 * DAY, -3 * DAY], [-3 * DAY, 3 * DAY], [DAY, DAY, DAY]])
def test_before_never_covers_anything_younger(steps: list[float]) -> None:
    """Stamps are issued between the steps and checked after each."""
    clocks = Clocks()
    clock, given = clocks.make(), []
    for step in [*steps, 0.0]:
        given.append((clocks.steady, clock.now()))
        clocks.run(3600)
        given.append((clocks.steady, clock.now()))
        clocks.wall += step
        clocks.run(3600)
        for age in (timedelta(hours=1.5), timedelta(hours=24)):
            before = clock.before(age)
            young = [text for at, text in given if clocks.steady - at < age.total_seconds()]
            assert all(text >= before for text in young)
    clocks.run(9 * DAY)  # all steps are long past: the wall clock counts again
    assert clock.before(timedelta(hours=24)) == stamp(datetime.fromtimestamp(clocks.wall - DAY, UTC))


@pytest.mark.parametrize("step", STEPS)
@both_databases
async def test_trace_keeps_its_order_and_durations(
    step: float, engine: FakeGeneration, clocks: Clocks, server: Server
) -> None:
    engine.script = held_early
    created = await server.create()
    await server.until(created["id"], "text.delta")
    clocks.wall += step
    engine.go("step")
    trace = await server.finished(created["id"])
    assert trace["created_at"] <= trace["started_at"] <= trace["finished_at"]
    timings = trace["timings"]
    assert 0 <= timings["queued_ms"] <= timings["first_text_ms"] <= timings["total_ms"] < DAY_MS


@pytest.mark.parametrize("step", STEPS)
async def test_paused_trace_keeps_its_durations_over_a_restart(step: float, clocks: Clocks, server: Server) -> None:
    created = await server.create(mode="step")
    await server.until(created["id"], "trace.paused")
    paused = (await server.get(created["id"]))["timings"]["total_ms"]
    await server.stop()
    clocks.wall += step
    await server.start()
    answer = await server.client.post(f"/v1/traces/{created['id']}/continue", json={"mode": "auto"})
    assert answer.status_code == 200
    trace = await server.finished(created["id"])
    assert 0 <= paused <= trace["timings"]["total_ms"] < DAY_MS
    assert trace["created_at"] <= trace["started_at"] <= trace["finished_at"]


@pytest.mark.parametrize("how", ["interrupted", "cancelled"])
async def test_other_ends_keep_the_order(how: str, engine: FakeGeneration, clocks: Clocks, server: Server) -> None:
    engine.script = held_early
    created = await server.create()
    await server.until(created["id"], "text.delta")
    clocks.wall -= 3 * DAY
    if how == "interrupted":
        await server.crash()
        await server.start()
    else:
        await server.client.post(f"/v1/traces/{created['id']}/cancel")
    trace = await server.get(created["id"])
    assert trace["status"] == how
    assert trace["created_at"] <= trace["started_at"] <= trace["finished_at"]


@pytest.mark.parametrize("step", STEPS)
@both_databases
async def test_job_keeps_its_order_and_duration(step: float, serve: Serve, clocks: Clocks) -> None:
    async with serve(job_command=worker("wait"), max_jobs=1) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        await events(server, job["id"], until=of_type("metrics"))
        clocks.wall += step
        queued = await post(server)
        clocks.wall += step
        await server.client.post(f"/v1/jobs/{queued['id']}/cancel")
        (server.home / "jobs" / job["id"] / "go").touch()
        await events(server, job["id"])
        done, cancelled = await get(server, job["id"]), await get(server, queued["id"])
        assert done["created_at"] <= done["started_at"] <= done["finished_at"]
        assert 0 < done["running_s"] < DAY
        assert cancelled["created_at"] <= cancelled["finished_at"]
        assert (cancelled["started_at"], cancelled["running_s"]) == (None, 0)


async def test_time_between_job_runs_does_not_count(serve: Serve, clocks: Clocks) -> None:
    async with serve(job_command=worker("obey")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        await events(server, job["id"], until=of_type("metrics"))
        await server.client.post(f"/v1/jobs/{job['id']}/cancel")
        await events(server, job["id"])
        first = await get(server, job["id"])
        clocks.run(7 * DAY)
        await server.client.post(f"/v1/jobs/{job['id']}/resume")
        await events(server, job["id"])
        second = await get(server, job["id"])
        assert 0 < first["running_s"] <= second["running_s"] < DAY
        assert second["started_at"] == first["started_at"]


@pytest.mark.parametrize("step", STEPS)
async def test_sweep_leaves_young_images(step: float, clocks: Clocks, server: Server) -> None:
    images = server.services.images
    loose = await server.image(png((1, 1, 1)))
    clocks.run(3600)
    clocks.wall += step
    assert images.sweep() == 0
    clocks.run(3600)
    assert images.sweep() == 0
    assert (await server.client.get(f"/v1/images/{loose}")).status_code == 200
    clocks.run(500 * DAY)
    assert images.sweep() == 1


@pytest.mark.parametrize("step", STEPS)
@both_databases
async def test_key_is_kept_for_a_day(step: float, clocks: Clocks, server: Server) -> None:
    body = json.dumps(await server.body())
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    first = await server.client.post("/v1/traces", content=body, headers=headers)
    clocks.run(3600)
    clocks.wall += step
    server.services.idempotency.sweep()
    again = await server.client.post("/v1/traces", content=body, headers=headers)
    assert again.json()["id"] == first.json()["id"]
    clocks.run(500 * DAY)
    anew = await server.client.post("/v1/traces", content=body, headers=headers)
    assert anew.json()["id"] != first.json()["id"]
