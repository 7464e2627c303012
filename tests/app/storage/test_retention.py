"""Old traces go by age and by size; pinned and live ones never; sizes by kind."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.cli.main import main
from app.contract.schemas_system import PrunedOut, StorageOut
from app.storage import tables
from app.storage.database import Database
from app.storage.retention import GB, measure
from tests.app.conftest import Serve, Server, both_databases, is_problem
from tests.fakes import png

LONG_AGO = "2020-01-01T00:00:00.000Z"
T = tables.traces


def change(server: Server, trace_id: str, **values: Any) -> None:
    with server.services.db.write() as connection:
        connection.execute(sa.update(T).where(T.c.id == trace_id).values(**values))


async def aged(server: Server, **values: Any) -> str:
    """A trace that ended long ago, with these columns."""
    trace_id: str = (await server.finished((await server.create())["id"]))["id"]
    change(server, trace_id, **{"finished_at": LONG_AGO} | values)
    return trace_id


def ids(server: Server) -> set[str]:
    with server.services.db.read() as connection:
        return set(connection.execute(sa.select(T.c.id)).scalars())


async def prune(server: Server, **body: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/storage/prune", json=body)
    assert answer.status_code == 200, answer.text
    PrunedOut.model_validate(answer.json(), strict=True)
    return dict(answer.json())


@both_databases
async def test_only_old_traces_go_that_nobody_needs(serve: Serve) -> None:
    async with serve() as server:
        old = {await aged(server), await aged(server, status="failed", rating=None)}
        stays = {
            await aged(server, rating=-1),
            await aged(server, note="why"),
            await aged(server, status="paused"),
            await aged(server, status="running"),
            await aged(server, status="queued"),
            await aged(server, server_id="another"),
            await aged(server, finished_at="2999-01-01T00:00:00.000Z"),
        }
        tagged = await aged(server)
        assert (await server.client.patch(f"/v1/traces/{tagged}", json={"tags": ["keep"]})).status_code == 200
        member = await aged(server)
        with server.services.db.write() as connection:
            group = {"id": "gr_open", "server_id": "x", "kind": "samples", "trace_ids": [], "created_at": LONG_AGO}
            connection.execute(sa.insert(tables.groups).values(**group))
            explained = group | {"id": "gr_why", "kind": "intervention", "trace_id": tagged, "finished_at": LONG_AGO}
            connection.execute(sa.insert(tables.groups).values(**explained))
        change(server, member, group_id="gr_open")
        explanation = await aged(server, group_id="gr_why")
        stays |= {tagged, member, explanation}

        planned = await prune(server, keep_days=1, dry_run=True)
        assert ids(server) == old | stays
        done = await prune(server, keep_days=1)
        assert ids(server) == stays
        assert done == planned | {"dry_run": False}
        assert done["traces"] == len(old)
        assert done["bytes"] > 0
        assert (await prune(server, keep_days=1))["traces"] == 0
        for trace_id in old:
            is_problem(await server.client.get(f"/v1/traces/{trace_id}/events"), 404, "trace_not_found")
        assert f"omni_r1_traces_pruned_total {len(old)}.0" in (await server.client.get("/metrics")).text


async def test_group_goes_with_its_last_member(server: Server) -> None:
    first = await server.create(n=2)
    group_id = first["group_id"]
    group = (await server.client.get(f"/v1/groups/{group_id}")).json()
    for trace_id in group["trace_ids"]:
        await server.finished(trace_id)
    await server.stream(group_id, kind="groups")
    change(server, group["trace_ids"][0], finished_at=LONG_AGO)
    assert (await prune(server, keep_days=1))["traces"] == 1
    assert (await server.client.get(f"/v1/groups/{group_id}")).status_code == 200
    change(server, group["trace_ids"][1], finished_at=LONG_AGO)
    assert (await prune(server, keep_days=1))["traces"] == 1
    assert (await server.client.get(f"/v1/groups/{group_id}")).status_code == 404


async def test_oldest_go_until_the_home_is_small_enough(server: Server) -> None:
    made = [await aged(server) for _ in range(4)]
    pinned = await aged(server, rating=1)
    everything = await prune(server, max_gb=1e-9, dry_run=True)
    assert everything["traces"] == 0  # not even all of them would be enough
    assert everything["over_bytes"] > 0
    assert ids(server) == {*made, pinned}
    held = server.services.retention.held()
    one = (await prune(server, keep_days=1, dry_run=True))["bytes"] // 4
    done = await prune(server, max_gb=(held - one - one // 2) / GB)
    assert done["over_bytes"] == 0
    assert ids(server) == {*made[done["traces"] :], pinned}
    assert 0 < done["traces"] < 4


async def test_shown_images_stay(server: Server) -> None:
    shared = await server.image(png((1, 2, 3)))
    old = await server.finished((await server.create(images=[{"image_id": shared}]))["id"])
    await server.finished((await server.create(images=[{"image_id": shared}]))["id"])
    change(server, old["id"], finished_at=LONG_AGO)
    found = await prune(server, keep_days=1)
    assert (found["traces"], found["images"]) == (1, 0)  # the other trace has the same question and drawings
    assert (await server.client.get(f"/v1/images/{shared}")).status_code == 200


async def test_server_prunes_by_itself(serve: Serve) -> None:
    async with serve(keep_days=1) as server:
        old, young = await aged(server), await server.finished((await server.create())["id"])
        await server.stop()
        await server.start()
        while old in ids(server):
            await asyncio.sleep(0.01)
        assert ids(server) == {young["id"]}
        storage = (await server.client.get("/v1/storage")).json()
        StorageOut.model_validate(storage, strict=True)
        assert storage["keep_days"] == 1
        assert storage["last_prune"]["traces"] == 1


async def test_prune_needs_a_limit(server: Server) -> None:
    is_problem(await server.client.post("/v1/storage/prune", json={}), 422, "invalid", "body")
    is_problem(await server.client.post("/v1/storage/prune", json={"keep_days": 0}), 422, "invalid", "body.keep_days")


async def test_command_prunes(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    old = await aged(server)
    url = f"http://127.0.0.1:{server.port}"
    assert await asyncio.to_thread(main, ["prune", "--url", url]) == 2
    assert re.search(r"(?m)give --keep-days or --max-gb, or set OMNI_R1_KEEP_DAYS.* there$", capsys.readouterr().err)
    assert await asyncio.to_thread(main, ["prune", "--keep-days", "1", "--dry-run", "--json", "--url", url]) == 0
    assert json.loads(capsys.readouterr().out)["traces"] == 1
    assert ids(server) == {old}
    assert await asyncio.to_thread(main, ["prune", "--keep-days", "1", "--url", url]) == 0
    assert capsys.readouterr().out.startswith("deleted 1 traces and ")
    assert ids(server) == set()


def test_each_byte_has_one_kind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    files = {
        "images/ab/x.png": ("images", 10),
        "partials/tr/1-0.png": ("images", 5),
        "checkpoints/mine/model.safetensors": ("checkpoints", 100),
        "jobs/job_1/checkpoints/step/model.safetensors": ("checkpoints", 1000),
        "jobs/job_1/runs/state.pt": ("jobs", 300),
        "jobs/job_1/events.jsonl": ("jobs", 7),
        "uploads/rows.jsonl": ("datasets", 20),
        "reserve": ("other", 40),
    }
    expected: dict[str, int] = {}
    for name, (kind, size) in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"x" * size)
        expected[kind] = expected.get(kind, 0) + size
    os.link(home / "jobs/job_1/runs/state.pt", home / "jobs/job_1/runs/again.pt")
    (home / "checkpoints/loop").symlink_to(home)
    db = Database(f"sqlite:///{home / 'omni-r1.db'}")
    db.migrate(home)
    found = measure(home, db)
    link = (home / "checkpoints/loop").lstat().st_size
    assert {kind: size for kind, size in found.items() if kind != "database"} == expected | {
        "checkpoints": expected["checkpoints"] + link
    }
    assert found["database"] == sum(path.stat().st_size for path in home.glob("omni-r1.db*"))
    db.close()
