"""Failures of database and disk as problems."""

from __future__ import annotations

import errno

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.common.pools import TooSlow
from app.contract.problems import Problem

_FULL = ("disk is full", "No space left on device")  # the wording of SQLite and PostgreSQL


def from_storage(error: BaseException) -> Problem | None:
    """The problem for a database or disk failure; None for any other error."""
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(said in text for said in _FULL):
            return Problem("disk_full", "no space left on the disk; free some and try again; nothing was lost")
        gone = isinstance(cause, TooSlow) and cause.waits_for == "database"
        lost = isinstance(cause, DBAPIError) and cause.connection_invalidated
        if lost or gone or isinstance(cause, OperationalError | DatabaseGone | PoolTimeout):
            return Problem(
                "database_unavailable",
                "the database is locked or unavailable; see the server's log, then try again",
                headers={"Retry-After": "2"},
            )
        if isinstance(cause, TooSlow) and cause.waits_for == "disk":
            detail = "the server's disk did not respond in time; try again"
            return Problem("storage_unavailable", detail, headers={"Retry-After": "10"})
        cause = cause.__cause__ or cause.__context__
    return None


class DatabaseGone(RuntimeError):
    """The database file was removed or replaced while the server ran."""
