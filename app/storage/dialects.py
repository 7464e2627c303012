"""Differences between SQLite and PostgreSQL: connections, transactions, column values.

Everything else is shared SQL. In both, a write transaction holds the database's single write lock from its first
statement (``BEGIN IMMEDIATE``; an advisory lock), so its reads stay valid until it commits, and a read transaction sees
one snapshot. Knows no tables.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from app.storage.faults import DatabaseGone

BUSY_TIMEOUT_S = 5.0
LOCK_TIMEOUT_S = 10
# The second timeout frees the write lock of a server that hangs in a transaction.
DEADLINES = {"statement_timeout": 30, "idle_in_transaction_session_timeout": 60}
MIGRATION_LOCK_TIMEOUT_S = 120
CHANNEL = "omni_r1_events"  # of NOTIFY; the payload is a list of log ids
_IDS_A_NOTICE = 200  # PostgreSQL takes up to 8,000 bytes
_HEAR_S = 0.5
# An arbitrary number, identical on all servers: "omni-r1" in ASCII.
WRITE_LOCK = 0x6F6D6E692D7231
_POOL: dict[str, Any] = {"pool_size": 8, "max_overflow": 32, "pool_timeout": 10}
WRITE = {"omni_write": True}


@dataclass(frozen=True)
class Size:
    """Bytes of a database, and how many of them hold data: SQLite keeps the pages of deleted rows for new ones."""

    bytes: int
    used: int


class DatabaseUnusable(RuntimeError):
    """This program cannot use the database; the message is one line with a remedy."""


Hear = Callable[[list[str]], None]


class Dialect(Protocol):
    """One kind of database."""

    place: str
    engine: Engine
    readers: Engine

    def check(self, connection: Connection) -> None:
        """Raise :class:`DatabaseUnusable` for a database that cannot store the data."""

    def be_patient(self, connection: Connection) -> None:
        """Let this connection wait for locks as long as another server's migration may take."""

    def migrated(self) -> None:
        """Called once the schema exists."""

    def check_there(self) -> None:
        """Raise :class:`DatabaseGone` when the database was replaced since it was opened."""

    def size(self, connection: Connection) -> Size:
        """How large the database is."""

    def listen(self, hear: Hear, closing: threading.Event) -> None:
        """Call `hear` with the ids of logs to which servers append, until `closing` is set; blocking."""


class SQLite:
    """A file: one server at a time, many threads."""

    def __init__(self, url: sa.URL) -> None:
        self._path = Path(url.database or "")
        self._inode: int | None = None
        self.place = str(self._path)
        self.engine = sa.create_engine(
            url,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S, "isolation_level": None},
            json_serializer=to_json,
            **_POOL,
        )
        self.readers = self.engine
        event.listen(self.engine, "connect", self._on_connect)
        event.listen(self.engine, "begin", self._on_begin)

    def check(self, connection: Connection) -> None:
        """Every SQLite file can store the data."""

    def be_patient(self, connection: Connection) -> None:
        """Nothing to do: servers do not share a file."""

    def migrated(self) -> None:
        """Remember the file, and let only its owner read it."""
        self._inode = self._path.stat().st_ino
        with contextlib.suppress(PermissionError):  # owned by another user of the group
            self._path.chmod(0o600)

    def check_there(self) -> None:
        """Raise DatabaseGone if the file is not the one that was opened."""
        # A deleted SQLite file that is still open keeps accepting writes, which are lost.
        if self._inode is None:
            return
        try:
            there = os.stat(self._path).st_ino == self._inode
        except OSError:
            there = False
        if not there:
            raise DatabaseGone(f"{self._path} was removed or replaced while the server ran; restart the server")

    def size(self, connection: Connection) -> Size:
        """The file with its log, and the pages that hold data."""
        names = ("page_size", "page_count", "freelist_count")
        page, count, free = (int(connection.exec_driver_sql(f"PRAGMA {name}").scalar() or 0) for name in names)
        files = (self._path, Path(f"{self._path}-wal"), Path(f"{self._path}-shm"))
        return Size(sum(file.stat().st_size for file in files if file.exists()), page * (count - free))

    def listen(self, hear: Hear, closing: threading.Event) -> None:
        """Nothing to hear: servers do not share a file."""

    @staticmethod
    def _on_connect(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        # FULL: events that readers have seen survive a power cut.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @staticmethod
    def _on_begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("omni_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


class PostgreSQL:
    """A database server (psycopg 3), possibly shared by several studio servers with separate homes."""

    def __init__(self, url: sa.URL) -> None:
        if find_spec("psycopg") is None:
            raise DatabaseUnusable("PostgreSQL needs psycopg: pip install 'omni-r1-studio[postgres]'")
        url = url.set(drivername="postgresql+psycopg")
        self.place = url.render_as_string(hide_password=True).replace("+psycopg", "")
        # Detect a lost database within a minute instead of TCP's two hours, and a stalled send within 20 s.
        quick = {
            "connect_timeout": 5,
            "keepalives_idle": 30,
            "keepalives_interval": 5,
            "keepalives_count": 4,
            "tcp_user_timeout": 20_000,
        }
        self._quick = {name: value for name, value in quick.items() if name not in url.query}
        self.engine = sa.create_engine(
            url,
            connect_args=self._quick,
            json_serializer=to_json,
            pool_pre_ping=True,
            **_POOL,
        )
        self.readers: Engine = self.engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        event.listen(self.engine, "connect", self._on_connect)
        event.listen(self.engine, "begin", self._on_begin)

    def check(self, connection: Connection) -> None:
        """Raise DatabaseUnusable unless the encoding is UTF-8."""
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise DatabaseUnusable(
                f"{self.place} holds text as {encoding}; create one with: CREATE DATABASE … ENCODING 'UTF8' "
                "TEMPLATE template0"
            )

    def be_patient(self, connection: Connection) -> None:
        """Lengthen the lock timeout and lift the deadlines of statements."""
        connection.exec_driver_sql(f"SET lock_timeout = '{MIGRATION_LOCK_TIMEOUT_S}s'")
        for name in DEADLINES:
            connection.exec_driver_sql(f"SET {name} = 0")

    def migrated(self) -> None:
        """Nothing to remember: the server looks after its database."""

    def check_there(self) -> None:
        """Nothing to do: statements on a lost database fail by themselves."""

    def size(self, connection: Connection) -> Size:
        """What the server reports; it reuses the space of deleted rows, too, without saying how much that is."""
        found = int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar() or 0)
        return Size(found, found)

    def listen(self, hear: Hear, closing: threading.Event) -> None:
        """Hold a connection of its own for LISTEN. Raises the driver's error when it ends."""
        plain: dict[str, Any] = {"poolclass": sa.NullPool, "pool_reset_on_return": None, "connect_args": self._quick}
        with sa.create_engine(self.engine.url, isolation_level="AUTOCOMMIT", **plain).connect() as connection:
            connection.exec_driver_sql(f"LISTEN {CHANNEL}")
            driver: Any = connection.connection.driver_connection
            while not closing.is_set():
                for notice in driver.notifies(timeout=_HEAR_S):
                    hear(notice.payload.split())

    @staticmethod
    def _on_connect(connection: Any, _record: Any) -> None:
        before, connection.autocommit = connection.autocommit, True
        connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
        for name, seconds in DEADLINES.items():  # unless the database or the URL sets them
            unset = f"SELECT set_config('{name}', '{seconds}s', false) WHERE current_setting('{name}') = '0'"
            connection.execute(unset)
        # Events that readers have seen survive a crash of the database, whatever its configuration.
        sure = (
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.execute(sure)
        connection.autocommit = before

    def _on_begin(self, connection: Connection) -> None:
        if connection.get_execution_options().get("omni_write", False):
            # Released with the transaction. At READ COMMITTED, later statements see the previous holder's commit.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITE_LOCK})")


def dialect_of(url: str) -> Dialect:
    """The dialect for `url`; opens nothing."""
    parsed = sa.make_url(url)
    return PostgreSQL(parsed) if parsed.get_backend_name() == "postgresql" else SQLite(parsed)


def announce(connection: Connection, log_ids: Iterable[str]) -> None:
    """Let the servers on the database hear, after the commit, to which logs this transaction appends."""
    if connection.dialect.name == "postgresql":
        ids = sorted(set(log_ids))
        for at in range(0, len(ids), _IDS_A_NOTICE):
            connection.execute(sa.select(sa.func.pg_notify(CHANNEL, " ".join(ids[at : at + _IDS_A_NOTICE]))))


class Text(TypeDecorator[str]):
    """Text of any length. PostgreSQL cannot store NUL characters: they become U+FFFD."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        """Replace NUL for PostgreSQL."""
        if value is not None and "\0" in value and dialect.name == "postgresql":
            return value.replace("\0", "\ufffd")
        return value


class clock(FunctionElement[float]):  # an SQL function, like those of sa.func
    """The database's time in seconds since the epoch: the only clock that servers on one database share."""

    name = "clock"
    type = sa.Double()
    inherit_cache = True


@compiles(clock, "sqlite")
def _sqlite_clock(_element: clock, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _postgresql_clock(_element: clock, _compiler: Any, **_: Any) -> str:
    # not now(): that is the transaction's start, before the wait for the write lock
    return "(extract(epoch from clock_timestamp())::double precision)"


def to_json(value: Any) -> str:
    """JSON for a column; NaN and infinity become null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
