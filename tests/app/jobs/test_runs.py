"""The workbench over HTTP: labels, filters, metrics of several jobs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from app.contract.schemas_jobs import EstimateOut, JobOut, Leaderboard, SeriesList
from app.storage import tables
from tests.app.conftest import Serve, Server, both_databases, is_problem
from tests.app.job_helpers import SPEC, FakeCheckpoints, code, events, get, post, worker


@both_databases
async def test_jobs_are_found_by_name_and_tag(serve: Serve) -> None:
    async with serve(job_command=worker("fail")) as server:
        one = await post(server, name=" circles ", tags=["a", "b"], note="first")
        two = await post(server, name="circles")
        assert (one["name"], one["tags"], one["note"]) == ("circles", ["a", "b"], "first")
        assert not one["spec"].keys() & {"name", "tags", "note"}
        for job in (one, two):
            await events(server, job["id"])
        patch = {"tags": ["c", "a", "c"], "name": None}
        changed = await server.client.patch(f"/v1/jobs/{two['id']}", json=patch)
        assert JobOut.model_validate(changed.json()).tags == ["a", "c"]

        async def found(**wanted: str) -> list[str]:
            return [job["id"] for job in (await server.client.get("/v1/jobs", params=wanted)).json()["data"]]

        assert await found(tag="a") == [two["id"], one["id"]]
        assert await found(tag="c") == [two["id"]]
        assert await found(name="circles") == [one["id"]]
        assert await found(tag="b", status="succeeded") == []
        await server.client.patch(f"/v1/jobs/{two['id']}", json={"name": "circles", "note": ""})
        assert await found(name="circles") == [two["id"], one["id"]]  # the same name, two ids
        assert (await get(server, two["id"]))["note"] is None
        assert (await server.client.delete(f"/v1/jobs/{one['id']}")).status_code == 204
        assert await found(tag="b") == []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": "x" * 101}, "body.name"),
        ({"name": " "}, "body.name"),
        ({"name": "a\u0000b"}, "body.name"),
        ({"tags": ["\u200b"]}, "body.tags.0"),
        ({"tags": [f"t{k}" for k in range(33)]}, "body.tags"),
        ({"note": "\u0000"}, "body.note"),
    ],
)
async def test_invalid_labels_are_rejected(server: Server, change: dict[str, Any], path: str) -> None:
    is_problem(await server.client.patch("/v1/jobs/job_1m8hecw2g000zcq5rn56", json=change), 422, "invalid", path)
    is_problem(await server.client.post("/v1/jobs", json={**SPEC, **change}), 422, "invalid", path)


async def test_metrics_of_several_jobs(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        ids = [(await post(server))["id"] for _ in range(2)]
        for job_id in ids:
            await events(server, job_id)
        params = {"ids": ",".join([*ids, "job_none"]), "keys": "loss/ce,none"}
        answer = (await server.client.get("/v1/jobs/metrics", params=params)).json()
        found = SeriesList.model_validate(answer)
        assert [one.job_id for one in found.data] == ids
        assert found.missing == ["job_none"]
        assert "loss/ce" in {one.key for one in found.keys}
        for job_id, one in zip(ids, found.data, strict=True):
            rows = (await server.client.get(f"/v1/jobs/{job_id}/metrics")).json()["data"]
            own = [(row["step"], row["values"]["loss/ce"]) for row in rows if "loss/ce" in row["values"]]
            assert list(zip(one.steps, one.values, strict=True)) == own
            assert own


@pytest.mark.parametrize(
    ("params", "path"),
    [
        ({}, "query.ids"),
        ({"ids": ",".join(f"j{k}" for k in range(101))}, "query.ids"),
        ({"ids": "job_a", "keys": ",".join(f"k{k}" for k in range(51))}, "query.keys"),
        ({"ids": "job_a", "points": "1"}, "query.points"),
        ({"ids": "job_a", "from": "-1"}, "query.from"),
        ({"ids": "job_a", "start": "1"}, "query.start"),
    ],
)
async def test_invalid_charts_are_rejected(server: Server, params: dict[str, str], path: str) -> None:
    is_problem(await server.client.get("/v1/jobs/metrics", params=params), 422, "invalid", path)


async def test_unknown_job_cannot_be_labelled(server: Server) -> None:
    assert code(await server.client.patch("/v1/jobs/job_none", json={"name": "x"})) == "job_not_found"


def finish(server: Server, job_id: str, method: str, *, state: bool = True, **result: Any) -> None:
    """The end of a real job: its result, and the state of its run."""
    if state:
        folder = server.home / "jobs" / job_id / "runs" / method
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.pt").write_bytes(b"weights")
    with server.services.db.write() as connection:
        connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(result=result))


@both_databases
async def test_finished_job_goes_on_as_a_new_one(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        hyper = {"steps": 4, "schedule": "constant"}
        job = await post(server, hyperparameters=hyper, name="circles", tags=["a"], output_name="made")
        await events(server, job["id"])
        finish(server, job["id"], "pesft", steps=4)
        url = f"/v1/jobs/{job['id']}/continue"
        answers = [
            await server.client.post(url, json={"steps": 6}, headers={"Idempotency-Key": "once"}) for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [202, 202]
        more = JobOut.model_validate(answers[0].json())
        assert answers[1].json()["id"] == more.id
        assert answers[0].headers["location"] == f"/v1/jobs/{more.id}"
        assert (more.name, more.tags, more.spec["output_name"]) == ("circles", ["a"], None)
        assert more.spec["hyperparameters"] == job["spec"]["hyperparameters"] | {"steps": 10}
        assert more.continues is not None
        assert (more.continues.job_id, more.continues.steps, more.continues.differs) == (job["id"], 4, [])
        await events(server, more.id)
        described = json.loads((server.home / "jobs" / more.id / "job.json").read_text())
        assert described["continues"]["folder"] == f"jobs/{job['id']}"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"hyperparameters": {"steps": 4, "schedule": "cosine", "warmup": 0, "lr": 1.0, "floor": 0.0}},
            ["0.15", "0.5"],
        ),
        ({"hyperparameters": {"steps": 4, "schedule": "linear", "warmup": 0, "lr": 1.0}}, ["0.25", "0.5"]),
        ({"method": "perpo", "hyperparameters": {"steps": 4, "validation": {"every": 3}}}, ["linear", "validated"]),
    ],
)
async def test_what_differs_from_one_run_is_said(server: Server, spec: dict[str, Any], words: list[str]) -> None:
    server.services.jobs._runner._max_running = 0  # the jobs stay queued
    job = await post(server, **{**SPEC, **spec})
    with server.services.db.write() as connection:
        connection.execute(sa.update(tables.jobs).values(status="succeeded"))
    finish(server, job["id"], job["method"], steps=4)
    more = (await server.client.post(f"/v1/jobs/{job['id']}/continue", json={"steps": 4})).json()
    said = " ".join(more["continues"]["differs"])
    assert [word for word in words if word not in said] == []


async def test_jobs_that_cannot_go_on(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        url = "/v1/jobs/job_none/continue"
        assert code(await server.client.post(url, json={"steps": 1})) == "job_not_found"
        job = await post(server)
        url = f"/v1/jobs/{job['id']}/continue"
        assert code(await server.client.post(url, json={"steps": 1})) == "not_continuable"  # queued or running
        await events(server, job["id"])
        for state in (server.home / "jobs" / job["id"]).glob("runs/*/state.pt"):
            state.unlink()
        finish(server, job["id"], "pesft", state=False, steps=4)
        gone = is_problem(await server.client.post(url, json={"steps": 1}), 409, "not_continuable")
        assert "deleted" in gone["detail"]
        finish(server, job["id"], "pesft", steps=3)
        assert "validation" in (await server.client.post(url, json={"steps": 1})).json()["detail"]
        finish(server, job["id"], "pesft", steps=4)
        is_problem(await server.client.post(url, json={"steps": 0}), 422, "invalid", "body.steps")
        is_problem(await server.client.post(url, json={"steps": 10_000_001}), 422, "invalid", "body.steps")
        (server.package / "nano-omni-r1" / "manifest.json").unlink()
        assert (await server.client.post(url, json={"steps": 1})).status_code == 422  # its base is gone


async def test_benchmarks_reach_their_checkpoint_and_the_leaderboard(server: Server) -> None:
    """Of a benchmark with a comparison, and of a pipeline's last stage."""
    server.services.jobs._runner._max_running = 0  # the jobs stay queued
    data = {"source": "unitasks", "num_samples": 8}
    summary = {"all": {"tasks": 8, "accuracy": 0.5, "accuracy_ci95": [0.2, 0.8], "malformed": 0.0}}
    result = {"checkpoints": {name: {"summary": summary} for name in ("nano-omni-r1", "other")}}
    plain = await post(server, {"method": "benchmark", "base_checkpoint": "nano-omni-r1", "data": data})
    hyper = {"benchmark": {"max_images": 0}, "pesft": None, "perpo": None, "zero": None}
    pipeline = {"method": "pipeline", "base_checkpoint": "nano-omni-r1", "data": {"benchmark": data}}
    whole = await post(server, {**pipeline, "hyperparameters": hyper})
    for job, found in ((plain, result), (whole, {"stages": {"benchmark": result}})):
        with server.services.db.write() as connection:
            values = {"status": "succeeded", "result": found, "finished_at": "2026-11-29T00:00:00.000Z"}
            connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job["id"]).values(**values))
    board = Leaderboard.model_validate((await server.client.get("/v1/leaderboard")).json()).data
    assert [(one.job_id, one.checkpoint) for one in board] == [
        (job["id"], name) for job in (whole, plain) for name in ("nano-omni-r1", "other")
    ]
    assert [one.settings for one in board[::2]] == [{"max_images": 0}, {}]
    assert board[0].data == board[2].data == plain["spec"]["data"]
    (mine, _) = (await server.client.get("/v1/leaderboard", params={"checkpoint": "other"})).json()["data"]
    assert (mine["accuracy"], mine["drawings_right"]) == (0.5, None)
    one = (await server.client.get("/v1/checkpoints/nano-omni-r1")).json()
    assert [found["job_id"] for found in one["benchmarks"]] == [whole["id"], plain["id"]]
    (listed,) = (await server.client.get("/v1/checkpoints")).json()["data"]
    assert listed["benchmarks"] == one["benchmarks"]
    await server.client.delete(f"/v1/jobs/{plain['id']}")
    assert len((await server.client.get("/v1/leaderboard")).json()["data"]) == 2


async def test_estimate_comes_from_like_jobs_of_this_server(server: Server) -> None:
    server.services.jobs._runner._max_running = 0  # the jobs stay queued
    hyper = {"steps": 100, "lr": 1e-3}
    none = (await server.client.post("/v1/jobs/estimate", json={**SPEC, "hyperparameters": hyper})).json()
    assert EstimateOut.model_validate(none).seconds is None
    paces = {1: 2.0, 2: 4.0, 3: 3.0}  # seconds of a step
    ids = [(await post(server, seed=seed, hyperparameters={"steps": 10, "lr": 5e-4}))["id"] for seed in paces]
    other = (await post(server, hyperparameters={"steps": 10, "batch_tokens": 64}))["id"]
    with server.services.db.write() as connection:
        for job_id, step_s in zip([*ids, other], [*paces.values(), 99.0], strict=True):
            values = {"status": "succeeded", "attempt": 1, "running_s": 10 * step_s + 6}
            connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job_id).values(**values))
            for step in (1, 10):
                time = f"2026-11-29T00:{int(step * step_s) // 60:02}:{int(step * step_s) % 60:02}.000+00:00"
                data = json.dumps({"stage": "pesft", "step": step, "values": {}, "time": time})
                row = {"job_id": job_id, "seq": step + 1, "type": "metrics", "data": data}
                connection.execute(sa.insert(tables.job_events).values(**row))
    found = (await server.client.post("/v1/jobs/estimate", json={**SPEC, "hyperparameters": hyper})).json()
    assert found == {"seconds": 306.0, "steps": 100, "step_s": 3.0, "start_s": 6.0, "job_ids": ids[::-1]}
    spread = {**SPEC, "hyperparameters": hyper, "gpu": "exclusive", "num_gpus": 2}
    assert (await server.client.post("/v1/jobs/estimate", json=spread)).json()["seconds"] is None
    pipeline = {"method": "pipeline", "base_checkpoint": "nano-omni-r1", "data": {"pesft": SPEC["data"]}}
    spec = {**pipeline, "hyperparameters": {"perpo": None, "benchmark": None}}
    assert (await server.client.post("/v1/jobs/estimate", json=spec)).json()["seconds"] is None
    is_problem(await server.client.post("/v1/jobs/estimate", json={**SPEC, "seed": -1}), 422, "invalid", "body.seed")
