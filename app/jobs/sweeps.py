"""Sweeps: one job for each combination of a grid over a specification, created together.

The jobs are ordinary ones. They queue, and one that a server's end interrupts goes on when the server is back
(`app.jobs.store`). Knows no HTTP: errors are :class:`app.contract.problems.Problem`.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from app.common import pools
from app.contract.problems import Problem, field_problem
from app.contract.schemas_jobs import MAX_JOB_NAME, SweepCreate
from app.contract.words import JOB_TERMINAL
from app.jobs.intake import RESUMABLE
from app.jobs.service import JobService
from app.storage import tables
from app.storage.database import Database, now
from app.storage.home import Home
from app.storage.idempotency import Claim
from app.storage.ids import SortableIds
from training.spec.spec import AnySpec, parse_spec

MOST_JOBS = 100
W, J = tables.sweeps, tables.jobs

SweepIds = functools.partial(SortableIds, "sw_")


class Sweeps:
    """The sweeps of all servers on the database."""

    def __init__(self, db: Database, home: Home, jobs: JobService) -> None:
        self._db = db
        self._home = home
        self._jobs = jobs
        self._ids = SweepIds()

    async def create(self, wanted: SweepCreate, claim: Claim) -> dict[str, Any]:
        """Validate every combination and queue their jobs, all or none; returns the sweep with them."""
        sweep_id = self._ids.new()
        specs = await pools.intake.run(lambda: list(combinations(wanted)))
        row = {"id": sweep_id, "name": wanted.name, "spec": wanted.spec, "grid": wanted.grid, "created_at": None}
        made: dict[str, Any] = {}

        def store_too(connection: Connection, jobs: list[dict[str, Any]]) -> None:
            values = {**row, "server_id": self._home.server_id, "created_at": now()}
            connection.execute(sa.insert(W).values(**values))
            stored = connection.execute(sa.select(W).where(W.c.id == sweep_id)).one()
            made.update(_shown(stored, jobs))
            claim.store(connection, sweep_id, made, status=202)

        columns = [(spec, {"sweep_id": sweep_id, "sweep_values": values}) for spec, values in specs]
        await self._jobs.create_all(columns, store_too)
        return made

    def page(self, *, limit: int, after: str | None = None) -> tuple[list[dict[str, Any]], bool]:
        """A page of sweeps without their jobs, newest first, and whether more follow; blocking."""
        query = sa.select(W).order_by(W.c.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(W.c.id < after)
        with self._db.read() as connection:
            rows = connection.execute(query).all()
            counted = sa.select(J.c.sweep_id, J.c.status).where(J.c.sweep_id.in_([row.id for row in rows]))
            found: dict[str, Counter[str]] = {}
            for sweep_id, status in connection.execute(counted):
                found.setdefault(sweep_id, Counter())[status] += 1
        return [_entry(row, found.get(row.id, Counter())) for row in rows[:limit]], len(rows) > limit

    async def get(self, sweep_id: str) -> dict[str, Any]:
        """The sweep with its jobs, oldest first; 404 if unknown."""
        return await pools.reads.run(self._whole, sweep_id)

    def _whole(self, sweep_id: str) -> dict[str, Any]:
        with self._db.read() as connection:
            row = connection.execute(sa.select(W).where(W.c.id == sweep_id)).one_or_none()
        if row is None:
            raise Problem("sweep_not_found", "no sweep has this id; GET /v1/sweeps lists them")
        jobs, _ = self._jobs.page(limit=MOST_JOBS, sweep_id=sweep_id)
        return _shown(row, jobs[::-1])

    async def cancel(self, sweep_id: str) -> dict[str, Any]:
        """Stop the jobs that have not ended; returns the sweep."""
        for job in (await self.get(sweep_id))["jobs"][::-1]:  # queued ones first, so that none starts meanwhile
            if job["status"] not in JOB_TERMINAL:
                await self._jobs.cancel(job["id"])
        return await self.get(sweep_id)

    async def resume(self, sweep_id: str) -> dict[str, Any]:
        """Queue the jobs again that ended without success and have saved state; returns the sweep."""
        for job in (await self.get(sweep_id))["jobs"]:
            if job["status"] in RESUMABLE and job["resumable"]:
                await self._jobs.resume(job["id"])
        return await self.get(sweep_id)


def combinations(wanted: SweepCreate) -> Iterator[tuple[AnySpec, dict[str, Any]]]:
    """The specification of each combination, and its values by path.

    Raises:
        Problem: there are too many, or one of them is invalid; the path names the grid's value where it is at fault.
    """
    count = math.prod(map(len, wanted.grid.values()))
    if count > MOST_JOBS:
        raise field_problem("invalid", "body.grid", f"has {count:,} combinations; a sweep has at most {MOST_JOBS}")
    for number, values in enumerate(itertools.product(*wanted.grid.values()), 1):
        chosen = dict(zip(wanted.grid, values, strict=True))
        spec = json.loads(json.dumps(wanted.spec))
        for path, value in chosen.items():
            _put(spec, path, value)
        if count > 1 and spec.get("output_name") and "output_name" not in chosen:
            spec["output_name"] = f"{spec['output_name']}-{number}"
        if "name" not in chosen:
            spec["name"] = _name(wanted.name or spec.get("name"), chosen)
        try:
            yield parse_spec(spec), chosen
        except ValidationError as error:
            raise _invalid(error, chosen) from None


def _put(spec: dict[str, Any], path: str, value: Any) -> None:
    at, *names = spec, *path.split(".")
    for name in names[:-1]:
        at = at.setdefault(name, {})
        if not isinstance(at, dict):
            raise field_problem("invalid", f"body.grid.{path}", f"{name} is no object in the spec")
    at[names[-1]] = value


def _name(given: str | None, chosen: Mapping[str, Any]) -> str:
    values = ", ".join(f"{path.rpartition('.')[2]}={json.dumps(value)}" for path, value in chosen.items())
    return f"{given}: {values}"[:MAX_JOB_NAME] if given else values[:MAX_JOB_NAME]


def _invalid(error: ValidationError, chosen: Mapping[str, Any]) -> Problem:
    """The fault with the path that the request has for it; a combination is named where it matters."""
    first = error.errors()[0]
    methods = ("pesft", "perpo", "zero", "benchmark", "pipeline")
    where = ".".join(str(part) for part in first["loc"] if part not in methods)
    path = next((f"body.grid.{one}" for one in chosen if where == one or where.startswith(f"{one}.")), None)
    values = ", ".join(f"{one}={json.dumps(value)}" for one, value in chosen.items())
    return field_problem("invalid", path or f"body.spec.{where}".rstrip("."), f"{first['msg']} (with {values})")


def _entry(row: Any, counts: Mapping[str, int]) -> dict[str, Any]:
    shown_ = {name: getattr(row, name) for name in ("id", "name", "spec", "grid", "created_at")}
    return shown_ | {"counts": dict(sorted(counts.items()))}


def _shown(row: Any, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    return _entry(row, Counter(job["status"] for job in jobs)) | {"jobs": jobs}
