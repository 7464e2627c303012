"""A home's files in an object store: written here first, uploaded in the background, fetched where they are missing.

The store has the layout of the home: the key of an object is its path there. Without a store nothing is elsewhere, and
`Mirror` does nothing. Methods block, except `run`, `wake` and `status`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.common.pools import Pool
from app.contract.problems import Problem
from app.contract.words import JOB_TERMINAL
from app.storage import outbox, tables
from app.storage.database import DATABASE_ID, STORE_OF, Database, database_id, get_fact, now, set_fact
from app.storage.home import Home, HomeError, move_durably, write_durably
from app.storage.outbox import Task, Waiting
from app.store.bucket import Bucket, NoObject, StoreDown, StoreError
from app.store.layout import send
from app.store.outage import Outage
from app.store.owner import claim, refusal
from app.store.trees import Changed, Damaged, download, download_tree, tree_entries
from app.store.turns import GIVE_UP_S, Turns

log = logging.getLogger("omni_r1.store")

FILES_AT_ONCE, TREES_AT_ONCE = 4, 1
BATCH = 32
IDLE_S, SOON_S, BUSY_S = 1.0, 0.1, 2.0  # looks every IDLE_S, and every SOON_S for BUSY_S after a change
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0


class Mirror:
    """No store: the home has all files."""

    url: str | None = None
    waiting = Waiting()
    failed = 0  # uploads and deletions, since the server started

    def begin(self, db: Database, home: Home) -> None:
        """Before the first request, after migrations."""
        _forget(db, home)

    def put(self, connection: Connection, path: Path) -> None:
        """Upload a file of the home, or a folder of a checkpoint or job, after this transaction."""

    def drop(self, connection: Connection, path: Path, *, folder: bool) -> None:
        """Delete it from the store after this transaction; of a job's folder its checkpoints stay."""

    def fetch(self, path: Path, is_whole: Callable[[bytes], bool]) -> bool:
        """Bring a file that the home lacks; False if there is none. Raises :class:`Problem`."""
        return False

    def fetch_of(self, folder: Path, name: str) -> bool:
        """Bring one file of a folder that is in the store as a whole; raises as `fetch`."""
        return False

    def has_folder(self, path: Path) -> bool:
        """Whether a folder that the home lacks may be in the store."""
        return False

    def fetch_folder(self, path: Path) -> None:
        """Bring it; raises :class:`Problem`."""

    def status(self) -> dict[str, Any] | None:
        """The API's JSON about the store."""
        return None

    @property
    def oldest_s(self) -> float:
        """Seconds that the oldest task has waited."""
        since = self.waiting.since
        moment = datetime.fromisoformat
        return 0.0 if since is None else max(0.0, (moment(now()) - moment(since)).total_seconds())

    @property
    def trouble(self) -> str | None:
        """One line while the store takes nothing."""
        return None

    async def run(self) -> None:
        """Upload and delete until cancelled."""


class StoreUnusable(HomeError):
    """The store cannot be used; the message is one line."""


class StoreMirror(Mirror):
    """The files of one home in the store at `url`."""

    def __init__(self, url: str, db: Database, home: Home) -> None:
        self.url: str = url
        self._db = db
        self._home = home
        self._bucket: Bucket
        self._database_id: str
        self._is_ours = False  # the store, as of the last look
        self._outage = Outage(url)
        self._changed_at = -BUSY_S
        self._turns = Turns(self._outage)
        self._folders: dict[Path, threading.Lock] = {}
        self._guard = threading.Lock()
        self._uploaded = self._deleted = 0
        self._error: dict[str, str] | None = None  # the last one since the server started
        self._noted = set[str]()  # paths of files that cannot be read here
        self._stuck = False

    def begin(self, db: Database, home: Home) -> None:
        """Check that the store can be written and has no other database's files; upload all at this home's first use.

        A home that has used it before starts even if it does not answer now. Raises StoreUnusable.
        """
        with db.write() as connection:
            known = get_fact(connection, _fact(home)) == self.url
            self._database_id = database_id(connection)
        try:
            self._bucket = Bucket(self.url)
            self._bucket.probe()
            self._is_ours = claim(self._bucket, self._database_id)
        except StoreDown as error:
            if not known:
                raise StoreUnusable(f"OMNI_R1_STORE: {error}") from None
            self._outage.fails(error)
        except (StoreError, ValueError) as error:
            raise StoreUnusable(f"OMNI_R1_STORE: {error}") from None
        with db.write() as connection:
            if not known:
                count = outbox.fill(connection, home)
                log.info("%d files and folders of this home will be uploaded to %s", count, self.url)
                set_fact(connection, _fact(home), self.url)
            self.waiting = outbox.waiting(connection, home.server_id)

    # ---- what to do

    def put(self, connection: Connection, path: Path) -> None:
        """As in the base class. Folders outside the home are left where they are."""
        if path.is_relative_to(self._home.path):
            key = self._key(path)
            outbox.put(connection, self._home.server_id, f"{key}/" if path.is_dir() else key)
            self.wake()

    def drop(self, connection: Connection, path: Path, *, folder: bool) -> None:
        """As in the base class."""
        if path.is_relative_to(self._home.path):
            key = self._key(path)
            is_previews = path.is_relative_to(self._home.partials)
            outbox.drop(connection, self._home.server_id, f"{key}/" if folder else key, deep=is_previews)
            self.wake()

    def wake(self) -> None:
        """Look soon: a transaction that is about to end has changed something."""
        self._changed_at = time.monotonic()

    def _key(self, path: Path) -> str:
        return path.relative_to(self._home.path).as_posix()

    # ---- read

    def fetch(self, path: Path, is_whole: Callable[[bytes], bool]) -> bool:
        """As in the base class; a file that its server has yet to upload is no missing one."""
        key = self._key(path)
        try:
            with self._turn():
                data = self._bucket.read(key)
        except NoObject:
            with self._db.read() as connection:
                if outbox.is_waiting(connection, key):
                    raise _unavailable("the file is still on its way to the object store", 5) from None
            return False
        if not is_whole(data):
            log.error("%s in %s is damaged", key, self.url)
            raise _unavailable("the object store's copy of the file is damaged", 60)
        write_durably(path, data)
        return True

    def fetch_of(self, folder: Path, name: str) -> bool:
        """As in the base class."""
        key, path = self._key(folder), folder / name
        try:
            with self._turn():
                entry = next((one for one in tree_entries(self._bucket, key) if one.name == name), None)
                if entry is not None:
                    with self._temporary() as file:
                        download(self._bucket, f"{key}/{name}", file, entry)
                        move_durably(file, path)
        except NoObject:
            return False
        return entry is not None

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A name for a new file or folder, on the home's disk."""
        path = self._home.tmp / f"fetch-{uuid.uuid4().hex}"
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """A turn at the store, whose failures become problems."""
        try:
            with self._turns.one():
                yield
        except NoObject:
            raise
        except Damaged as error:
            log.error("%s", error)
            raise _unavailable("the object store's copy of the file is damaged", 60) from None
        except StoreError:
            raise _unavailable("the object store, which has the file, does not answer", GIVE_UP_S) from None

    def has_folder(self, path: Path) -> bool:
        """As in the base class; contacts nothing."""
        return path.is_relative_to(self._home.path) and not os.path.isdir(path)

    def fetch_folder(self, path: Path) -> None:
        """As in the base class: the whole folder appears at once. One thread fetches it, others wait."""
        key = self._key(path)
        with self._guard:
            lock = self._folders.setdefault(path, threading.Lock())
        with lock:
            if path.is_dir():
                return
            began = time.monotonic()
            try:
                with self._turn(), self._temporary() as temporary:
                    download_tree(self._bucket, key, temporary)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    temporary.rename(path)
            except NoObject:
                raise _unavailable(self._why_missing(f"{key}/"), 10) from None
            log.info("%s was fetched from the store in %.1f s", key, time.monotonic() - began)

    def _why_missing(self, key: str) -> str:
        with self._db.read() as connection:
            if outbox.is_waiting(connection, key):
                return f"{key} is still on its way to the object store"
        return f"{key} is neither in this home nor in the object store"

    # ---- upload

    def status(self) -> dict[str, Any]:
        """As in the base class, as of the last look."""
        return {
            "url": self.url,
            "waiting": self.waiting.tasks,
            "waiting_since": self.waiting.since,
            "uploaded": self._uploaded,
            "deleted": self._deleted,
            "failed": self.failed,
            "last_error": self._error,
        }

    @property
    def trouble(self) -> str | None:
        """As in the base class."""
        count = self.waiting.tasks
        return f"the object store takes nothing: {count} uploads and deletions wait" if self._stuck and count else None

    async def run(self) -> None:
        """As in the base class: files and folders in parallel, so that no checkpoint delays the images."""
        await asyncio.gather(
            self._work(Pool("uploads", threads=FILES_AT_ONCE, deadline_s=None), trees=False),
            self._work(Pool("tree uploads", threads=TREES_AT_ONCE, deadline_s=None), trees=True),
        )

    async def _work(self, pool: Pool, *, trees: bool) -> None:
        lane, pause = "trees" if trees else "files", 0.0
        while True:
            done, found = 0, list[Task]()
            try:
                found = await pool.run(self._look, trees)
                done, failed = await self._round(pool, found, lane)
            except Exception:
                log.exception("the outbox cannot be read")
                failed = True
            if found or failed:
                self._stuck = failed and not done
            if failed and not done:
                pause = min(max(2 * pause, FIRST_PAUSE_S), LONGEST_PAUSE_S)
                await asyncio.sleep(pause)
            else:
                pause = 0.0
                if not done:
                    await asyncio.sleep(SOON_S if time.monotonic() - self._changed_at < BUSY_S else IDLE_S)

    def _look(self, trees: bool) -> list[Task]:
        with self._db.read() as connection:
            self.waiting = outbox.waiting(connection, self._home.server_id)
            return outbox.tasks(connection, self._home.server_id, trees=trees, limit=BATCH)

    async def _round(self, pool: Pool, tasks: list[Task], lane: str) -> tuple[int, bool]:
        """Do the tasks; returns how many are done, and whether one failed."""
        if not tasks:
            self._outage.rests(lane)
            return 0, False
        if not await pool.run(self._may, tasks, lane):
            return 0, True
        ended = await asyncio.gather(*(pool.run(self._try, task, lane) for task in tasks))
        ids = [task.id for task, ok in zip(tasks, ended, strict=True) if ok]
        if ids:
            await pool.run(self._note_done, ids)
        if len(ids) == len(tasks):
            self._outage.works(lane)
        return len(ids), len(ids) < len(tasks)

    def _may(self, tasks: list[Task], lane: str) -> bool:
        """Whether the store is this database's; asked again before anything in it is deleted or replaced."""
        try:
            if not self._is_ours or any(task.drop or task.path.endswith("/") for task in tasks):
                self._is_ours = claim(self._bucket, self._database_id)
        except StoreError as error:
            self._is_ours = self._note_failure(error, lane)
            return False
        return True

    def _note_done(self, ids: list[int]) -> None:
        with self._db.write() as connection:
            outbox.done(connection, ids)
            self.waiting = outbox.waiting(connection, self._home.server_id)

    def _try(self, task: Task, lane: str) -> bool:
        try:
            send(self._bucket, self._home.path, task.path, drop=task.drop)
        except FileNotFoundError:
            log.warning("%s was deleted before it was uploaded to %s", task.path, self.url)
        except Changed as error:
            if self._runs_again(task.path):
                return True  # its next end enters it again
            return self._note_failure(error, lane, task.path)
        except (StoreError, OSError) as error:
            return self._note_failure(error, lane, task.path)
        self._noted.discard(task.path)
        if task.drop:
            self._deleted += 1
        else:
            self._uploaded += 1
        return True

    def _runs_again(self, path: str) -> bool:
        j = tables.jobs
        ended = j.c.status.in_(tuple(JOB_TERMINAL))
        with self._db.read() as connection:
            query = sa.select(j.c.id).where(j.c.id == path.strip("/").rpartition("/")[2], ~ended)
            return connection.execute(query).first() is not None

    def _note_failure(self, error: StoreError | OSError, lane: str, path: str = "") -> bool:
        self.failed += 1
        if isinstance(error, StoreError):
            self._outage.fails(error, lane)
        elif path not in self._noted:
            self._noted.add(path)
            log.warning("%s waits: %s", path, error)
        self._error = {"detail": str(error), "at": now()}
        return False


def why_unusable(url: str, db: Database | None) -> str | None:
    """Why a server on this database, or a new one, cannot use the store, in one line; claims nothing and tries once."""
    if db is None:
        return refusal(url, None)
    with db.read() as connection:
        return refusal(url, get_fact(connection, DATABASE_ID))


def _fact(home: Home) -> str:
    """Name of the fact that holds the URL of the store that has, or will get, all of the home's files."""
    return f"{STORE_OF}{home.server_id}"


def _forget(db: Database, home: Home) -> None:
    """From now on files are made that no store learns about."""
    with db.read() as connection:
        known = get_fact(connection, _fact(home))
    if known:
        with db.write() as connection:
            set_fact(connection, _fact(home), "")


def _unavailable(detail: str, retry_s: float) -> Problem:
    return Problem("storage_unavailable", f"{detail}; try again", headers={"Retry-After": f"{retry_s:g}"})
