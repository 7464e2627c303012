"""Checkpoints of other servers, through the object store: a whole folder or none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.storage import mirror as mirror_module
from app.store import turns
from app.store.trees import WHOLE
from tests.app.conftest import Server, is_problem, running
from tests.app.job_helpers import events, post, worker
from tests.app.storage.test_mirror import until_sent
from tests.app.store.s3 import S3
from tests.fakes import FakeGeneration, write_paper_checkpoint
from tests.patience import PATIENCE_S

FOLDER = "jobs/job_1/checkpoints/mine"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "IDLE_S", 0.05)
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(turns, "GIVE_UP_S", 0.2)


@pytest.fixture
async def servers(tmp_path: Path, package: Path, database_url: str, s3: S3) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers on one database and one store; a job of the first has made the checkpoint `mine`."""
    shared: dict[str, Any] = {"database_url": database_url, "store": s3.url, "job_command": worker("succeed")}
    async with (
        running(tmp_path / "one", package, FakeGeneration(), **shared) as one,
        running(tmp_path / "two", package, FakeGeneration(), **shared) as two,
    ):
        write_paper_checkpoint(one.home / FOLDER)
        (one.home / FOLDER / "train").mkdir()
        (one.home / FOLDER / "train" / "state.pt").write_bytes(b"state")
        register(one)
        yield one, two


def register(server: Server) -> None:
    server.services.checkpoints.register_job_checkpoint(
        "mine", server.home / FOLDER, "nano-omni-r1", "job_1", "pesft", 4, {"loss/ce": 0.5}
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def listed(server: Server) -> dict[str, Any]:
    found = (await server.client.get("/v1/checkpoints")).json()["data"]
    return next(one for one in found if one["id"] == "mine")


@pytest.mark.parametrize("use", ["activate", "ask", "train"])
async def test_using_a_checkpoint_fetches_it(servers: tuple[Server, Server], use: str) -> None:
    one, two = servers
    await until_sent(one)
    before = await listed(two)
    assert (before["in_store"], before.get("problem")) == (True, None)
    assert not (two.home / FOLDER).exists()  # looking fetches nothing
    if use == "activate":
        answer = await two.client.post("/v1/checkpoints/mine/activate", json={})
        assert answer.status_code == 200, answer.text
        assert (await two.finished((await two.create())["id"]))["checkpoint"] == "mine"
    elif use == "ask":
        assert (await two.finished((await two.create(checkpoint="mine"))["id"]))["status"] == "completed"
    else:
        await events(two, (await post(two, base_checkpoint="mine"))["id"])
    served = {name: data for name, data in files(one.home / FOLDER).items() if name != "train/state.pt"}
    assert files(two.home / FOLDER) == served  # the training state is the job's
    after = await listed(two)
    assert "in_store" not in after
    assert after["size_bytes"] > 0


async def test_checkpoint_that_is_not_whole_is_not_used(servers: tuple[Server, Server], s3: S3) -> None:
    one, two = servers
    await until_sent(one)
    whole = dict(s3.objects)

    async def refused() -> str:
        answer = await two.client.post("/v1/checkpoints/mine/activate", json={})
        document = is_problem(answer, 503, "storage_unavailable")
        assert answer.headers["retry-after"]
        assert not (two.home / FOLDER).exists()
        await asyncio.sleep(turns.GIVE_UP_S)  # until it asks the store again
        return str(document["detail"])

    del s3.objects[f"lab/{FOLDER}/{WHOLE}"]
    assert "neither in this home nor in the object store" in await refused()
    register(one)  # its upload is on its way
    await until_sent(one)
    assert s3.objects.keys() == whole.keys()
    key = f"lab/{FOLDER}/model.safetensors"
    s3.objects[key] = s3.objects[key][:-1]
    assert "damaged" in await refused()
    s3.down()
    assert "does not answer" in await refused()
    s3.up()
    s3.objects.update(whole)
    assert (await two.client.post("/v1/checkpoints/mine/activate", json={})).status_code == 200


async def test_long_fetch_goes_on_without_its_request(servers: tuple[Server, Server], s3: S3) -> None:
    one, two = servers
    await until_sent(one)
    two.services.checkpoints.arrivals.wait_s = 0.01
    s3.gate.clear()
    is_problem(await two.client.post("/v1/checkpoints/mine/activate", json={}), 503, "not_ready")
    assert (await two.finished((await two.create())["id"]))["status"] == "completed"  # with another one
    s3.gate.set()
    async with asyncio.timeout(PATIENCE_S):
        while (await listed(two)).get("in_store"):
            await asyncio.sleep(0.02)
    assert (await two.client.post("/v1/checkpoints/mine/activate", json={})).status_code == 200


async def test_deletion_reaches_the_store(servers: tuple[Server, Server], s3: S3) -> None:
    one, two = servers
    await until_sent(one)
    assert (await two.client.delete("/v1/checkpoints/mine")).status_code == 204
    await until_sent(one, two)
    assert not [key for key in s3.objects if FOLDER in key]
    # The name is free again, and what is uploaded under it is the new one.
    (one.home / FOLDER / "notes.txt").write_bytes(b"another one")
    register(one)
    await until_sent(one)
    assert s3.objects[f"lab/{FOLDER}/notes.txt"] == b"another one"


async def test_ended_job_is_in_the_store(servers: tuple[Server, Server], s3: S3) -> None:
    one, two = servers
    job = await post(one)
    found = await events(one, job["id"])
    url = next(event.data for event in found if event.type == "sample")["question_image"]
    await until_sent(one)
    key = f"lab/jobs/{job['id']}"
    entries = json.loads(s3.objects[f"{key}/{WHOLE}"])["files"]
    assert {"events.jsonl", "job.json", "log.txt", "result.json", "samples/a-1.png", "runs/pesft/state.pt"} <= set(
        entries
    )
    assert not [name for name in entries if name.startswith("checkpoints/")]  # this worker leaves no state in them
    made = [name for name in s3.objects if name.startswith(f"{key}/checkpoints/") and name.endswith(WHOLE)]
    assert len(made) == 1  # the checkpoint is a folder of its own
    for path in (url, f"/v1/jobs/{job['id']}/files/log.txt"):
        here, there = [await server.client.get(path) for server in (one, two)]
        assert here.status_code == there.status_code == 200, there.text
        assert here.content == there.content
    for name in ("runs/pesft/state.pt", "samples/none.png", "..%2Fother.txt"):
        assert (await two.client.get(f"/v1/jobs/{job['id']}/files/{name}")).status_code == 404

    assert (await one.client.delete(f"/v1/jobs/{job['id']}")).status_code == 204
    await until_sent(one)
    assert {name.split("/")[3] for name in s3.objects if name.startswith(key)} == {"checkpoints"}
