"""`Idempotency-Key`: replays the first response for the same key and body, for 24 h per route.

The claim is stored in the transaction that creates the resource; until then the key is held in memory. Two servers on
one database are serialised by that transaction. Knows no HTTP beyond :class:`Problem`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.contract.problems import Problem, field_problem
from app.storage import database, tables
from app.storage.database import Database, now

KEEP = timedelta(hours=24)
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True)
class Claim:
    """The right to create a resource under a key; `store` runs in the creating transaction. A no-op without a key."""

    route: str = ""
    key: str | None = None
    body_hash: str = ""

    def store(self, connection: Connection, resource_id: str, response: dict[str, Any], status: int = 201) -> None:
        """Store the response."""
        if self.key is None:
            return
        table = tables.idempotency
        mine = (table.c.route == self.route) & (table.c.key == self.key)
        fresh = table.c.created_at >= database.clock.before(KEEP)
        if connection.execute(sa.select(table.c.key).where(mine, fresh)).first() is not None:
            raise _in_progress()  # another server on this database came first
        connection.execute(sa.delete(table).where(mine))
        connection.execute(
            sa.insert(table).values(
                route=self.route,
                key=self.key,
                body_hash=self.body_hash,
                status=status,
                resource_id=resource_id,
                response=json.dumps(response),
                created_at=now(),
            )
        )

    def forget(self, connection: Connection) -> None:
        """Delete the stored response: its resource is gone."""
        table = tables.idempotency
        connection.execute(sa.delete(table).where(table.c.route == self.route, table.c.key == self.key))


def forget(connection: Connection, resource_id: str) -> None:
    """Delete the stored response: its resource is gone."""
    connection.execute(sa.delete(tables.idempotency).where(tables.idempotency.c.resource_id == resource_id))


@dataclass(frozen=True)
class Replay:
    """The first response for this key."""

    status: int
    resource_id: str
    response: dict[str, Any]


class IdempotencyKeys:
    """Claims and replays of one server."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._in_flight: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def hold(self, route: str, key: str | None, body: bytes) -> Iterator[Claim]:
        """Hold the key while its request is processed; 409 for a second request meanwhile. On the event loop."""
        if key is None:
            yield Claim()
            return
        if not _KEY.fullmatch(key):
            raise field_problem("invalid", "header.Idempotency-Key", "must be 1 to 128 visible ASCII characters")
        if (route, key) in self._in_flight:
            raise _in_progress()
        self._in_flight.add((route, key))
        try:
            yield Claim(route, key, hashlib.sha256(body).hexdigest())
        finally:
            self._in_flight.discard((route, key))

    def replay(self, claim: Claim) -> Replay | None:
        """The first response, if any; 422 when it was for another body. Blocking."""
        if claim.key is None:
            return None
        table = tables.idempotency
        query = sa.select(table).where(
            table.c.route == claim.route,
            table.c.key == claim.key,
            table.c.created_at >= database.clock.before(KEEP),
        )
        with self._db.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.body_hash != claim.body_hash:
            raise Problem("idempotency_mismatch", "this Idempotency-Key was used with another body; use a new key")
        return Replay(row.status, row.resource_id, json.loads(row.response))

    def sweep(self) -> None:
        """Delete entries older than 24 h; blocking."""
        table = tables.idempotency
        with self._db.write() as connection:
            connection.execute(sa.delete(table).where(table.c.created_at < database.clock.before(KEEP)))


def _in_progress() -> Problem:
    return Problem("request_in_progress", "retry in a second to get its response", headers={"Retry-After": "1"})
