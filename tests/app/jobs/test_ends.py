"""Ended jobs: what they can still do and which names they hold; and what running jobs wait for."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.jobs.files import has_saved_state
from app.jobs.intake import clashing_names
from app.jobs.process import WorkerProcess
from app.storage.home import Reserve
from tests.app.conftest import Serve, Server, both_databases
from tests.app.job_helpers import SPEC, FakeCheckpoints, code, events, get, of_type, post, statuses, worker
from training.jobs.disk import MARGIN_BYTES

NAME = "mine"


async def refused_name(server: Server, **spec: Any) -> str:
    """The problem with the `output_name`."""
    answer = await server.client.post("/v1/jobs", json={**SPEC, "output_name": NAME, **spec})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["path"] == "body.output_name"
    return str(error["message"])


async def cannot_resume(server: Server, job_id: str) -> None:
    assert (await get(server, job_id))["resumable"] is False
    answer = await server.client.post(f"/v1/jobs/{job_id}/resume")
    assert (answer.status_code, code(answer)) == (409, "not_resumable")
    assert "no saved state" in answer.json()["detail"]


@pytest.mark.parametrize("what", ["fail", "crash", "/nowhere/python"])
async def test_failed_job_without_state_is_not_resumable(what: str, serve: Serve) -> None:
    async with serve(job_command=(what,) if what.startswith("/") else worker(what)) as server:
        job = await post(server, output_name=NAME)
        assert statuses(await events(server, job["id"]))[-1] == "failed"
        await cannot_resume(server, job["id"])
        assert (await post(server, output_name=NAME))["status"] == "queued"  # the name is free


async def test_interrupted_job_without_state_is_not_resumable(serve: Serve) -> None:
    async with serve(job_command=worker("wait")) as server:
        job = await post(server, output_name=NAME)
        await events(server, job["id"], until=of_type("metrics"))
        await server.stop()
        await server.start()
        assert (await get(server, job["id"]))["status"] == "interrupted"
        await cannot_resume(server, job["id"])
        again = await post(server, output_name=NAME)
        await server.client.post(f"/v1/jobs/{again['id']}/cancel")


async def test_job_cancelled_in_the_queue_is_not_resumable(serve: Serve) -> None:
    async with serve(job_command=worker("obey"), max_jobs=1) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        first = await post(server)
        queued = await post(server, output_name=NAME)
        assert "is queued" in await refused_name(server)
        await server.client.post(f"/v1/jobs/{queued['id']}/cancel")
        await cannot_resume(server, queued["id"])
        again = await post(server, output_name=NAME)
        for job in (again, first):
            await server.client.post(f"/v1/jobs/{job['id']}/cancel")
        await events(server, first["id"])


@both_databases
async def test_resumable_job_holds_its_name(serve: Serve) -> None:
    async with serve(job_command=worker("obey")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server, output_name=NAME)
        await events(server, job["id"], until=of_type("metrics"))
        assert f"job {job['id']} is running" in await refused_name(server)
        assert (await get(server, job["id"]))["resumable"] is False
        await server.client.post(f"/v1/jobs/{job['id']}/cancel")
        await events(server, job["id"])
        assert (await get(server, job["id"]))["resumable"] is True
        listed = (await server.client.get("/v1/jobs")).json()["data"]
        assert [one["resumable"] for one in listed] == [True]
        assert f"job {job['id']} uses this name and can be resumed" in await refused_name(server)
        assert f"job {job['id']}" in await refused_name(server, output_name=f"{NAME}-pesft")
        assert (await server.client.delete(f"/v1/jobs/{job['id']}")).status_code == 204
        again = await post(server, output_name=NAME)
        await server.client.post(f"/v1/jobs/{again['id']}/cancel")
        await events(server, again["id"])


async def test_name_is_free_after_deleting_its_checkpoints(serve: Serve, package: Path) -> None:
    async with serve(job_command=worker("succeed")) as server:
        registry = server.services.jobs._checkpoints
        job = await post(server, output_name=NAME)
        await events(server, job["id"])
        assert server.services.jobs._checkpoints is registry
        assert f"checkpoint {NAME}-step-4 exists" in await refused_name(server)
        assert (await server.client.delete(f"/v1/jobs/{job['id']}")).status_code == 204
        assert f"{NAME}-step-4" in await refused_name(server)
        assert (await server.client.delete(f"/v1/checkpoints/{NAME}-step-4")).status_code == 204
        again = await post(server, output_name=NAME)
        assert statuses(await events(server, again["id"]))[-1] == "succeeded"


def test_pipeline_stages_share_a_name() -> None:
    assert set(clashing_names("a")) == {"a", "a-zero", "a-pesft", "a-perpo"}
    assert {"a", "a-perpo"} <= set(clashing_names("a-perpo"))


@pytest.mark.parametrize(
    ("name", "text", "saved"),
    [
        ("runs/pipeline.json", "{}", False),
        ("runs/pipeline.json", '{"zero": {}}', True),
        ("runs/zero/drawn.jsonl", "", False),
        ("runs/zero/drawn.jsonl", '{"chain_id": 1}\n', True),
        ("benchmark/tiny/predictions.jsonl", "", False),
        ("benchmark/tiny/predictions.jsonl", '{"item_id": 1}\n', True),
        ("runs/pesft/state.pt", "state", True),
        ("runs/pesft/data.json", '{"wanted": 1}', False),
    ],
)
def test_empty_records_are_no_saved_state(name: str, text: str, saved: bool, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    assert has_saved_state(tmp_path) is saved


# ---- a full disk


async def waits(server: Server, job_id: str) -> dict[str, Any]:
    """The job once it waits and its step is known; the two arrive in any order."""
    async with asyncio.timeout(60):
        while True:
            job = await get(server, job_id)
            progress = job["progress"] or {}
            if progress.get("waiting") and progress.get("step"):
                return job
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("what", ["full", "silent"])
async def test_job_waits_for_disk_space_and_continues(what: str, serve: Serve) -> None:
    """`silent`: there is no space to store the wait itself."""
    async with serve(job_command=worker(what)) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        shown = await waits(server, job["id"])
        assert shown["status"] == "running"
        assert shown["progress"]["step"] == 1
        waiting = shown["progress"]["waiting"]
        assert (waiting["for"], waiting.keys()) == ("disk", {"for", "needed_bytes", "free_bytes"})
        assert waiting["needed_bytes"] > 0
        (listed,) = (await server.client.get("/v1/jobs")).json()["data"]
        assert listed["progress"]["waiting"]["for"] == "disk"
        (server.home / "jobs" / job["id"] / "go").touch()
        found = await events(server, job["id"])
        assert statuses(found) == ["queued", "running", "succeeded"]
        assert [event.data["code"] for event in found if event.type == "warning"] == ["disk_full"]
        assert "waiting" not in (await get(server, job["id"]))["progress"]


@pytest.mark.parametrize("what", ["full", "silent"])
async def test_waiting_job_can_be_cancelled(what: str, serve: Serve) -> None:
    async with serve(job_command=worker(what)) as server:
        job = await post(server)
        await waits(server, job["id"])
        await server.client.post(f"/v1/jobs/{job['id']}/cancel")
        assert statuses(await events(server, job["id"]))[-1] == "cancelled"
        ended = await get(server, job["id"])
        assert (ended["error"], ended["resumable"]) == (None, False)
        assert "waiting" not in ended["progress"]


async def test_server_stops_while_a_job_waits(serve: Serve) -> None:
    async with serve(job_command=worker("full")) as server:
        job = await post(server)
        await waits(server, job["id"])
        await server.stop()
        await server.start()
        assert (await get(server, job["id"]))["status"] == "interrupted"
        assert not WorkerProcess(server.home / "jobs" / job["id"]).alive


async def test_cancel_works_on_a_full_disk(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database accepts nothing until the reserve is released."""
    async with serve(job_command=worker("silent")) as server:
        reserve, db = server.home / "reserve", server.services.db
        async with asyncio.timeout(60):
            while not reserve.exists():
                await asyncio.sleep(0.01)
        job = await post(server)
        await waits(server, job["id"])
        write, rejected = db.write, []

        @contextlib.contextmanager
        def full() -> Iterator[Any]:
            with write() as connection:
                yield connection
                if reserve.exists():
                    rejected.append(1)
                    raise sa.exc.OperationalError("COMMIT", None, Exception("database or disk is full"))

        monkeypatch.setattr(db, "write", full)
        answer = await server.client.post(f"/v1/jobs/{job['id']}/cancel")
        assert (answer.status_code, answer.json()["cancel_requested"]) == (200, True)
        assert rejected
        assert statuses(await events(server, job["id"]))[-1] == "cancelled"
        assert (await server.client.delete(f"/v1/jobs/{job['id']}")).status_code == 204


def test_reserve_returns_with_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.take()
    assert MARGIN_BYTES / 2 < (tmp_path / "reserve").stat().st_size < MARGIN_BYTES  # lets no waiting job continue
    assert reserve.release()
    assert not reserve.release()
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=MARGIN_BYTES))
    reserve.take()
    assert not (tmp_path / "reserve").exists()
    monkeypatch.undo()
    reserve.take()
    assert reserve.release()
