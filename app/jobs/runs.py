"""The workbench over many jobs: names, tags and notes, metrics side by side, jobs that go on from finished ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from app.common import pools
from app.contract.schemas_jobs import JobContinue, JobUpdate
from app.jobs import series, shown, store
from app.jobs.continuing import continued
from app.jobs.service import JobService, no_job
from app.storage.database import Database
from app.storage.idempotency import Claim
from training.spec.spec import AnySpec

MOST_POINTS = 60_000  # of one answer, which keeps it below 2 MB


class Runs:
    """Reads and labels the jobs of all servers on the database."""

    def __init__(self, db: Database, jobs: JobService) -> None:
        self._db = db
        self._jobs = jobs

    async def update(self, job_id: str, change: JobUpdate) -> dict[str, Any]:
        """Set what `change` gives of name, tags and note, in any state of the job; returns the whole job."""
        given = change.model_dump(include=change.model_fields_set)
        return await self._jobs.change(job_id, lambda connection: shown.label(connection, job_id, given))

    async def go_on(self, job_id: str, more: JobContinue, claim: Claim) -> dict[str, Any]:
        """Queue a job that goes on from a finished one, which stays as it is; returns the new job."""
        spec, continues = await pools.reads.run(self._continued, job_id, more)
        return await self._jobs.create(spec, claim, continues=continues)

    def _continued(self, job_id: str, more: JobContinue) -> tuple[AnySpec, dict[str, Any]]:
        with self._db.read() as connection:
            row = store.get_row(connection, job_id)
            if row is None:
                raise no_job()
            self._jobs.require_here(connection, job_id)
            tags = shown.tags_of(connection, [job_id]).get(job_id, [])
        return continued(row, tags, self._jobs.folder(job_id), more)

    def series(
        self, job_ids: Sequence[str], keys: Sequence[str], *, points: int, first: int | None, last: int | None
    ) -> dict[str, Any]:
        """Metrics of several jobs for one chart, at most `points` values of each; blocking."""
        with self._db.read() as connection:
            waiting = series.unfolded(connection, job_ids)
        for job_id in waiting:
            while self._db.change(partial(series.fold, job_id=job_id)):
                pass
        with self._db.read() as connection:
            found, known = series.read(connection, job_ids, keys)
            missing = shown.missing(connection, job_ids)
        points = max(5, min(points, MOST_POINTS // max(1, len(found))))
        return {
            "data": [series.shown(one, first=first, last=last, points=points) for one in found],
            "keys": [{"stage": stage, "key": key} for stage, key in known],
            "points": points,
            "missing": missing,
        }
