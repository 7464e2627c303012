"""Named keys with roles and limits: the table, and the caller of the request that runs.

A key is random, 256 bits; the table holds its SHA-256. Blocking, apart from `caller` and `require`; knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.common.clock import stamp
from app.contract.problems import Problem
from app.contract.words import ROLES, Role
from app.storage import database, tables
from app.storage.database import Database, now

K, T, J, S = tables.api_keys, tables.traces, tables.jobs, tables.key_spent
NAME = r"[a-z0-9][a-z0-9-]{0,39}"
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
USED_EVERY = timedelta(minutes=1)  # `last_used_at` is written at most this often


class KeyTaken(ValueError):
    """The name is in use."""


@dataclass(frozen=True)
class Caller:
    """The holder of a key; `name` is None for OMNI_R1_API_KEY. A limit of None is no limit."""

    name: str | None
    role: Role
    traces_per_minute: int | None = None
    running: int | None = None  # traces that are queued or running
    job_minutes: int | None = None  # of jobs, in 24 hours

    def may(self, role: Role) -> bool:
        """Whether this role includes that one."""
        return ROLES.index(self.role) >= ROLES.index(role)


# Of the request that runs. Without one everything is allowed: on a server without keys, and for its own work.
caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def require(role: Role) -> None:
    """403 unless the caller's role includes this one."""
    who = caller.get()
    if who is not None and not who.may(role):
        detail = f"this needs a key with the role {role}; yours has the role {who.role}"
        raise Problem("role_missing", detail, members={"role": role})


def key_name() -> str | None:
    """The name of the caller's key, for rows that count for its limits."""
    who = caller.get()
    return None if who is None else who.name


@dataclass(frozen=True)
class StoredKey:
    """A key without its secret."""

    caller: Caller
    digest: str
    created_at: str
    last_used_at: str | None

    @property
    def id(self) -> str:
        """What a session refers to: another key of the same name does not inherit it."""
        return self.digest[:16]

    def as_json(self) -> dict[str, Any]:
        """What a list shows: everything but the digest."""
        return {**asdict(self.caller), "created_at": self.created_at, "last_used_at": self.last_used_at}


def digest_of(secret: bytes) -> str:
    """What the table holds of a key; a random key needs no slow hash."""
    return hashlib.sha256(secret).hexdigest()


def find(keys: Iterable[StoredKey], secret: bytes) -> StoredKey | None:
    """The key with this secret, compared in constant time."""
    given, found = digest_of(secret), None
    for key in keys:
        if hmac.compare_digest(key.digest, given):
            found = key
    return found


class KeyStore:
    """The table of keys."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, holder: Caller) -> str:
        """Store a new key; returns its secret, which nobody can read again. Raises KeyTaken."""
        secret = f"omni_{secrets.token_urlsafe(32)}"
        row = {**asdict(holder), "digest": digest_of(secret.encode()), "created_at": now()}
        with self._db.write() as connection:
            if connection.execute(sa.select(K.c.name).where(K.c.name == holder.name)).first() is not None:
                raise KeyTaken(f"a key is called {holder.name} already: revoke it, or choose another name")
            connection.execute(sa.insert(K).values(**row))
        return secret

    def all(self) -> list[StoredKey]:
        """All keys, by name."""
        names = [column for column in K.c if column.name in Caller.__dataclass_fields__]
        with self._db.read() as connection:
            rows = connection.execute(sa.select(K).order_by(K.c.name)).all()
        return [
            StoredKey(
                Caller(**{column.name: getattr(row, column.name) for column in names}),
                row.digest,
                row.created_at,
                row.last_used_at,
            )
            for row in rows
        ]

    def revoke(self, name: str) -> bool:
        """Delete a key; False if there is none of this name. Its traces and jobs stay."""
        with self._db.write() as connection:
            return connection.execute(sa.delete(K).where(K.c.name == name)).rowcount > 0

    def note_use(self, name: str) -> None:
        """Record that the key was used now."""
        with self._db.write() as connection:
            connection.execute(sa.update(K).where(K.c.name == name).values(last_used_at=now()))


# ---- limits, checked in the transaction that creates what they count


def admit_traces(connection: Connection, count: int) -> None:
    """429 if the caller may not start that many more traces now."""
    who = caller.get()
    if who is None:
        return
    mine = T.c.key_name == who.name
    if who.running is not None:
        live = sa.select(sa.func.count()).where(mine, T.c.status.in_(("queued", "running")))
        if (connection.execute(live).scalar() or 0) + count > who.running:
            raise _exceeded(f"your key may have {who.running} traces queued or running", 2)
    if who.traces_per_minute is not None:
        since = database.clock.before(MINUTE)
        made = sa.select(T.c.created_at).where(mine, T.c.created_at > since)
        deleted = sa.select(S.c.made_at).where(S.c.key_name == who.name, S.c.seconds.is_(None), S.c.made_at > since)
        times = sorted(connection.execute(made.union_all(deleted)).scalars())
        excess = len(times) + count - who.traces_per_minute
        if excess > 0:
            wait_s = _seconds_left(times[min(excess, len(times)) - 1], MINUTE) if times else 60
            raise _exceeded(f"your key may start {who.traces_per_minute} traces a minute", wait_s)


def admit_job(connection: Connection) -> None:
    """429 if the jobs of the caller's last 24 hours have taken the minutes that its key has."""
    who = caller.get()
    if who is None or who.job_minutes is None:
        return
    since = database.clock.before(DAY)
    made = sa.select(J.c.created_at, J.c.running_s).where(J.c.key_name == who.name, J.c.created_at > since)
    deleted = sa.select(S.c.made_at, S.c.seconds).where(S.c.key_name == who.name, S.c.made_at > since)
    rows = connection.execute(made.union_all(deleted.where(S.c.seconds.is_not(None)))).all()
    if rows and sum(seconds for _, seconds in rows) >= 60 * who.job_minutes:
        first = min(at for at, _ in rows)
        raise _exceeded(f"your key has {who.job_minutes} minutes of jobs in 24 hours", _seconds_left(first, DAY))


def note_deletion(connection: Connection, id_: str) -> None:
    """Before a trace or job is deleted: it counts on, or who deletes would have no limits."""
    for made, seconds in ((T, sa.null()), (J, J.c.running_s)):
        row = sa.select(made.c.id, made.c.key_name, made.c.created_at, seconds)
        recent = made.c.created_at > database.clock.before(DAY)
        row = row.where(made.c.id == id_, made.c.key_name.is_not(None), recent)
        connection.execute(sa.insert(S).from_select(["id", "key_name", "made_at", "seconds"], row))


def sweep(db: Database) -> None:
    """Forget deleted traces and jobs that count no longer."""
    with db.write() as connection:
        connection.execute(sa.delete(S).where(S.c.made_at < database.clock.before(DAY)))


def _seconds_left(moment: str, span: timedelta) -> int:
    """Whole seconds until that moment is `span` ago, at least 1."""
    before = datetime.fromisoformat(stamp(datetime.fromisoformat(moment).astimezone(UTC) + span))
    return max(1, math.ceil((before - datetime.fromisoformat(now())).total_seconds()))


def _exceeded(detail: str, wait_s: int) -> Problem:
    return Problem("quota_exceeded", detail, headers={"Retry-After": str(wait_s)})
