"""PostgreSQL only: several servers on one database, and a database server that restarts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app import main
from app.common.settings import Settings, SettingsError, read_settings
from app.contract.problems import Problem
from app.storage import tables
from app.storage.database import HEAD, Database, DatabaseTooNew, get_fact, now, set_fact
from app.storage.dialects import DatabaseUnusable, to_json
from app.storage.idempotency import Claim
from tests.app.conftest import Server, is_problem, running
from tests.fakes import FakeGeneration, held, write_paper_checkpoint
from tests.postgres import Cluster


@pytest.fixture
def opened() -> Iterator[Callable[[str], Database]]:
    """Opens databases and closes them at the end."""
    found: list[Database] = []

    def open_(url: str) -> Database:
        found.append(Database(url))
        return found[-1]

    yield open_
    for database in found:
        database.close()


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """The results of `works`, run concurrently in threads; errors count as results."""
    results: list[Any] = [None] * len(works)
    gate = threading.Barrier(len(works))

    def run(index: int) -> None:
        gate.wait()
        try:
            results[index] = works[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# ---- database


def test_concurrent_servers_migrate_once(postgres: Cluster, opened: Callable[[str], Database]) -> None:
    url = postgres.new(migrated=False)
    databases = [opened(url) for _ in range(4)]
    assert at_once(*(database.migrate for database in databases)) == [None] * 4
    with databases[0].read() as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]


def test_no_update_is_lost_between_processes(postgres_url: str, opened: Callable[[str], Database]) -> None:
    """Each `Database` locks only its own threads, like another process's."""
    databases = [opened(postgres_url) for _ in range(3)]
    with databases[0].write() as connection:
        set_fact(connection, "n", "0")

    def adder(database: Database) -> Callable[[], None]:
        def add() -> None:
            for _ in range(20):
                with database.write() as connection:
                    set_fact(connection, "n", str(int(get_fact(connection, "n") or 0) + 1))

        return add

    assert at_once(*(adder(database) for database in databases)) == [None] * 3
    with databases[0].read() as connection:
        assert get_fact(connection, "n") == "60"


def test_reader_sees_one_snapshot_without_waiting(postgres_url: str, opened: Callable[[str], Database]) -> None:
    database = opened(postgres_url)
    with database.read() as reader:
        assert get_fact(reader, "n") is None
        with database.write() as writer:
            set_fact(writer, "n", "1")
            assert get_fact(reader, "n") is None
        assert get_fact(reader, "n") is None
        with pytest.raises(sa.exc.DBAPIError, match="read-only"):
            set_fact(reader, "n", "2")
    with database.read() as reader:
        assert get_fact(reader, "n") == "1"


def test_failed_write_frees_the_lock(postgres_url: str, opened: Callable[[str], Database]) -> None:
    database = opened(postgres_url)

    def fail() -> None:
        with database.write() as connection:
            set_fact(connection, "n", "1")
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    with database.write() as connection:
        assert get_fact(connection, "n") is None


def test_unstorable_text_is_replaced(postgres_url: str, opened: Callable[[str], Database]) -> None:
    database = opened(postgres_url)
    row = {
        "id": "tr_1",
        "server_id": "s",
        "status": "completed",
        "question": "?",
        "images": [],
        "mode": "auto",
        "checkpoint": "c",
        "weight_version": 1,
        "sampling": {},
        "partial_images": 0,
        "background": True,
        "metadata": {"nul": "\0", "loss": float("nan")},
        "timings": {},
        "answer": "a\0b",
        "resume": b"\0\xff\x01",
        "created_at": now(),
    }
    with database.write() as connection:
        connection.execute(sa.insert(tables.traces).values(**row))
    with database.read() as connection:
        kept = connection.execute(sa.select(tables.traces)).one()
    assert (kept.answer, kept.resume) == ("a\ufffdb", b"\0\xff\x01")
    assert kept.metadata == {"nul": "\0", "loss": None}


def test_non_finite_numbers_become_null() -> None:
    assert (
        to_json({"a": [1.5, float("inf"), {"b": float("nan")}], "c": "NaN"})
        == '{"a": [1.5, null, {"b": null}], "c": "NaN"}'
    )


def test_servers_accept_one_request_per_key(postgres_url: str, opened: Callable[[str], Database]) -> None:
    def accept(name: str) -> Callable[[], None]:
        database = opened(postgres_url)

        def work() -> None:
            with database.write() as connection:
                set_fact(connection, name, "made")
                Claim("POST /v1/traces", "key", "hash").store(connection, name, {"id": name})

        return work

    results = at_once(accept("one"), accept("two"))
    rejected = [error for error in results if error is not None]
    assert [error.code for error in rejected if isinstance(error, Problem)] == ["request_in_progress"]
    with opened(postgres_url).read() as connection:
        assert len(connection.execute(sa.select(tables.facts)).all()) == 1


def test_unusable_database_is_reported_without_its_password(
    postgres: Cluster,
    tmp_path: Path,
    opened: Callable[[str], Database],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(DatabaseUnusable, match=r"LATIN1.*ENCODING 'UTF8'"):
        opened(postgres.url("latin").replace("@/", ":secret@/")).migrate()
    newer = opened(postgres.new())
    with newer.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew, match="newer version"):
        newer.migrate()

    monkeypatch.setattr(main.logs, "configure", lambda *_: None)
    settings = Settings(home=tmp_path / "home", port=0, database_url="postgresql://me:secret@127.0.0.1:1/studio")
    assert main.serve(settings, generation=FakeGeneration(), build_ui=None) == 2
    said = capsys.readouterr().err
    assert said.startswith("omni-r1: the database cannot be used: ")
    assert said.count("\n") == 1
    assert "secret" not in said


@pytest.mark.parametrize(
    "url", ["", "mysql://host/name", "postgresql://host", "postgresql+asyncpg://host/name", "nonsense", "sqlite://"]
)
def test_other_databases_are_rejected_at_start(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OMNI_R1_DATABASE_URL", url)
    with pytest.raises(SettingsError, match="OMNI_R1_DATABASE_URL"):
        read_settings()


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:p@host:5433/name", "postgres://u@host/name", "postgresql:///name?host=/run/pg&sslmode=require"],
)
def test_postgresql_password_is_never_shown(url: str) -> None:
    settings = Settings(database_url=url)
    assert settings.sqlalchemy_url.startswith("postgresql://")
    assert "database_url" not in repr(settings)
    dialect = Database(settings.sqlalchemy_url)._dialect
    assert dialect.engine.dialect.driver == "psycopg"
    assert ":p@" not in dialect.place


def test_doctor_checks_database_and_key_secretly(postgres_url: str) -> None:
    from app.cli.doctor import _database, _key

    there = _database(Settings(database_url=postgres_url))
    assert (there.state, there.detail.endswith("responds")) == ("ok", True)
    gone = _database(Settings(database_url="postgresql://me:secret@127.0.0.1:1/studio"))
    assert (gone.state, "127.0.0.1" in gone.detail, "secret" in gone.detail) == ("bad", True, False)
    short = _key(Settings(api_key="short-key"))  # type: ignore[arg-type]
    assert (short.state, "short-key" in short.detail) == ("note", False)
    assert _key(Settings(api_key="a" * 32)).state == "ok"  # type: ignore[arg-type]


# ---- several servers


async def test_servers_share_a_database_with_separate_homes(tmp_path: Path, package: Path, postgres_url: str) -> None:
    engines = FakeGeneration(held), FakeGeneration(held)
    shared: dict[str, Any] = {"database_url": postgres_url}
    async with running(tmp_path / "one", package, engines[0], **shared) as one:
        trace = await one.create()
        seen = await one.until(trace["id"], "step.completed")
        paused = await one.create(mode="step")
        await one.until(paused["id"], "trace.paused")

        # The second server's start and its active traces after its death do not affect the first one's.
        two = Server(tmp_path / "two", package, engines[1], **shared)
        await two.start()
        its_own = await two.create()
        await two.until(its_own["id"], "step.completed")
        await two.crash()
        async with running(tmp_path / "two", package, engines[1], **shared) as two:
            statuses = {entry["id"]: entry["status"] for entry in (await two.client.get("/v1/traces")).json()["data"]}
            assert statuses == {trace["id"]: "running", paused["id"]: "paused", its_own["id"]: "interrupted"}

            # It may follow them but not steer them.
            for call in ("pause", "cancel", "continue"):
                for id_ in (trace["id"], paused["id"]):
                    answer = await two.client.post(f"/v1/traces/{id_}/{call}")
                    is_problem(answer, 409, "trace_elsewhere")
            is_problem(await two.client.delete(f"/v1/traces/{trace['id']}"), 409, "trace_elsewhere")
            following = asyncio.create_task(two.stream(trace["id"]))
            engines[0].go("end")
            log = await one.stream(trace["id"])
            assert [event.raw for event in await following] == [event.raw for event in log]
            assert [event.raw for event in log[: len(seen)]] == [event.raw for event in seen]
            assert (await two.get(trace["id"]))["status"] == "completed"
            assert (await two.client.delete(f"/v1/traces/{trace['id']}")).status_code == 204
        assert (await one.client.post(f"/v1/traces/{paused['id']}/cancel")).json()["status"] == "cancelled"
        assert (await one.get(its_own["id"]))["status"] == "interrupted"


async def test_servers_have_separate_active_checkpoints(tmp_path: Path, package: Path, postgres_url: str) -> None:
    write_paper_checkpoint(tmp_path / "one" / "checkpoints" / "mine")

    async def active(home: str, **settings: Any) -> tuple[str, int]:
        async with running(tmp_path / home, package, FakeGeneration(), database_url=postgres_url, **settings) as server:
            ready = (await server.client.get("/readyz")).json()
            return ready["checkpoint"], ready["weight_version"]

    assert await active("one", checkpoint="mine") == ("mine", 1)
    assert await active("two") == ("nano-omni-r1", 2)
    assert await active("one") == ("mine", 1)
    assert await active("two") == ("nano-omni-r1", 2)


# ---- database outages


async def test_server_survives_a_database_outage(tmp_path: Path, package: Path, own_cluster: Cluster) -> None:
    engine = FakeGeneration(held)
    async with running(tmp_path / "home", package, engine, database_url=own_cluster.new()) as server:
        trace = await server.create()
        seen = await server.until(trace["id"], "step.completed")
        following = asyncio.create_task(server.stream(trace["id"]))
        await asyncio.to_thread(own_cluster.stop)
        is_problem(await server.client.get("/v1/traces"), 503, "database_unavailable")
        ready = await server.client.get("/readyz")
        assert (ready.status_code, ready.json()["phase"]) == (503, "failed")
        assert "database" in ready.json()["detail"]
        assert (await server.client.get("/livez")).status_code == 200
        engine.go("end")
        await asyncio.to_thread(own_cluster.start)
        log = await following
        assert log[-1].type == "trace.completed"
        assert [event.raw for event in log[: len(seen)]] == [event.raw for event in seen]
        assert [event.raw for event in await server.stream(trace["id"])] == [event.raw for event in log]
        assert (await server.client.get("/readyz")).status_code == 200
        assert (await server.finished((await server.create())["id"]))["status"] == "completed"
