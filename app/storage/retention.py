"""Measures the home and deletes old traces: by age, and to keep the home below a size.

Only traces that have ended, of this server, and that nobody has rated, tagged or annotated (`pinned`). Groups go with
their last trace. Jobs, checkpoints and data sets are never deleted here. Images that no trace shows any more go with
the sweep, a day after their last use (:meth:`app.storage.images.ImageStore.sweep`). Blocking; knows no HTTP.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.contract.words import TERMINAL
from app.storage import database, idempotency, tables
from app.storage.database import Database
from app.storage.home import Home
from app.storage.images import PartialStore

log = logging.getLogger("omni_r1.retention")

GB = 10**9
RESTS = timedelta(hours=1)  # after its end: readers and callers still use a trace
WEIGHED_AT_ONCE = 500
DELETED_AT_ONCE = 20  # per transaction: events of running traces wait for it

Kind = Literal["images", "checkpoints", "jobs", "datasets", "other", "database"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Files of other kinds than their folder; the rest of the home is "other".
_FOLDERS: dict[str, Kind] = {
    "images": "images",
    "partials": "images",
    "checkpoints": "checkpoints",
    "jobs": "jobs",
    "uploads": "datasets",
    "cache": "datasets",
}

T, G, L = tables.traces, tables.groups, tables.trace_images


@dataclass(frozen=True)
class Limits:
    """What may stay; None: no limit."""

    keep_days: int | None = None
    max_bytes: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return self.keep_days is not None or self.max_bytes is not None


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be: traces, images that no other trace shows, and the bytes of both.

    `over_bytes`: what the home holds above its limit, and deleting traces cannot change.
    """

    dry_run: bool
    traces: int = 0
    images: int = 0
    bytes: int = 0
    over_bytes: int = 0


@dataclass(frozen=True)
class _Weight:
    """A trace's share of the home: bytes in the database, and each image's bytes and number of traces."""

    trace_id: str
    row_bytes: int
    images: tuple[tuple[str, int, int], ...]


class Retention:
    """The limits of one server's home."""

    def __init__(
        self, db: Database, home: Home, partials: PartialStore, limits: Limits, *, in_home: bool = True
    ) -> None:
        """`in_home`: the database lies in the home and counts."""
        self._db = db
        self._home = home
        self._partials = partials
        self.limits = limits
        self._in_home = in_home
        self.forget: Callable[[str], None] = lambda _trace_id: None  # called per deleted trace
        self.sizes: dict[Kind, int] = {}  # as of the last measurement
        self.last: Pruned | None = None
        self.pruned_traces = 0
        self._one_at_a_time = threading.Lock()

    def measure(self) -> dict[Kind, int]:
        """Bytes by kind, now."""
        self.sizes = measure(self._home.path, self._db)
        return self.sizes

    def prune(self, limits: Limits | None = None, *, dry_run: bool = False) -> Pruned:
        """Delete what exceeds the limits (this server's by default), the oldest first; a dry run deletes nothing.

        If even without all traces that may go the home is above `max_bytes`, none goes for its sake: checkpoints or
        jobs are what fills it, and losing the traces would not help.
        """
        limits = limits or self.limits
        with self._one_at_a_time:
            plan = _Plan()
            if limits.keep_days is not None:
                before = database.clock.before(timedelta(days=limits.keep_days))
                plan.take(self._weights(before))
            over = 0
            if limits.max_bytes is not None:
                over = self.held() - plan.bytes - limits.max_bytes
                if over > 0:
                    over = self._relieve(plan, over)
            pruned = Pruned(dry_run, len(plan.ids), plan.num_images, plan.bytes, max(0, over))
            if not dry_run:
                pruned = replace(pruned, traces=self._delete(plan.ids))
                self.last = pruned
                self.pruned_traces += pruned.traces
                _report(pruned)
            self.measure()
        return pruned

    def _relieve(self, plan: _Plan, over: int) -> int:
        """Add the oldest traces to the plan until they hold `over` bytes; returns what is missing, then adding none."""
        larger = plan.copy()
        larger.take(self._weights(database.clock.before(RESTS), known=set(plan.ids)), enough=plan.bytes + over)
        missing = plan.bytes + over - larger.bytes
        if missing > 0:
            return over
        plan.become(larger)
        return 0

    def held(self) -> int:
        """Bytes that count for the limit: without the pages and images that will be free by themselves."""
        sizes = measure(self._home.path, self._db)
        files = sum(size for kind, size in sizes.items() if kind != "database")
        i = tables.images
        unused = sa.select(i.c.id, i.c.bytes).where(~sa.exists().where(L.c.image_id == i.c.id).correlate(i))
        with self._db.read() as connection:
            going: int = sum(row.bytes for row in connection.execute(unused) if self._has_image(row.id))
        return files - going + (self._db.size().used if self._in_home else 0)

    def _has_image(self, image_id: str) -> bool:
        """Whether the file is in this home: others may be on another server or in the object store."""
        return (self._home.images / image_id[:2] / f"{image_id}.png").is_file()

    def _weights(self, before: str, known: set[str] | None = None) -> Iterator[_Weight]:
        """The traces that may go and ended before that moment, oldest first, without the `known` ones."""
        with self._db.read() as connection:
            may_go = sa.select(T.c.id).where(*self._conditions(before)).order_by(T.c.id)
            ids = [id_ for id_ in connection.execute(may_go).scalars() if id_ not in (known or ())]
        for at in range(0, len(ids), WEIGHED_AT_ONCE):
            with self._db.read() as connection:
                found = _weigh(connection, ids[at : at + WEIGHED_AT_ONCE])
            yield from found

    def _conditions(self, before: str) -> list[sa.ColumnElement[bool]]:
        explained = T.alias()
        open_groups = sa.select(G.c.id).where(G.c.finished_at.is_(None))
        of_pinned = sa.select(G.c.id).where(G.c.trace_id.in_(sa.select(explained.c.id).where(pinned(explained))))
        return [
            T.c.server_id == self._home.server_id,
            T.c.status.in_(TERMINAL),
            sa.func.coalesce(T.c.finished_at, T.c.created_at) < before,
            ~pinned(T),
            T.c.group_id.is_(None) | (T.c.group_id.not_in(open_groups) & T.c.group_id.not_in(of_pinned)),
        ]

    def _delete(self, ids: Sequence[str]) -> int:
        """Delete those traces that still may go; returns their number."""
        deleted = 0
        for at in range(0, len(ids), DELETED_AT_ONCE):
            some = ids[at : at + DELETED_AT_ONCE]
            gone = self._db.change(functools.partial(self._remove, ids=some))
            for trace_id in gone:
                self._partials.delete(trace_id)
                self.forget(trace_id)
            deleted += len(gone)
        return deleted

    def _remove(self, connection: Connection, ids: Sequence[str]) -> list[str]:
        still = [T.c.id.in_(ids), *self._conditions(database.clock.before(RESTS))]
        rows = connection.execute(sa.select(T.c.id, T.c.group_id).where(*still)).all()
        gone = [row.id for row in rows]
        connection.execute(sa.delete(T).where(T.c.id.in_(gone)))
        for trace_id in gone:
            idempotency.forget(connection, trace_id)
            self._partials.drop(connection, trace_id)
        groups = {row.group_id for row in rows} - {None}
        left = sa.exists().where(T.c.group_id == G.c.id).correlate(G)
        connection.execute(sa.delete(G).where(G.c.id.in_(groups), G.c.finished_at.is_not(None), ~left))
        return gone


class _Plan:
    """Traces to delete and what that frees; an image is free once all traces that show it are planned."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.bytes = 0
        self.num_images = 0
        self._left: dict[str, int] = {}  # how many other traces show an image

    def take(self, weights: Iterator[_Weight], *, enough: int | None = None) -> None:
        """Plan traces until `enough` bytes are free."""
        for one in weights:
            if enough is not None and self.bytes >= enough:
                return
            self.ids.append(one.trace_id)
            self.bytes += one.row_bytes
            for image_id, size, num_traces in one.images:
                self._left[image_id] = self._left.get(image_id, num_traces) - 1
                if self._left[image_id] == 0:
                    self.bytes += size
                    self.num_images += 1

    def copy(self) -> _Plan:
        """A plan that may grow by itself."""
        other = _Plan()
        other.become(self)
        return other

    def become(self, other: _Plan) -> None:
        """Take over another plan."""
        self.ids, self.bytes, self.num_images = list(other.ids), other.bytes, other.num_images
        self._left = dict(other._left)


def pinned(t: sa.FromClause) -> sa.ColumnElement[bool]:
    """The condition that somebody has rated, tagged or annotated the trace."""
    tagged = sa.exists().where(tables.trace_tags.c.trace_id == t.c.id).correlate(t)
    return t.c.rating.is_not(None) | (sa.func.coalesce(t.c.note, "") != "") | tagged


def _weigh(connection: Connection, ids: Sequence[str]) -> list[_Weight]:
    """The weights of these traces, in this order."""
    rows: dict[str, int] = dict.fromkeys(ids, 0)
    e, k = tables.events, tables.trace_tokens
    for table, size in (
        (e, sa.func.sum(sa.func.length(e.c.data))),
        (k, sa.func.sum(sa.func.length(k.c.ids) + sa.func.length(k.c.logprobs))),
    ):
        grouped = sa.select(table.c.trace_id, size).where(table.c.trace_id.in_(ids)).group_by(table.c.trace_id)
        for trace_id, num_bytes in connection.execute(grouped):
            rows[trace_id] += int(num_bytes)
    others = L.alias()
    num_traces = sa.select(sa.func.count()).where(others.c.image_id == L.c.image_id).correlate(L).scalar_subquery()
    shown = sa.select(L.c.trace_id, L.c.image_id, tables.images.c.bytes, num_traces)
    shown = shown.join(tables.images, tables.images.c.id == L.c.image_id).where(L.c.trace_id.in_(ids))
    images: dict[str, list[tuple[str, int, int]]] = {}
    for trace_id, image_id, num_bytes, count in connection.execute(shown):
        images.setdefault(trace_id, []).append((image_id, num_bytes, count))
    return [_Weight(trace_id, rows[trace_id], tuple(images.get(trace_id, ()))) for trace_id in ids]


def _report(pruned: Pruned) -> None:
    if pruned.traces:
        words = "pruned %d traces: %d images and %d bytes are free"
        log.info(words, pruned.traces, pruned.images, pruned.bytes, extra={"fields": vars(pruned)})
    if pruned.over_bytes:
        words = "the home holds %d bytes above OMNI_R1_HOME_MAX_GB, and its old traces are not what fills it"
        log.warning(words, pruned.over_bytes, extra={"fields": vars(pruned)})


# ---- sizes


def measure(home: Path, db: Database) -> dict[Kind, int]:
    """Bytes by kind. A file with several names counts once: a checkpoint shares the training state with its job."""
    found: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    seen: set[tuple[int, int]] = set()
    for kind, entry in _files(home):
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:  # deleted meanwhile
            continue
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        found[kind] += status.st_size
    found["database"] = db.size().bytes
    return found


def _files(home: Path) -> Iterator[tuple[Kind, os.DirEntry[str]]]:
    for entry in _entries(home):
        kind = _FOLDERS.get(entry.name, "other")
        if not entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith("omni-r1.db"):
                yield "other", entry
        elif kind == "jobs":
            for job in _entries(Path(entry)):
                for inner in _below(job):
                    is_weights = Path(inner).relative_to(job).parts[:1] == ("checkpoints",)
                    yield "checkpoints" if is_weights else "jobs", inner
        else:
            for inner in _below(entry):
                yield kind, inner


def _below(entry: os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    """The files in a folder, however deep, or the file itself; links are files."""
    if not entry.is_dir(follow_symlinks=False):
        yield entry
        return
    for inner in _entries(Path(entry)):
        yield from _below(inner)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:  # missing, or deleted meanwhile
        return []
