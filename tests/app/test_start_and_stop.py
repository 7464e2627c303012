"""What a home persists: interrupted traces, weight versions, the active checkpoint, one owner, one schema."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.storage import tables
from app.storage.database import HEAD, MIGRATIONS, Database, DatabaseTooNew, get_fact, set_fact
from app.storage.home import Home, HomeBusy
from tests.app.conftest import Serve, Server, both_databases, is_problem, running
from tests.fakes import FakeGeneration, held, write_paper_checkpoint
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow


@both_databases
async def test_stop_interrupts_running_and_queued_traces(tmp_path: Path, package: Path) -> None:
    engine = FakeGeneration(held, num_slots=1)
    async with running(tmp_path / "home", package, engine) as server:
        paused = await server.create(mode="step")
        await server.until(paused["id"], "trace.paused")
        live = [await server.create() for _ in range(2)]
        await server.until(live[0]["id"], "step.completed")
        readers = [asyncio.create_task(server.stream(trace["id"])) for trace in live]
        while server.services.events.open_streams < 2:
            await asyncio.sleep(0.002)
        await server.runtime.stop_traces()
        ready = await server.client.get("/readyz")
        assert (ready.status_code, ready.json()["phase"]) == (503, "stopping")
        is_problem(await server.client.post("/v1/traces", json={"question": "?"}), 503, "stopping")
        logs = [await reader for reader in readers]
        for log in logs:
            assert log[-1].type == "trace.failed"
            assert log[-1].data["error"]["code"] == "interrupted"
    assert engine.closed
    async with running(tmp_path / "home", package, FakeGeneration()) as server:
        for trace, log in zip(live, logs, strict=True):
            ended = await server.get(trace["id"])
            assert (ended["status"], ended["error"]["code"]) == ("interrupted", "interrupted")
            assert [e.raw for e in await server.stream(trace["id"])] == [e.raw for e in log]
        assert (await server.get(paused["id"]))["status"] == "paused"


@both_databases
async def test_next_start_interrupts_traces_of_a_dead_process(tmp_path: Path, package: Path) -> None:
    server = Server(tmp_path / "home", package, FakeGeneration(held))
    await server.start()
    trace = await server.create()
    seen = await server.until(trace["id"], "step.completed")
    await server.crash()
    async with running(tmp_path / "home", package, FakeGeneration()) as server:
        log = await server.stream(trace["id"])
        assert [e.raw for e in log[:-1]] == [e.raw for e in seen]
        assert (log[-1].type, log[-1].data["error"]["code"]) == ("trace.failed", "interrupted")
        ended = await server.get(trace["id"])
        assert (ended["status"], len(ended["steps"])) == ("interrupted", 1)
        newer = await server.create()
        assert newer["id"] > trace["id"]


@both_databases
async def test_weights_keep_their_version_across_restarts(tmp_path: Path, package: Path) -> None:
    home = tmp_path / "home"

    async def version(name: str | None = None) -> int:
        engine = FakeGeneration()
        async with running(home, package, engine) as server:
            trace = await server.create(**({"checkpoint": name} if name else {}))
            number: int = (await server.finished(trace["id"]))["weight_version"]
            assert engine.loaded[trace["checkpoint"]] == number
            return number

    assert await version() == 1
    write_paper_checkpoint(home / "checkpoints" / "mine")
    assert await version("mine") == 2
    assert await version() == 1
    assert await version("mine") == 2
    write_paper_checkpoint(home / "checkpoints" / "mine", salt="other")
    assert await version("mine") == 3


async def test_paused_trace_without_its_weights_cannot_resume(tmp_path: Path, package: Path) -> None:
    home = tmp_path / "home"
    mine = write_paper_checkpoint(home / "checkpoints" / "mine")
    async with running(home, package, FakeGeneration()) as server:
        trace = await server.create(mode="step", checkpoint="mine")
        await server.until(trace["id"], "trace.paused")
        url = f"/v1/traces/{trace['id']}/continue"
        saved = tmp_path / "saved"
        shutil.move(mine, saved)
        is_problem(await server.client.post(url), 409, "weights_gone")
        write_paper_checkpoint(mine, salt="other")
        is_problem(await server.client.post(url), 409, "weights_gone")
        shutil.rmtree(mine)
        shutil.move(saved, mine)
        assert (await server.client.post(url)).status_code == 200


@both_databases
async def test_start_restores_the_last_active_checkpoint(
    tmp_path: Path, package: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"

    async def active(**settings: Any) -> str:
        async with running(home, package, FakeGeneration(), **settings) as server:
            name: str = (await server.client.get("/readyz")).json()["checkpoint"]
            entries = (await server.client.get("/v1/checkpoints")).json()["data"]
            assert [entry["id"] for entry in entries if entry["active"]] == [name]
            return name

    assert await active() == "nano-omni-r1"
    write_paper_checkpoint(home / "checkpoints" / "mine")
    assert await active() == "nano-omni-r1"
    assert await active(checkpoint="mine") == "mine"
    assert await active() == "mine"
    shutil.rmtree(home / "checkpoints" / "mine")
    with caplog.at_level("WARNING"):
        assert await active() == "nano-omni-r1"
    assert "checkpoint mine is missing" in caplog.text
    shutil.move(package / "nano-omni-r1", package / "nano-base")
    assert await active() == "nano-base"


def test_home_is_private_and_has_one_owner(tmp_path: Path) -> None:
    path = tmp_path / "home"
    (path / "tmp").mkdir(parents=True)
    (path / "tmp" / "old").write_text("x")
    (path / "mine.txt").write_text("mine")
    first, second = Home(path), Home(path)
    first.open()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert (path / "mine.txt").read_text() == "mine"
    assert list((path / "tmp").iterdir()) == []
    first.note("127.0.0.1", 7860)
    with pytest.raises(HomeBusy, match=rf"port 7860 with pid {os.getpid()}"):
        second.open()
    first.close()
    second.open()
    second.close()


def serve_exit(home: Path, **environment: str) -> tuple[int, str]:
    """Exit code and stderr of a server that fails to start."""
    env = {**os.environ, "OMNI_R1_HOME": str(home), "OMNI_R1_PORT": "0", **environment}
    done = subprocess.run(
        [sys.executable, "-m", "app.main"], env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    return done.returncode, done.stderr


def test_failed_starts_exit_with_2(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.open()
    home.note("127.0.0.1", 7999)
    code, said = serve_exit(home.path)
    assert code == 2
    assert f"port 7999 with pid {os.getpid()}" in said
    home.close()
    assert serve_exit(home.path, OMNI_R1_HOST="0.0.0.0")[0] == 2
    assert serve_exit(home.path, OMNI_R1_TYPO="1")[0] == 2


def test_newer_database_exits_with_2(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    database = Database(f"sqlite:///{home / 'omni-r1.db'}")
    database.migrate()
    with database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew):
        database.migrate()
    database.close()
    code, said = serve_exit(home)
    assert (code, said.count("\n")) == (2, 1)
    assert "newer version" in said


@both_databases
def test_migrations_create_the_tables_of_the_code(database_url: str, database: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD
    opened = Database(database_url)
    opened.migrate()
    with opened._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        if database == "sqlite":
            pragmas = ("journal_mode", "foreign_keys")
            assert [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas] == ["wal", 1]
    opened.close()


@both_databases
def test_no_update_is_lost_between_threads(database_url: str) -> None:
    import threading

    database = Database(database_url)
    database.migrate()
    with database.write() as connection:
        set_fact(connection, "n", "0")

    def add() -> None:
        for _ in range(50):
            with database.write() as connection:
                set_fact(connection, "n", str(int(get_fact(connection, "n") or 0) + 1))

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as connection:
        assert get_fact(connection, "n") == "300"
    database.close()


async def test_garbage_collection_skips_what_was_imported(serve: Serve) -> None:
    try:
        async with serve() as server:
            assert (await server.client.get("/livez")).status_code == 200
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
