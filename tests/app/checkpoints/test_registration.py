"""Registering and deleting checkpoints: allowed folders, rejected requests, deleted files."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.contract.problems import Problem
from app.storage import tables
from app.storage.database import now
from model.checkpoint.shards import CheckpointError
from tests.app.conftest import Serve, Server, both_databases, is_problem
from tests.fakes import FakeGeneration, Wait, answer_items, png, step_items, write_paper_checkpoint


@pytest.fixture
def mine(tmp_path: Path, paper_checkpoint: Path) -> Path:
    """A checkpoint in a folder that the server may read."""
    return Path(shutil.copytree(paper_checkpoint, tmp_path / "allowed" / "mine"))


async def register(server: Server, source: Path | str, **more: Any) -> Any:
    return await server.client.post("/v1/checkpoints", json={"source": str(source), **more})


async def ids(server: Server) -> set[str]:
    return {entry["id"] for entry in (await server.client.get("/v1/checkpoints")).json()["data"]}


async def delete(server: Server, name: str, **params: Any) -> Any:
    return await server.client.delete(f"/v1/checkpoints/{name}", params=params)


async def test_registered_folder_is_usable_and_never_deleted(serve: Serve, mine: Path, engine: FakeGeneration) -> None:
    async with serve(allowed_roots=(mine.parent,)) as server:
        answer = await register(server, mine, name="my-run")
        assert answer.status_code == 201, answer.text
        assert answer.headers["Location"] == "/v1/checkpoints/my-run"
        entry = answer.json()
        assert (entry["source"], entry["folder"], entry["active"], entry["loaded"]) == (
            "local",
            str(mine),
            False,
            False,
        )
        assert entry == (await server.client.get("/v1/checkpoints/my-run")).json()
        assert engine.checks[-1] == "mine", "read from end to end before its name was given"
        trace = await server.finished((await server.create(checkpoint="my-run"))["id"])
        assert (trace["status"], trace["checkpoint"]) == ("completed", "my-run")
        is_problem(await delete(server, "my-run"), 409, "checkpoint_in_use")
        assert (await delete(server, "my-run", unload="true")).status_code == 204
        assert await ids(server) == {"nano-omni-r1"}
        assert (mine / "manifest.json").is_file()
        is_problem(await delete(server, "my-run"), 404, "checkpoint_not_found")


@both_databases
async def test_same_key_replays_the_registration(serve: Serve, mine: Path, engine: FakeGeneration) -> None:
    async with serve(allowed_roots=(mine.parent,)) as server:

        async def post(name: str) -> Any:
            body = {"source": str(mine), "name": name}
            return await server.client.post("/v1/checkpoints", json=body, headers={"Idempotency-Key": "k"})

        first = await post("a")
        again = await post("a")
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["Idempotent-Replayed"] == "true"
        is_problem(await post("b"), 422, "idempotency_mismatch")
        is_problem(await register(server, mine, name="a"), 409, "checkpoint_exists")
        is_problem(await register(server, mine), 409, "checkpoint_exists")  # the manifest's name is the shipped one's
        both = await asyncio.gather(*(register(server, mine, name="c") for _ in range(2)))
        assert sorted(answer.status_code for answer in both) == [201, 409]


async def test_paths_outside_the_allowed_folders_are_rejected(
    serve: Serve, mine: Path, tmp_path: Path, engine: FakeGeneration
) -> None:
    outside = Path(shutil.copytree(mine, tmp_path / "elsewhere" / "theirs"))
    (mine.parent / "link").symlink_to(outside)
    half = Path(shutil.copytree(mine, mine.parent / "half"))
    (half / "model.safetensors").unlink()
    (half / "model.safetensors").symlink_to(outside / "model.safetensors")
    async with serve(allowed_roots=(mine.parent,)) as server:
        checked = len(engine.checks)
        for source in (
            outside,
            mine.parent / "link",
            half,
            mine / ".." / ".." / "elsewhere" / "theirs",
            "../elsewhere/theirs",
            "/",
            "~",
            "/no/such/folder",  # whether it exists is not disclosed
        ):
            is_problem(await register(server, source, name="x"), 422, "path_not_allowed", "body.source")
        for source in (mine.parent / "nothing", mine / "manifest.json", "~no-such-user/x", "a" * 300):
            problem = is_problem(await register(server, source, name="x"), 422, "checkpoint_invalid", "body.source")
            assert problem["reason"] == "not_found"
        assert len(engine.checks) == checked, "nothing of it was read"
        assert await ids(server) == {"nano-omni-r1"}


async def test_folder_redirected_after_registration_is_rejected(serve: Serve, mine: Path, tmp_path: Path) -> None:
    async with serve(allowed_roots=(mine.parent,)) as server:
        assert (await register(server, mine, name="my-run")).status_code == 201
        theirs = shutil.move(mine, tmp_path / "theirs")
        mine.symlink_to(theirs)
        entry = (await server.client.get("/v1/checkpoints/my-run")).json()
        assert "is outside" in entry["problem"]
        answer = await server.client.post("/v1/checkpoints/my-run/activate", json={})
        is_problem(answer, 422, "checkpoint_invalid")
        mine.unlink()
        assert "no longer exists" in (await server.client.get("/v1/checkpoints/my-run")).json()["problem"]
        assert (await delete(server, "my-run")).status_code == 204


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "body.source"),
        ({"source": " "}, "body.source"),
        ({"source": "a\0b"}, "body.source"),
        ({"source": 3}, "body.source"),
        ({"source": "x", "name": "../x"}, "body.name"),
        ({"source": "x", "name": ".x"}, "body.name"),
        ({"source": "x", "name": "x" * 201}, "body.name"),
        ({"source": "x", "folder": "y"}, "body.folder"),
    ],
)
async def test_invalid_body_is_rejected(server: Server, body: dict[str, Any], path: str) -> None:
    is_problem(await server.client.post("/v1/checkpoints", json=body), 422, "invalid", path)


async def test_engine_errors_are_reported_with_their_code(serve: Serve, mine: Path, engine: FakeGeneration) -> None:
    async with serve(allowed_roots=(mine.parent,)) as server:
        engine.bad_folders["mine"] = "model.norm.weight is in no file of this checkpoint"
        problem = is_problem(await register(server, mine, name="x"), 422, "checkpoint_invalid", "body.source")
        assert problem["reason"] == "missing_tensor"
        assert "model.norm.weight" in problem["detail"]
        engine.bad_folders.clear()
        (mine / "model.safetensors").rename(mine / "pytorch_model.bin")
        problem = is_problem(await register(server, mine, name="x"), 422, "checkpoint_invalid", "body.source")
        assert problem["reason"] == "pickle_only"
        assert await ids(server) == {"nano-omni-r1"}


async def test_fetched_hub_id_may_link_into_the_cache(serve: Serve, mine: Path, tmp_path: Path) -> None:
    repo = tmp_path / "cache" / "models--owner--some-model"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / "abc"
    shutil.copytree(mine, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    requested: list[str] = []

    async def fetch(hub_id: str) -> Path:
        requested.append(hub_id)
        if hub_id != "owner/some-model":
            raise CheckpointError("download_failed", f"{hub_id} could not be fetched from the hub: no such repository")
        return snapshot

    async with serve() as server:
        server.services.registration._fetch = fetch
        answer = await register(server, "owner/some-model", name="theirs")
        assert answer.status_code == 201, answer.text
        assert answer.json()["source"] == "hub"
        trace = await server.finished((await server.create(checkpoint="theirs"))["id"])
        assert (trace["status"], trace["checkpoint"]) == ("completed", "theirs")
        problem = is_problem(await register(server, "owner/none"), 422, "checkpoint_invalid", "body.source")
        assert problem["reason"] == "download_failed"
        assert requested == ["owner/some-model", "owner/none"]
        assert (await delete(server, "theirs", unload="true")).status_code == 204
        assert (blobs / "model.safetensors").is_file()


@both_databases
async def test_job_checkpoint_has_lineage_and_deletes_files(server: Server) -> None:
    folder = server.home / "jobs" / "job_1" / "checkpoints" / "tuned-step-2"
    write_paper_checkpoint(folder)

    def reported(metrics: dict[str, float]) -> None:
        server.services.checkpoints.register_job_checkpoint(
            "tuned-step-2", folder, "nano-omni-r1", "job_1", "pesft", 2, metrics
        )

    await asyncio.to_thread(reported, {"loss/ce": 2.0})
    await asyncio.to_thread(reported, {"loss/ce": 1.5})  # a resumed worker reports it again
    entry = (await server.client.get("/v1/checkpoints/tuned-step-2")).json()
    assert (entry["base"], entry["source"], entry["metrics"]) == ("nano-omni-r1", "job", {"loss/ce": 1.5})
    assert entry["lineage"] == {"job_id": "job_1", "stage": "pesft", "step": 2}
    with pytest.raises(Problem, match="a checkpoint named"):
        await asyncio.to_thread(
            server.services.checkpoints.register_job_checkpoint,
            "tuned-step-2",
            folder,
            "nano-omni-r1",
            "job_2",
            "pesft",
            2,
            {},
        )
    assert (await delete(server, "tuned-step-2")).status_code == 204
    assert not folder.exists()
    assert list((server.home / "tmp").iterdir()) == []
    assert await ids(server) == {"nano-omni-r1"}


@both_databases
async def test_active_shipped_and_base_checkpoints_are_kept(server: Server) -> None:
    mine = write_paper_checkpoint(server.home / "checkpoints" / "mine")
    is_problem(await delete(server, "nano-omni-r1"), 409, "checkpoint_in_use")
    assert (await server.client.post("/v1/checkpoints/mine/activate", json={})).status_code == 200
    is_problem(await delete(server, "nano-omni-r1", unload="true"), 409, "checkpoint_protected")
    is_problem(await delete(server, "mine", unload="true"), 409, "checkpoint_in_use")
    assert (await server.client.post("/v1/checkpoints/nano-omni-r1/activate", json={})).status_code == 200
    await asyncio.to_thread(live_job, server, "mine")
    problem = is_problem(await delete(server, "mine", unload="true"), 409, "checkpoint_in_use")
    assert "job_7" in problem["detail"]
    assert mine.is_dir()
    await asyncio.to_thread(live_job, server, "mine", status="succeeded")
    assert (await delete(server, "mine", unload="true")).status_code == 204
    assert not mine.exists()


def live_job(server: Server, base: str, *, status: str = "running") -> None:
    row = {
        "id": "job_7",
        "server_id": "other",
        "status": status,
        "method": "pesft",
        "gpu": "shared",
        "base_checkpoint": base,
        "spec": {},
        "output_prefix": "x",
        "metrics": {},
        "attempt": 1,
        "cancel_requested": False,
        "log_offset": 0,
        "created_at": now(),
    }
    with server.services.db.write() as connection:
        connection.execute(sa.delete(tables.jobs).where(tables.jobs.c.id == "job_7"))
        connection.execute(sa.insert(tables.jobs).values(**row))


async def test_loaded_checkpoint_in_use_is_not_deleted(server: Server, engine: FakeGeneration) -> None:
    engine.script = lambda _request: [*step_items(1, "I look.", png()), Wait("go"), *answer_items(" red")]
    write_paper_checkpoint(server.home / "checkpoints" / "mine")
    trace_id = (await server.create(checkpoint="mine"))["id"]
    await server.until(trace_id, "step.completed")
    is_problem(await delete(server, "mine", unload="true"), 409, "checkpoint_in_use")
    engine.go("go")
    assert (await server.finished(trace_id))["status"] == "completed"
    assert (await delete(server, "mine", unload="true")).status_code == 204
