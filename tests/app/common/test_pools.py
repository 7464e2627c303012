"""Blocking work: its threads, deadlines, and late results."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.common import pools
from app.common.pools import Pool, TooSlow
from app.storage.database import Database
from app.traces import event_writer
from tests.app.conftest import Serve, Server, is_problem
from tests.fakes import FakeGeneration, held
from tests.postgres import Cluster

ROOT = Path(__file__).parents[3]
# Other bounded pools: image decoders, upload writers, the grader.
OWN_POOLS = {"app/storage/image_intake.py", "app/storage/uploads.py", "app/jobs/grader.py"}
BLOCKING = {"to_thread", "run_in_executor", "run_in_threadpool", "run_sync", "ThreadPoolExecutor"}


@contextlib.asynccontextmanager
async def stuck(*filled: Pool) -> AsyncIterator[None]:
    """All threads of these pools hang while the block runs."""
    gate, inside = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        inside.release()
        gate.wait(600)

    tasks = [asyncio.create_task(pool.run(hang)) for pool in filled for _ in range(pool._most)]
    for _ in tasks:
        while not inside.acquire(blocking=False):
            await asyncio.sleep(0.005)
    try:
        yield
    finally:
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_results_and_errors_are_returned() -> None:
    pool = Pool("t", threads=2, deadline_s=60)
    assert await pool.run(divmod, 7, 2) == (3, 1)
    for error in (ValueError, TimeoutError, StopIteration):

        def fail(error: type[Exception] = error) -> None:
            raise error("no")

        with pytest.raises(RuntimeError if error is StopIteration else error, match="no"):
            await pool.run(fail)


async def test_pool_respects_its_thread_limit() -> None:
    seen: set[int] = set()
    pool = Pool("t", threads=3, deadline_s=60)
    await asyncio.gather(*(pool.run(lambda: seen.add(threading.get_ident())) for _ in range(50)))
    assert 1 <= len(seen) <= 3


async def test_late_work_is_rejected_and_undone() -> None:
    gate, undone, began = threading.Event(), threading.Event(), threading.Event()
    log: list[str] = []

    def slow() -> str:
        began.set()
        gate.wait(60)
        return "made"

    def undo(result: str) -> None:
        log.append(f"undone {result}")
        undone.set()

    pool = Pool("t", threads=1, deadline_s=0.5, waits_for="database")
    late = asyncio.create_task(pool.run(slow, undo=undo))
    queued = asyncio.create_task(pool.run(log.append, "never"))
    with pytest.raises(TooSlow, match="database"):
        await late
    with pytest.raises(TooSlow):
        await queued
    with pytest.raises(TooSlow):  # at once: every thread hangs
        await pool.run(log.append, "never")
    gate.set()
    while not undone.is_set():
        await asyncio.sleep(0.005)
    pool.deadline_s = 60
    while pool._stuck:
        await asyncio.sleep(0.005)
    assert await pool.run(lambda: "again") == "again"
    assert log == ["undone made"]


async def test_cancelled_caller_undoes_its_work() -> None:
    gate, began, undone = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        gate.wait(60)

    pool = Pool("t", threads=1, deadline_s=60)
    task = asyncio.create_task(pool.run(slow, undo=lambda _: undone.set()))
    while not began.is_set():
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    while not undone.is_set():
        await asyncio.sleep(0.005)


def test_hanging_work_does_not_block_exit() -> None:
    code = (
        "import asyncio, threading\n"
        "from app.common.pools import Pool\n"
        "async def main():\n"
        "    task = asyncio.ensure_future(Pool('t', threads=1, deadline_s=None).run(threading.Event().wait))\n"
        "    await asyncio.sleep(0.1)\n"
        "    task.cancel()\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=False).returncode == 0


def test_all_blocking_work_uses_a_pool() -> None:
    """Other threads are shared by everything: asyncio's, and anyio's, in which FastAPI runs plain functions."""
    found = []
    for path in sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "model" / "engine").glob("client.py")]):
        if path.is_relative_to(ROOT / "app" / "ui"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name in BLOCKING and path.relative_to(ROOT).as_posix() not in OWN_POOLS:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")  # type: ignore[attr-defined]
            if isinstance(node, ast.FunctionDef) and _is_route(node) and not _is_in_pool(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} is a plain function")
    assert found == []


def _decorators(node: ast.FunctionDef) -> list[str]:
    return [ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list]


def _is_route(node: ast.FunctionDef) -> bool:
    return any(name.startswith("router.") for name in _decorators(node))


def _is_in_pool(node: ast.FunctionDef) -> bool:
    return any(name.endswith("in_pool") for name in _decorators(node))


# ---- a server whose database, disk or hub hangs


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines short enough for a test."""
    for pool in (pools.reads, pools.writes, pools.probe, pools.intake, pools.files, pools.work):
        monkeypatch.setattr(pool, "deadline_s", 1.0)


async def test_hanging_database_returns_503_and_undoes_traces(
    short: None, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    body = await server.body()
    real = Database.write

    @contextlib.contextmanager
    def write(self: Database) -> Iterator[Any]:
        with real(self) as connection:
            gate.wait(60)
            yield connection

    with monkeypatch.context() as patched:
        patched.setattr(Database, "write", write)
        headers = {"Idempotency-Key": "k"}
        answer = await server.client.post("/v1/traces", json=body, headers=headers)
        is_problem(answer, 503, "database_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        gate.set()
    while pools.writes._stuck:
        await asyncio.sleep(0.01)
    assert (await server.client.get("/v1/traces")).json()["data"] == []
    again = await server.client.post("/v1/traces", json=body, headers=headers)
    assert (again.status_code, "idempotent-replayed" in again.headers) == (201, False)
    assert (await server.finished(again.json()["id"]))["status"] == "completed"


async def test_slow_work_blocks_no_other_pool(short: None, server: Server) -> None:
    body = await server.body()
    async with stuck(pools.intake, pools.files, pools.streams):
        assert (await server.client.get("/livez")).status_code == 200
        assert (await server.client.get("/readyz")).status_code == 200
        assert (await server.client.get("/v1/traces")).status_code == 200
        answer = await server.client.post("/v1/traces", json=body)
        is_problem(answer, 503, "storage_unavailable")
    async with stuck(pools.reads):
        assert (await server.client.get("/readyz")).status_code == 200
        is_problem(await server.client.get("/v1/traces"), 503, "database_unavailable")


async def test_hanging_commit_fails_running_traces(
    serve: Serve, engine: FakeGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that never answers raises nothing: only the clock reveals it."""
    monkeypatch.setattr(event_writer, "COMMIT_PATIENCE_S", 0.3)
    monkeypatch.setattr("app.traces.service.STORAGE_PATIENCE_S", 0.3)
    gate = threading.Event()
    engine.script = held
    async with serve() as server:
        trace = await server.create()
        await server.until(trace["id"], "step.completed")
        log = server.services.events
        real = log._writer._commit_rows

        def commit(batch: Any) -> None:
            gate.wait(60)
            real(batch)

        with monkeypatch.context() as patched:
            patched.setattr(log._writer, "_commit_rows", commit)
            engine.go("end")
            while log.trouble is None:
                await asyncio.sleep(0.01)
            ready = await server.client.get("/readyz")
            assert (ready.status_code, ready.json()["phase"]) == (503, "failed")
            is_problem(await server.client.post("/v1/traces", json=await server.body()), 503, "database_unavailable")
            gate.set()
        while log.trouble is not None:
            await asyncio.sleep(0.01)
        assert (await server.finished(trace["id"]))["status"] in ("failed", "completed")
        assert (await server.client.get("/readyz")).status_code == 200


async def test_pipe_in_a_checkpoint_folder_blocks_nothing(server: Server, paper_checkpoint: Path) -> None:
    for name in ("config.json", "manifest.json", "tokenizer.json"):
        folder = server.home / "checkpoints" / f"pipe-{name.partition('.')[0]}"
        shutil.copytree(paper_checkpoint, folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        answer = await server.client.post("/v1/checkpoints", json={"source": str(folder), "name": "mine"})
        problem = is_problem(answer, 422, "checkpoint_invalid", "body.source")
        assert problem["reason"] == "broken_file"
    entries = (await server.client.get("/v1/checkpoints")).json()["data"]
    assert sum("not a regular file" in (entry["problem"] or "") for entry in entries if "problem" in entry) == 3


def test_postgresql_ends_slow_statements(postgres: Cluster) -> None:
    url = postgres.new()
    opened = Database(url)
    try:
        opened.migrate()
        for connect in (opened.read, opened.write):
            with connect() as connection:
                for name in ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"):
                    value = connection.execute(sa.text(f"SHOW {name}")).scalar()
                    assert value not in ("0", None), name
        own = Database(url + "&options=-c%20statement_timeout%3D7s")
        with own.read() as connection:
            assert connection.execute(sa.text("SHOW statement_timeout")).scalar() == "7s"
        own.close()
    finally:
        opened.close()
        postgres.drop(url)
