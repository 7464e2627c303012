"""A copied, moved or restored home uses its own files, whatever version wrote it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.storage import tables
from app.storage.backup import back_up, restore
from app.storage.database import Database
from tests.app.conftest import Server, both_databases, running
from tests.app.job_helpers import FakeCheckpoints, events, get, of_type, post, statuses, worker
from tests.app.storage.old_home import DONE, KILLED, STOPPED, UPLOAD, make_old_home
from tests.fakes import FakeGeneration

MOVES = ["stays", "moved", "copied", "restored"]


def transfer(how: str, home: Path, to: Path) -> Path:
    """The home's new place."""
    if how == "stays":
        return home
    if how == "restored":
        database = home / "omni-r1.db"
        back_up(home, database if database.exists() else None, to.parent.with_suffix(".tar"))
        restore(to.parent.with_suffix(".tar"), to)
        return to
    shutil.copytree(home, to)
    if how == "moved":
        shutil.rmtree(home)
    return to


async def folders(server: Server) -> dict[str, Path]:
    """All usable checkpoints of the home and their folders."""
    found = (await server.client.get("/v1/checkpoints")).json()["data"]
    assert [one["id"] for one in found if "problem" in one] == []
    return {one["id"]: Path(one["folder"]) for one in found if one["source"] != "package"}


def texts(home: Path) -> str:
    """All text in the home, including its database."""
    files = (path for path in home.rglob("*") if path.suffix in (".json", ".jsonl"))
    kept = "\n".join(path.read_text() for path in files if path.name != "events.jsonl")
    engine = sa.create_engine(f"sqlite:///{home / 'omni-r1.db'}")
    with engine.connect() as connection:
        for name in sa.inspect(connection).get_table_names():
            kept += "\n".join(map(str, connection.execute(sa.text(f"SELECT * FROM {name}")).all()))
    engine.dispose()
    return kept


@pytest.mark.parametrize("how", MOVES)
@both_databases
async def test_old_home_keeps_its_checkpoints(
    how: str, tmp_path: Path, package: Path, engine: FakeGeneration, database: str
) -> None:
    old, elsewhere = tmp_path / "old home", tmp_path / "elsewhere"
    make_old_home(old, package / "nano-omni-r1", elsewhere, Server.database_url)
    home = transfer(how, old, tmp_path / "new" / "home")
    settings = {"job_command": worker("succeed"), "allowed_roots": (elsewhere,)}
    async with running(home, package, engine, **settings) as server:
        assert await folders(server) == {
            f"{DONE}-step-4": home / "jobs" / DONE / "checkpoints" / f"{DONE}-step-4",
            f"{STOPPED}-step-4": home / "jobs" / STOPPED / "checkpoints" / f"{STOPPED}-step-4",
            f"{KILLED}-step-4": home / "jobs" / KILLED / "checkpoints" / f"{KILLED}-step-4",
            "found": home / "checkpoints" / "found",
            "inside": home / "registered" / "inside",
            "outside": elsewhere / "outside",
        }
        assert (await get(server, KILLED))["status"] == "interrupted"
        done, stopped = await get(server, DONE), await get(server, STOPPED)
        assert done["result"]["folder"] == str(home / "jobs" / DONE / "checkpoints" / f"{DONE}-step-4")
        assert done["spec"]["data"]["path"] == str(home / "uploads" / UPLOAD)
        assert (done["running_s"], done["resumable"], stopped["resumable"]) == (90.5, False, True)
        reported = await events(server, DONE)
        assert reported[0].data["result"]["folder"] == f"jobs/{DONE}/checkpoints/{DONE}-step-4"
        picture = await server.client.get(f"/v1/jobs/{DONE}/files/samples/a-1.png")
        assert picture.content == b"\x89PNG"
        activated = await server.client.post(f"/v1/checkpoints/{DONE}-step-4/activate", json={})
        assert activated.status_code == 200, activated.text
        server.services.jobs._checkpoints = FakeCheckpoints()
        assert (await server.client.post(f"/v1/jobs/{STOPPED}/resume")).status_code == 202
        assert statuses(await events(server, STOPPED))[-1] == "succeeded"
    if database == "sqlite":
        assert str(home) not in texts(home)
        assert str(old) not in texts(home)


async def test_moved_home_finds_registered_folders(tmp_path: Path, package: Path, engine: FakeGeneration) -> None:
    """Only the end of its path reveals the folder's new place."""
    old, home = tmp_path / "old", tmp_path / "new"
    make_old_home(old, package / "nano-omni-r1", tmp_path / "elsewhere")
    database = Database(f"sqlite:///{old / 'omni-r1.db'}")
    with database.write() as connection:
        connection.execute(sa.delete(tables.checkpoints).where(tables.checkpoints.c.source == "job"))
        connection.execute(sa.text("DELETE FROM jobs"))
    database.close()
    old.rename(home)
    async with running(home, package, engine, allowed_roots=(tmp_path / "elsewhere",)) as server:
        assert (await folders(server))["inside"] == home / "registered" / "inside"


async def test_copy_of_a_home_uses_its_own_files(tmp_path: Path, package: Path, engine: FakeGeneration) -> None:
    """A home of this version, copied while the original's job runs."""
    first, second = tmp_path / "first", tmp_path / "second"
    async with running(first, package, engine, job_command=worker("stubborn"), job_patience_s=0.2) as original:
        uploaded = await original.client.post(
            "/v1/datasets", content=b'{"a": 1}\n', headers={"Content-Type": "application/x-ndjson"}
        )
        data = {"source": "jsonl", "path": uploaded.json()["path"]}
        job = await post(original, data=data)
        await events(original, job["id"], until=of_type("checkpoint"))
        with sa.create_engine(f"sqlite:///{first / 'omni-r1.db'}").connect() as connection:
            shutil.copytree(first, second, ignore=shutil.ignore_patterns("omni-r1.db*", "lock"))
            connection.exec_driver_sql("VACUUM INTO ?", (str(second / "omni-r1.db"),))
        async with running(second, package, FakeGeneration(), job_command=worker("obey")) as copy:
            found = await get(copy, job["id"])
            assert found["status"] == "interrupted"
            assert found["spec"]["data"]["path"] == str(second / data["path"])
            (made,) = found["checkpoints"]
            where = (await copy.client.get(f"/v1/checkpoints/{made['name']}")).json()["folder"]
            assert Path(where) == second / "jobs" / job["id"] / "checkpoints" / made["name"]
            assert (await get(original, job["id"]))["status"] == "running"  # its worker was left alone
            copy.services.jobs._checkpoints = FakeCheckpoints()
            assert (await copy.client.post(f"/v1/jobs/{job['id']}/resume")).status_code == 202
            assert statuses(await events(copy, job["id"]))[-1] == "succeeded"
            described = json.loads((second / "jobs" / job["id"] / "job.json").read_text())
            assert described["spec"]["data"]["path"] == uploaded.json()["path"]
        assert (await get(original, job["id"]))["status"] == "running"
    assert str(first) not in texts(second)
