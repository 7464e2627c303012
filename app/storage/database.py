"""Connections and migrations: one synchronous SQLAlchemy layer over SQLite or PostgreSQL.

``db.read()`` yields a snapshot, ``db.write()`` a transaction that holds the write lock from its first statement (the
drivers' own transactions lose updates). Both belong in threads of :mod:`app.common.pools`, never on the event loop.
Knows no HTTP and no trace logic; :mod:`app.storage.dialects` holds the differences between the two databases.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.common.clock import Clock
from app.storage.dialects import BUSY_TIMEOUT_S, WRITE, DatabaseUnusable, Hear, Size, dialect_of
from app.storage.home import Reserve
from app.storage.tables import facts
from training.jobs.disk import is_full

T = TypeVar("T")

# The latest migration; `migrate()` skips Alembic when the database is up to date.
HEAD = "0013"
MIGRATIONS = Path(__file__).parent / "migrations"

# Facts about a database that a copy must not have: its id, and by server the store that has, or gets, all files.
DATABASE_ID, STORE_OF = "database", "store:"

clock = Clock()


class DatabaseTooNew(DatabaseUnusable):
    """The database was written by a newer version of this program."""


def now() -> str:
    """The current time in the API's format: RFC 3339, UTC, milliseconds."""
    return clock.now()


def not_before(moment: str, *columns: sa.ColumnElement[str | None]) -> sa.ColumnElement[str]:
    """`moment` or the latest of the columns, whichever is later: the clock may have been set back."""
    latest: sa.ColumnElement[str] = sa.literal(moment)
    for column in columns:
        latest = sa.case((column > latest, column), else_=latest)
    return latest


class Database:
    """Connections to one database; the constructor opens nothing."""

    def __init__(self, url: str, reserve: Reserve | None = None) -> None:
        """`reserve` is disk space for :meth:`change` on a full disk."""
        self._reserve = reserve
        self._dialect = dialect_of(url)
        self._write_lock = threading.Lock()
        self._engine = self._dialect.engine
        self.place = self._dialect.place  # contains no password

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection in a read transaction: a consistent snapshot that never blocks writers."""
        self._dialect.check_there()
        with self._dialect.readers.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection in a write transaction; commits at the end, rolls back on an error.

        Threads of this process queue on a lock in memory: SQLite's busy handler polls, and a thread that waits in
        PostgreSQL holds a connection.
        """
        self._dialect.check_there()
        if not self._write_lock.acquire(timeout=2 * BUSY_TIMEOUT_S):
            raise sa.exc.OperationalError("BEGIN IMMEDIATE", None, TimeoutError("the write lock is held"))
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(**WRITE)
                with connection.begin():
                    yield connection
        finally:
            self._write_lock.release()

    def change(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction that succeeds even on a full disk, by using the reserve.

        For changes that free or finish something. `work` may be called twice.
        """
        try:
            with self.write() as connection:
                return work(connection)
        except Exception as error:
            if self._reserve is None or not is_full(error) or not self._reserve.release():
                raise
        with self.write() as connection:
            return work(connection)

    def ping(self) -> None:
        """Raise unless the database answers."""
        with self.read() as connection:
            connection.execute(sa.text("SELECT 1"))

    def size(self) -> Size:
        """How large the database is."""
        with self.read() as connection:
            return self._dialect.size(connection)

    def listen(self, hear: Hear, closing: threading.Event) -> None:
        """Call `hear` with the ids of logs to which servers append, until `closing` is set; blocking.

        Returns at once if servers cannot share the database; raises its error if it is lost.
        """
        self._dialect.listen(hear, closing)

    def is_current(self) -> bool:
        """Whether the schema is that of this program."""
        with self._engine.connect() as connection:
            return _version(connection) == HEAD

    def migrate(self, home: Path | None = None) -> None:
        """Upgrade the schema to `HEAD`; raises :class:`DatabaseTooNew` for a newer schema.

        Paths in older rows become relative to `home`. Servers that share a database migrate one at a time.
        """
        with self._engine.connect() as connection:
            self._dialect.check(connection)
            version = _version(connection)
        if version != HEAD:
            with self._engine.connect() as connection:
                connection.detach()  # never returned to the pool with its long timeouts
                self._dialect.be_patient(connection)
                connection.commit()
                with connection.execution_options(**WRITE).begin():
                    self._upgrade(connection, home)
        self._dialect.migrated()

    def _upgrade(self, connection: Connection, home: Path | None) -> None:
        version = _version(connection)
        if version == HEAD:
            return  # another server has migrated it
        known = {path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}
        if version is not None and version not in known:
            raise DatabaseTooNew(
                f"{self.place} was written by a newer version of this program (schema {version}, known: "
                f"{HEAD}); update the program or choose another OMNI_R1_HOME or OMNI_R1_DATABASE_URL"
            )
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        config.attributes["home"] = home
        command.upgrade(config, "head")

    def close(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()


def _version(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return found


def get_fact(connection: Connection, name: str) -> str | None:
    """The value stored under `name`, or None."""
    return connection.execute(sa.select(facts.c.value).where(facts.c.name == name)).scalar()


def set_fact(connection: Connection, name: str, value: str) -> None:
    """Store `value` under `name`."""
    if connection.execute(sa.update(facts).where(facts.c.name == name).values(value=value)).rowcount == 0:
        connection.execute(sa.insert(facts).values(name=name, value=value))


def database_id(connection: Connection) -> str:
    """The id of this database, made at the first call; needs a write transaction."""
    known = get_fact(connection, DATABASE_ID)
    if known is None:
        known = uuid.uuid4().hex
        set_fact(connection, DATABASE_ID, known)
    return known
