"""Training jobs over HTTP, with minimal workers: events, activation, failures, cancel, resume, queue."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from app.contract.problems import Problem
from tests.app.conftest import Serve, both_databases
from tests.app.job_helpers import SPEC, FakeCheckpoints, code, events, get, of_type, post, statuses, worker
from tests.patience import PATIENCE_S


@both_databases
async def test_job_runs_and_reports_its_progress(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        answer = await server.client.post("/v1/jobs", json=SPEC)
        assert answer.status_code == 202
        job = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
        assert job["status"] == "queued"
        assert job["spec"]["hyperparameters"]["perception_weight"] == 1.0  # defaults are resolved
        found = await events(server, job["id"])
        assert [event.id for event in found] == list(range(1, len(found) + 1))
        assert statuses(found) == ["queued", "running", "succeeded"]
        assert found[-1].type == "job.status"
        kinds = {event.type for event in found}
        assert kinds == {"job.status", "progress", "metrics", "sample", "checkpoint"}
        done = await get(server, job["id"])
        assert done["status"] == "succeeded"
        assert done["progress"] == {"stage": "pesft", "step": 4, "total": 4, "eta_s": 1.5}
        assert done["metrics"] == {"loss/ce": 0.5, "loss/text": None}  # NaN is not valid JSON
        assert done["result"]["loss/ce"] == 0.5
        assert done["started_at"] <= done["finished_at"]
        assert done["error"] is None
        (made,) = registry.registered
        assert made["name"].endswith("-step-4")
        assert made["name"].startswith("nano-omni-r1-pesft-")
        assert (made["job_id"], made["base"], made["step"]) == (job["id"], "nano-omni-r1", 4)
        assert made["folder"].is_dir()
        assert registry.activated == []


async def test_checkpoint_is_registered_before_its_event(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        await events(server, job["id"], until=of_type("checkpoint"))
        assert len(registry.registered) == 1


async def test_job_folder_contains_all_worker_inputs(serve: Serve, package: Path) -> None:
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server, output_name="mine")
        await events(server, job["id"])
        reported = json.loads((server.home / "jobs" / job["id"] / "job.json").read_text())
        assert reported["base"] == {"name": "nano-omni-r1", "folder": str(package / "nano-omni-r1")}
        assert reported["checkpoints"]["nano-omni-r1"] == str(package / "nano-omni-r1")
        assert reported["output_prefix"] == "mine"
        assert reported["spec"] == job["spec"]
        assert reported["provenance"]["torch"]
        assert reported["provenance"]["python"]


async def test_only_sample_images_of_the_folder_are_served(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        found = await events(server, job["id"])
        sample = next(event.data for event in found if event.type == "sample")
        url = f"/v1/jobs/{job['id']}/files/samples/a-1.png"
        assert sample["question_image"] == url
        assert [step["image"] for step in sample["steps"]] == [url, None]
        picture = await server.client.get(url)
        assert picture.content == b"\x89PNG"
        assert picture.headers["content-type"] == "image/png"
        log = await server.client.get(f"/v1/jobs/{job['id']}/files/log.txt")
        assert "the worker says hello" in log.text
        for name in (
            "runs/pesft/state.pt",
            "samples",
            "..%2F..%2Fomni-r1.db",
            "%2e%2e/../server-id",
            ".hidden.txt",
            "a%00b",
            "a" * 300 + ".png",  # longer than a file name may be
        ):
            answer = await server.client.get(f"/v1/jobs/{job['id']}/files/{name}")
            assert answer.status_code == 404, name
        outside = await server.client.get("/v1/jobs/../files/server-id.txt")
        assert outside.status_code == 404


async def test_reader_gets_every_event_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.jobs.events.REPLAY_CHUNK", 3)  # a long log is read in chunks
    async with serve(job_command=worker("succeed")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        live = await events(server, job["id"])
        assert [event.id for event in live] == list(range(1, len(live) + 1))
        assert statuses(live)[-1] == "succeeded"
        for after in range(len(live)):
            again = await events(server, job["id"], after=after)
            assert b"".join(event.raw for event in again) == b"".join(event.raw for event in live[after:])
        url = f"/v1/jobs/{job['id']}/events"
        past = await server.client.get(url, params={"after": str(len(live))})
        assert past.status_code == 204
        header = await server.client.get(url, params={"after": "0"}, headers={"Last-Event-ID": str(len(live))})
        assert header.status_code == 204
        assert (await server.client.get(url, params={"after": "-1"})).status_code == 400
        assert (await server.client.get("/v1/jobs/nobody/events")).status_code == 404


async def test_activate_option_activates_the_result(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        server.services.jobs._activation = registry
        job = await post(server, activate=True)
        found = await events(server, job["id"])
        name = registry.registered[0]["name"]
        assert registry.activated == [name]
        assert found[-1].data["result"]["activated"] == {"checkpoint": name, "weight_version": 7}


async def test_failed_activation_keeps_the_checkpoints(serve: Serve) -> None:
    async with serve(job_command=worker("succeed")) as server:
        refusal = Problem("checkpoint_invalid", "NaN in model.norm.weight")
        registry = server.services.jobs._checkpoints = FakeCheckpoints(refusal=refusal)
        server.services.jobs._activation = registry
        job = await post(server, activate=True)
        await events(server, job["id"])
        done = await get(server, job["id"])
        assert (done["status"], done["error"]["code"]) == ("failed", "activation_failed")
        assert "NaN in model.norm.weight" in done["error"]["detail"]
        assert registry.registered[0]["folder"].is_dir()


async def test_failing_worker_reports_the_reason(serve: Serve) -> None:
    async with serve(job_command=worker("fail")) as server:
        job = await post(server)
        found = await events(server, job["id"])
        assert statuses(found) == ["queued", "running", "failed"]
        error = found[-1].data["error"]
        assert (error["code"], error["detail"]) == ("loss_not_finite", "NaN at step 3")
        assert error["log_tail"] == ["the worker says hello"]
        assert [event.data["line"] for event in found if event.type == "log"] == ["something is odd"]
        again = await server.client.post(f"/v1/jobs/{job['id']}/resume")
        assert (again.status_code, code(again)) == (409, "not_resumable")  # it saved nothing


async def test_crashed_worker_leaves_its_last_lines(serve: Serve) -> None:
    async with serve(job_command=worker("crash")) as server:
        job = await post(server)
        found = await events(server, job["id"])
        assert next(event.data["values"]["loss/ce"] for event in found if event.type == "metrics") == 2.0
        error = found[-1].data["error"]
        assert error["code"] == "worker_died"
        assert "exit code 7" in error["detail"]
        assert error["log_tail"] == ["the worker says hello", "boom[31m"]  # without the escape character
        async with asyncio.timeout(PATIENCE_S):  # counted once the end is stored
            while 'omni_r1_jobs_ended_total{status="failed"} 1.0' not in (await server.client.get("/metrics")).text:
                await asyncio.sleep(0.01)


async def test_unstartable_worker_fails_the_job(serve: Serve) -> None:
    async with serve(job_command=("/nowhere/python",)) as server:
        job = await post(server)
        found = await events(server, job["id"])
        assert found[-1].data["error"]["code"] == "not_started"


@both_databases
async def test_cancelled_job_resumes_at_a_step_boundary(serve: Serve) -> None:
    async with serve(job_command=worker("obey")) as server:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        url = f"/v1/jobs/{job['id']}"
        await events(server, job["id"], until=of_type("metrics"))
        assert code(await server.client.post(f"{url}/resume")) == "not_resumable"
        assert code(await server.client.delete(url)) == "job_live"
        cancelled = await server.client.post(f"{url}/cancel")
        assert cancelled.status_code == 200
        assert cancelled.json()["cancel_requested"] is True
        found = await events(server, job["id"])
        assert statuses(found) == ["queued", "running", "cancelled"]
        assert [made["step"] for made in registry.registered] == [2]
        again = (await server.client.post(f"{url}/cancel")).json()
        assert (again["status"], again["cancel_requested"]) == ("cancelled", False)

        resumed = await server.client.post(f"{url}/resume")
        assert resumed.status_code == 202
        assert resumed.json()["status"] == "queued"
        whole = await events(server, job["id"])
        assert statuses(whole) == ["queued", "running", "cancelled", "queued", "running", "succeeded"]
        assert [event.id for event in whole] == list(range(1, len(whole) + 1))
        assert whole[: len(found)] == found
        steps = [event.data["step"] for event in whole if event.type == "metrics"]
        assert steps == [1, 3, 4]
        done = await get(server, job["id"])
        assert (done["attempt"], done["error"]) == (2, None)


async def test_stubborn_worker_is_killed_after_the_timeout(serve: Serve) -> None:
    async with serve(job_command=worker("stubborn"), job_patience_s=0.3) as server:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        await events(server, job["id"], until=of_type("checkpoint"))
        await server.client.post(f"/v1/jobs/{job['id']}/cancel")
        found = await events(server, job["id"])
        assert statuses(found)[-1] == "cancelled"
        assert found[-1].data["error"]["code"] == "killed"
        assert len(registry.registered) == 1  # saved checkpoints stay


@both_databases
async def test_exclusive_job_runs_alone(serve: Serve) -> None:
    async with serve(job_command=worker("wait"), max_jobs=2) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()

        async def status(job: dict[str, Any]) -> str:
            return str((await get(server, job["id"]))["status"])

        def go(job: dict[str, Any]) -> None:
            (server.home / "jobs" / job["id"] / "go").touch()

        shared = [await post(server) for _ in range(2)]
        for job in shared:
            await events(server, job["id"], until=of_type("metrics"))
        alone = await post(server, gpu="exclusive")
        behind = await post(server)
        third = await post(server)
        go(shared[0])
        await events(server, shared[0]["id"])
        # A slot is free, but the exclusive job needs all, and nothing overtakes it.
        assert [await status(job) for job in (shared[1], alone, behind)] == ["running", "queued", "queued"]
        go(shared[1])
        await events(server, alone["id"], until=of_type("metrics"))
        assert [await status(job) for job in (shared[1], alone, behind)] == ["succeeded", "running", "queued"]
        gone = await server.client.post(f"/v1/jobs/{third['id']}/cancel")
        assert gone.json()["status"] == "cancelled"  # queued jobs are cancelled immediately
        assert statuses(await events(server, third["id"])) == ["queued", "cancelled"]
        go(alone)
        await events(server, behind["id"], until=of_type("metrics"))
        go(behind)
        assert statuses(await events(server, behind["id"]))[-1] == "succeeded"
