"""`Idempotency-Key`: the first answer again for the same key and body, kept 24 h per route.

The claim is written in the transaction that creates; between the arrival of a request and that transaction the key is
held in memory (one server per home; two on one database meet in that transaction). Knows no HTTP beyond the refusals.
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
from app.storage import database as tables
from app.storage.database import Database, now

KEEP = timedelta(hours=24)
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True)
class Claim:
    """The right to create under a key; `store` goes into the transaction that creates. No key: does nothing."""

    route: str = ""
    key: str | None = None
    body_hash: str = ""

    def store(self, connection: Connection, resource_id: str, response: dict[str, Any], status: int = 201) -> None:
        """Keep the answer."""
        if self.key is None:
            return
        table = tables.idempotency
        mine = (table.c.route == self.route) & (table.c.key == self.key)
        fresh = table.c.created_at >= tables.clock.before(KEEP)
        if connection.execute(sa.select(table.c.key).where(mine, fresh)).first() is not None:
            raise _in_progress()  # another server on this database was faster
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
        """Take a stored answer back: what it tells of is gone."""
        table = tables.idempotency
        connection.execute(sa.delete(table).where(table.c.route == self.route, table.c.key == self.key))


@dataclass(frozen=True)
class Replay:
    """The first answer to this key."""

    status: int
    resource_id: str
    response: dict[str, Any]


class IdempotencyKeys:
    """Claims and replays."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._in_flight: set[tuple[str, str]] = set()

    @contextlib.contextmanager
    def hold(self, route: str, key: str | None, body: bytes) -> Iterator[Claim]:
        """Hold the key while its request is being accepted; 409 while another request does. On the event loop."""
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
        """The first answer, if there is one; 422 when it answered another body. Blocking."""
        if claim.key is None:
            return None
        table = tables.idempotency
        query = sa.select(table).where(
            table.c.route == claim.route,
            table.c.key == claim.key,
            table.c.created_at >= tables.clock.before(KEEP),
        )
        with self._db.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.body_hash != claim.body_hash:
            raise Problem("idempotency_mismatch", "this Idempotency-Key was used with another body; take a new key")
        return Replay(row.status, row.resource_id, json.loads(row.response))

    def sweep(self) -> None:
        """Forget what is older than 24 h; blocking."""
        table = tables.idempotency
        with self._db.write() as connection:
            connection.execute(sa.delete(table).where(table.c.created_at < tables.clock.before(KEEP)))


def _in_progress() -> Problem:
    return Problem("request_in_progress", "send it again in a second for its answer", headers={"Retry-After": "1"})
