"""Sweeps: one job per combination, all or none; what a server's end interrupts goes on; bad grids are rejected."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.contract.schemas_jobs import SweepCreate, SweepEntry, SweepOut
from app.jobs import store
from app.jobs.store import MOST_ATTEMPTS
from app.jobs.sweeps import MOST_JOBS, combinations
from tests.app.conftest import Serve, Server, both_databases, is_problem
from tests.app.job_helpers import SPEC, FakeCheckpoints, code, events, get, of_type, statuses, worker
from tests.patience import PATIENCE_S

GRID: dict[str, Any] = {"hyperparameters.lr": [1e-3, 5e-4, 2e-4], "seed": [1, 2]}


async def sweep(server: Server, **more: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/sweeps", json={"name": "rates", "spec": SPEC, "grid": GRID, **more})
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/sweeps/{found['id']}"
    return found


@both_databases
async def test_sweep_runs_every_combination_once(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        made = SweepOut.model_validate(await sweep(server, spec={**SPEC, "output_name": "rate", "tags": ["s"]}))
        values = [job.sweep.values for job in made.jobs if job.sweep is not None]
        assert values == [
            {"hyperparameters.lr": lr, "seed": seed} for lr in GRID["hyperparameters.lr"] for seed in (1, 2)
        ]
        assert [(job.spec["hyperparameters"]["lr"], job.spec["seed"]) for job in made.jobs] == [
            tuple(one.values()) for one in values
        ]
        assert [job.spec["output_name"] for job in made.jobs] == [f"rate-{k}" for k in range(1, 7)]
        assert made.jobs[0].name == "rates: lr=0.001, seed=1"
        for job in made.jobs:
            await events(server, job.id)
        ended = (await server.client.get(f"/v1/sweeps/{made.id}")).json()
        assert ended["counts"] == {"succeeded": 6}
        listed = (await server.client.get("/v1/jobs", params={"sweep": made.id})).json()["data"]
        assert {job["id"] for job in listed} == {job.id for job in made.jobs}
        (entry,) = (await server.client.get("/v1/sweeps")).json()["data"]
        assert SweepEntry.model_validate(entry).counts == {"succeeded": 6}
        await server.client.delete(f"/v1/jobs/{made.jobs[0].id}")
        assert len((await server.client.get(f"/v1/sweeps/{made.id}")).json()["jobs"]) == 5


async def test_same_key_starts_one_sweep(serve: Serve) -> None:
    async with serve(job_command=worker("fail")) as server:
        body, headers = {"spec": SPEC, "grid": {"seed": [1, 2]}}, {"Idempotency-Key": "once"}
        first, second = [await server.client.post("/v1/sweeps", json=body, headers=headers) for _ in range(2)]
        assert second.json() == first.json()
        assert second.headers["idempotent-replayed"] == "true"
        assert len((await server.client.get("/v1/jobs")).json()["data"]) == 2


@both_databases
async def test_interrupted_sweep_goes_on_when_the_server_is_back(serve: Serve) -> None:
    async with serve(job_command=worker("obey"), max_jobs=2) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        made = await sweep(server)
        for job in made["jobs"][:2]:
            await events(server, job["id"], until=of_type("metrics"))
        single = (await server.client.post("/v1/jobs", json=SPEC)).json()["id"]
        await server.stop()
        await server.start()
        server.services.jobs._checkpoints = FakeCheckpoints()
        first = made["jobs"][0]["id"]
        found = statuses(await events(server, first, until=lambda event: event.data.get("attempt") == 2))
        assert found == ["queued", "running", "interrupted", "queued", "running"]
        assert (await get(server, first))["error"] is None
        stopped = (await server.client.post(f"/v1/sweeps/{made['id']}/cancel")).json()
        assert not {job["status"] for job in stopped["jobs"]} & {"queued", "interrupted"}
        async with asyncio.timeout(PATIENCE_S):
            for job in stopped["jobs"]:
                await events(server, job["id"])
        await server.client.post(f"/v1/jobs/{single}/cancel")


async def test_job_that_keeps_dying_is_not_restarted_forever(serve: Serve) -> None:
    async with serve(job_command=worker("obey")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        made = await sweep(server, grid={"seed": [1]})
        job_id = made["jobs"][0]["id"]
        await events(server, job_id, until=of_type("metrics"))
        with server.services.db.write() as connection:
            store.update(connection, job_id, attempt=MOST_ATTEMPTS)
        await server.stop()
        await server.start()
        assert (await get(server, job_id))["status"] == "interrupted"


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"grid": {"seed": list(range(100)), "hyperparameters.steps": list(range(1, 101))}}, "body.grid", "10,000"),
        ({"grid": {}}, "body.grid", ""),
        ({"grid": {"seed": []}}, "body.grid.seed", ""),
        ({"grid": {"seed": [1, -1]}}, "body.grid.seed", "seed=-1"),
        ({"grid": {"hyperparameters.stepz": [1]}}, "body.grid.hyperparameters.stepz", "stepz"),
        ({"grid": {"seed.x": [1]}}, "body.grid.seed.x", "no object"),
        ({"spec": {**SPEC, "magic": 1}}, "body.spec.magic", ""),
        ({"spec": {}}, "body.spec", "method"),
        ({"name": " "}, "body.name", ""),
        ({"spec": {**SPEC, "note": "x" * 20_000}}, "body.spec", "bytes"),
    ],
)
async def test_bad_sweeps_are_rejected(server: Server, change: dict[str, Any], path: str, words: str) -> None:
    answer = await server.client.post("/v1/sweeps", json={"spec": SPEC, "grid": {"seed": [1]}, **change})
    assert words in is_problem(answer, 422, "invalid", path)["detail"]
    assert (await server.client.get("/v1/jobs")).json()["data"] == []
    assert (await server.client.get("/v1/sweeps")).json()["data"] == []


async def test_one_impossible_combination_queues_nothing(server: Server) -> None:
    body = {"spec": SPEC, "grid": {"base_checkpoint": ["nano-omni-r1", "nobody"]}}
    is_problem(await server.client.post("/v1/sweeps", json=body), 422, "unknown_checkpoint", "body.base_checkpoint")
    assert (await server.client.get("/v1/jobs")).json()["data"] == []
    assert code(await server.client.get("/v1/sweeps/sw_none")) == "sweep_not_found"


def test_grid_may_be_as_large_as_its_bound() -> None:
    wanted = SweepCreate(spec=SPEC, grid={"seed": list(range(MOST_JOBS))})
    assert [spec.seed for spec, _ in combinations(wanted)] == list(range(MOST_JOBS))
