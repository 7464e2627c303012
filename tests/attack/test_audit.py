"""The audit of `chaos` finds each kind of lie in a database that a real server left."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.storage import tables
from app.storage.database import Database
from tests.app.conftest import running, write_paper_checkpoint
from tests.app.job_helpers import FakeCheckpoints, events, post, worker
from tests.attack.audit import Audit
from tests.fakes import FakeGeneration

T, E, J = tables.traces, tables.events, tables.jobs
FIRST = sa.select(sa.func.min(T.c.id)).scalar_subquery()
LAST = sa.select(sa.func.max(E.c.seq)).where(E.c.trace_id == FIRST).scalar_subquery()
GROUPED = sa.select(sa.func.max(tables.group_events.c.seq)).scalar_subquery()


def trace(**values: Any) -> sa.Update:
    return sa.update(T).where(T.c.id == FIRST).values(**values)


def event(seq: Any) -> Any:
    return (E.c.trace_id == FIRST) & (E.c.seq == seq)


LIES: dict[str, tuple[Any, str]] = {
    "a runner that is gone": (trace(status="running"), "without a runner"),
    "another status": (trace(status="failed"), "status failed after trace.completed"),
    "another answer": (trace(answer="never given"), "never given"),
    "other steps": (trace(steps=[]), "other steps"),
    "no end": (trace(finished_at=None), "no time of its end"),
    "an event that is lost": (sa.delete(E).where(event(2)), "gaps or repetitions"),
    "a last event that is lost": (sa.delete(E).where(event(LAST)), "0 terminal events"),
    "two ends": (sa.update(E).where(event(1)).values(type="trace.failed"), "2 terminal events"),
    "an image that is not linked": (
        sa.delete(tables.trace_images).where(tables.trace_images.c.trace_id == FIRST),
        "not linked",
    ),
    "a group without its end": (
        sa.delete(tables.group_events).where(tables.group_events.c.seq == GROUPED),
        "0 ends in its log",
    ),
    "a group with other events": (
        sa.update(tables.group_events).where(tables.group_events.c.seq == 2).values(data='{"trace_id":"none"}'),
        "other events of tr_",
    ),
    "a job's worker that is gone": (sa.update(J).values(status="running"), "without a worker"),
    "a job's result that is lost": (sa.update(J).values(result=sa.null()), "without a result"),
    "a job's event that is lost": (
        sa.delete(tables.job_events).where(tables.job_events.c.seq == 2),
        "gaps or repetitions",
    ),
}


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a stopped server, with a trace, a group and a job."""
    folder = tmp_path_factory.mktemp("left")
    package = write_paper_checkpoint(folder / "package" / "nano-omni-r1").parent

    async def live() -> None:
        async with running(folder / "home", package, FakeGeneration(), job_command=worker("succeed")) as server:
            server.services.jobs._checkpoints = FakeCheckpoints()
            await server.finished((await server.create())["id"])
            group = (await server.create(n=2))["group_id"]
            await server.stream(group, kind="groups")
            await events(server, (await post(server))["id"])

    asyncio.run(live())
    return folder / "home"


@pytest.fixture
def audited(left: Path) -> Any:
    audit = Audit(url(left), [left])
    yield audit
    audit.close()


def url(home: Path) -> str:
    return f"sqlite:///{home / 'omni-r1.db'}"


def test_untouched_home_has_no_fault(audited: Audit, left: Path) -> None:
    assert audited.faults() == []


@pytest.mark.parametrize("lie", LIES)
def test_each_lie_is_found(lie: str, left: Path, tmp_path: Path) -> None:
    change, words = LIES[lie]
    copy = tmp_path / "omni-r1.db"
    shutil.copyfile(left / "omni-r1.db", copy)  # whole: its server has stopped
    database = Database(f"sqlite:///{copy}")
    with database.write() as connection:
        assert connection.execute(change).rowcount > 0
    database.close()
    audit = Audit(f"sqlite:///{copy}", [left])
    assert any(words in fault for fault in audit.faults()), audit.faults()
    audit.close()


def test_lost_and_changed_images_are_found(left: Path) -> None:
    files = sorted(left.glob("images/*/*.png"))
    assert len(files) > 1
    contents = [file.read_bytes() for file in files]
    files[0].unlink()
    files[1].write_bytes(b"other")
    audit = Audit(url(left), [left])
    found = audit.faults()
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    audit.close()
    assert any(f"{files[0].stem} is missing" in fault for fault in found)
    assert any(f"{files[1].stem} has another content" in fault for fault in found)


def test_reader_that_saw_another_log_is_found(audited: Audit, left: Path) -> None:
    database = Database(url(left))
    with database.read() as connection:
        rows = connection.execute(sa.select(E.c.data).where(E.c.trace_id == FIRST).order_by(E.c.seq)).scalars().all()
        trace_id = connection.execute(sa.select(FIRST)).scalar_one()
    database.close()
    log = list(rows)
    assert audited.differ([(trace_id, log)]) == []
    for seen in (log[:-1], log[1:], [*log, log[-1]], [log[0], *log]):
        assert audited.differ([(trace_id, seen)]) == [trace_id]
