"""What an operator does on the server's machine, next to a running server: backup, restore, keys, checks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from app.common.settings import Settings
from app.storage.backup import BackupError, Report, back_up
from app.storage.backup import restore as restore_home
from app.storage.database import Database
from app.storage.dialects import DatabaseUnusable
from app.storage.keys import NAME, Caller, KeyStore, KeyTaken
from app.storage.mirror import why_unusable

__all__ = [
    "NAME",
    "BackupError",
    "Caller",
    "KeyTaken",
    "Report",
    "Unready",
    "backup",
    "key_store",
    "restore_home",
    "store_problem",
]


def backup(settings: Settings, file: Path, *, files_only: bool = False) -> Report:
    """An archive of the settings' home; raises BackupError, OSError. A database in PostgreSQL has its own tools."""
    url = sa.make_url(settings.sqlalchemy_url)
    if files_only:
        return back_up(settings.home, None, file)
    if url.get_backend_name() != "sqlite":
        raise BackupError(
            "the database is PostgreSQL: dump it with pg_dump, and give --files-only for the home's files"
        )
    return back_up(settings.home, Path(url.database or ""), file)


class Unready(RuntimeError):
    """The database is not that of a server of this version; the message is one line."""


@contextlib.contextmanager
def key_store(settings: Settings) -> Iterator[KeyStore]:
    """The keys in the settings' database; raises Unready, and the database's own errors."""
    url = sa.make_url(settings.sqlalchemy_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise Unready(f"{url.database} is missing: start the server once, which makes it")
    try:
        db = Database(settings.sqlalchemy_url)
    except DatabaseUnusable as error:
        raise Unready(str(error)) from None
    try:
        if not db.is_current():
            raise Unready(f"{db.place} has another schema than this version: start this version's server once")
        yield KeyStore(db)
    except sa.exc.OperationalError as error:
        raise Unready(str(error.orig or error).strip().splitlines()[0]) from None
    finally:
        db.close()


def store_problem(settings: Settings) -> str | None:
    """Why a server cannot use the settings' object store, in one line; None if it can. Takes seconds."""
    assert settings.store is not None
    url = sa.make_url(settings.sqlalchemy_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        return why_unusable(settings.store, None)
    db = Database(settings.sqlalchemy_url)
    try:
        return why_unusable(settings.store, db)
    except sa.exc.SQLAlchemyError:
        return "not looked at: the database, which says whose it is, cannot be read"
    finally:
        db.close()
