"""What the object store still has to learn about a home's files: one row per file or folder, in the database.

A row is written in the transaction that makes its file known, so that neither a crash nor a store that is down loses an
upload or a deletion. Paths are relative to the home; a folder's ends with `/`. Functions on a connection; they block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.contract.words import JOB_TERMINAL
from app.storage import database, tables
from app.storage.database import now
from app.storage.home import Home

B = tables.outbox

# A deletion that its server has not made for that long is made by any other.
ORPHANED = timedelta(hours=1)


@dataclass(frozen=True)
class Task:
    """One row: upload what is at `path` in the home, or delete it from the store."""

    id: int
    path: str
    drop: bool


@dataclass(frozen=True)
class Waiting:
    """How many tasks a server has, and since when the oldest one waits."""

    tasks: int = 0
    since: str | None = None


def put(connection: Connection, server_id: str, path: str) -> None:
    """Have a file or folder uploaded by this server."""
    _remove(connection, B.c.path == path, B.c.server_id == server_id)
    put_all(connection, server_id, [path])


def put_all(connection: Connection, server_id: str, paths: Iterable[str]) -> None:
    """The same for many that are not in the table yet."""
    rows = [_row(server_id, path, drop=False) for path in paths]
    if rows:
        connection.execute(sa.insert(B), rows)


def drop(connection: Connection, server_id: str, path: str, *, deep: bool = False) -> None:
    """Have a file or folder deleted from the store; no server uploads it any more, with `deep` nor what it holds."""
    _remove(connection, B.c.path.startswith(path, autoescape=True) if deep else B.c.path == path)
    connection.execute(sa.insert(B), [_row(server_id, path, drop=True)])


def _remove(connection: Connection, *uploads: sa.ColumnElement[bool]) -> None:
    connection.execute(sa.delete(B).where(*uploads, ~B.c.drop))


def _row(server_id: str, path: str, *, drop: bool) -> dict[str, object]:
    is_tree = path.startswith(("checkpoints/", "jobs/"))
    return {"server_id": server_id, "path": path, "is_tree": is_tree, "drop": drop, "created_at": now()}


def tasks(connection: Connection, server_id: str, *, trees: bool, limit: int) -> list[Task]:
    """The server's oldest tasks on files, or on the folders of checkpoints and jobs.

    An upload waits for the deletion of the same path, also by another server: the deletion must not come second.
    """
    earlier = B.alias()
    waits = sa.exists().where(earlier.c.path == B.c.path, earlier.c.drop, earlier.c.id < B.c.id).correlate(B)
    orphaned = B.c.drop & (B.c.created_at < database.clock.before(ORPHANED))
    query = sa.select(B.c.id, B.c.path, B.c.drop).where(
        B.c.is_tree == sa.literal(trees), (B.c.server_id == server_id) | orphaned, B.c.drop | ~waits
    )
    return [Task(row.id, row.path, row.drop) for row in connection.execute(query.order_by(B.c.id).limit(limit))]


def done(connection: Connection, ids: Sequence[int]) -> None:
    """Remove finished tasks; a row that has replaced one of them stays."""
    connection.execute(sa.delete(B).where(B.c.id.in_(ids)))


def waiting(connection: Connection, server_id: str) -> Waiting:
    """What a server has to do."""
    query = sa.select(sa.func.count(), sa.func.min(B.c.created_at)).where(B.c.server_id == server_id)
    count, since = connection.execute(query).one()
    return Waiting(count, since)


def is_waiting(connection: Connection, path: str) -> bool:
    """Whether a server has still to upload this file or folder."""
    return connection.execute(sa.select(B.c.id).where(B.c.path == path, ~B.c.drop).limit(1)).first() is not None


def fill(connection: Connection, home: Home) -> int:
    """Have everything uploaded that the home has, and nothing else; returns how much that is."""
    connection.execute(sa.delete(B).where(B.c.server_id == home.server_id))
    paths = list(_held(connection, home))
    put_all(connection, home.server_id, paths)
    return len(paths)


def _held(connection: Connection, home: Home) -> Iterator[str]:
    for name in connection.execute(sa.select(tables.images.c.id)).scalars():
        if (home.images / name[:2] / f"{name}.png").is_file():
            yield f"images/{name[:2]}/{name}.png"
    traces = set(connection.execute(sa.select(tables.traces.c.id)).scalars())
    previews = home.partials.glob("*/*.png")
    yield from (path.relative_to(home.path).as_posix() for path in previews if path.parent.name in traces)
    for folder in connection.execute(sa.select(tables.checkpoints.c.folder)).scalars():
        if not Path(folder).is_absolute() and (home.path / folder).is_dir():
            yield f"{folder}/"
    j = tables.jobs
    ended = sa.select(j.c.id).where(j.c.server_id == home.server_id, j.c.status.in_(tuple(JOB_TERMINAL)))
    yield from (f"jobs/{id_}/" for id_ in connection.execute(ended).scalars() if (home.jobs / id_).is_dir())
