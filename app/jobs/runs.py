"""The workbench over many jobs: names, tags and notes, metrics side by side, jobs that go on from finished ones."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from app.common import pools
from app.contract.problems import Problem, field_problem
from app.contract.schemas_jobs import JobContinue, JobUpdate
from app.jobs import series, shown, store
from app.jobs.service import JobService, no_job
from app.storage import tables
from app.storage.database import Database
from app.storage.idempotency import Claim
from training.jobs.schedules import make_schedule
from training.spec.spec import AnySpec, BenchmarkHyperparameters, PeRPOSpec, PeSFTSpec, parse_spec

J, E = tables.jobs, tables.job_events

MOST_LIKE, ENOUGH_LIKE = 200, 5  # jobs that an estimate looks at, and takes the median of
# Settings that change what a step learns but hardly how long it takes.
COSTLESS = frozenset(
    [
        "steps",
        "epochs",
        "lr",
        "schedule",
        "warmup",
        "floor",
        "betas",
        "weight_decay",
        "clip_norm",
        "save_every",
        "keep_states",
        "log_every",
        "sample_every",
        "show_samples",
        "final",
        "perception_weight",
        "clip_low",
        "clip_high",
        "entropy_coef",
        "advantage_eps",
        "temperature",
        "top_p",
    ]
)
MOST_RESULTS = 1_000  # jobs of the leaderboard
MEASURED = ("tasks", "accuracy", "accuracy_ci95", "drawings_right", "malformed")
UNCOMPARED = frozenset({"batch_size", "compare_with", "interventions", "show_samples"})  # no answer depends on them
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

    def estimate(self, spec: AnySpec) -> dict[str, Any]:
        """How long a job will take here, from the latest finished ones like it on this server; blocking."""
        wanted, steps = spec.resolved(), getattr(spec.hyperparameters, "steps", None)
        query = sa.select(J).where(J.c.method == spec.method, J.c.base_checkpoint == spec.base_checkpoint)
        query = query.where(J.c.status == "succeeded", J.c.server_id == self._jobs.server_id)
        paces: dict[str, tuple[float, float]] = {}
        with self._db.read() as connection:
            for row in connection.execute(query.order_by(J.c.id.desc()).limit(MOST_LIKE)):
                if len(paces) < ENOUGH_LIKE and _cost(row.spec) == _cost(wanted):
                    paces |= _pace(connection, row)
        if not paces or steps is None:
            return {"seconds": None, "steps": steps, "step_s": None, "start_s": None, "job_ids": []}
        step_s, start_s = (statistics.median(column) for column in zip(*paces.values(), strict=True))
        numbers = {"seconds": start_s + steps * step_s, "step_s": step_s, "start_s": start_s}
        return {**{name: round(value, 4) for name, value in numbers.items()}, "steps": steps, "job_ids": list(paces)}

    def leaderboard(self, checkpoint: str | None = None) -> list[dict[str, Any]]:
        """Results of the latest finished benchmarks, newest first, of one checkpoint or of all; blocking."""
        query = sa.select(J).where(J.c.method.in_(("benchmark", "pipeline")), J.c.status == "succeeded")
        with self._db.read() as connection:
            rows = connection.execute(query.order_by(J.c.id.desc()).limit(MOST_RESULTS)).all()
        return [one for row in rows for one in _results(row) if checkpoint in (None, one["checkpoint"])]


def _results(row: Any) -> Iterator[dict[str, Any]]:
    """What a benchmark, or the last stage of a pipeline, measured of each checkpoint."""
    found, spec = row.result or {}, row.spec
    data, hyper = spec.get("data") or {}, spec.get("hyperparameters") or {}
    if row.method == "pipeline":
        found, data, hyper = ((one or {}).get("benchmark") or {} for one in (found.get("stages"), data, hyper))
    default = BenchmarkHyperparameters().model_dump(mode="json")
    settings = {name: value for name, value in hyper.items() if value != default.get(name) and name not in UNCOMPARED}
    for name, measured in (found.get("checkpoints") or {}).items():
        total = (measured.get("summary") or {}).get("all")
        if total:
            numbers = {key: total.get(key) for key in MEASURED}
            about = {"checkpoint": name, "job_id": row.id, "data": data, "settings": settings}
            yield about | numbers | {"finished_at": row.finished_at}


# ---- estimates


def _cost(spec: Mapping[str, Any]) -> Any:
    """What the time of a step depends on, of a specification."""
    hyper = {name: value for name, value in spec["hyperparameters"].items() if name not in COSTLESS}
    return spec["data"].get("source"), spec.get("threads"), spec.get("num_gpus", 1), hyper


def _pace(connection: Connection, row: Any) -> dict[str, tuple[float, float]]:
    """Seconds of a step, and of all before the first one, by the job's id; empty if its log does not tell."""
    of_job = sa.select(E.c.data).where(E.c.job_id == row.id, E.c.type == "metrics")
    ends = [connection.execute(of_job.order_by(order).limit(1)).scalar() for order in (E.c.seq, E.c.seq.desc())]
    if row.attempt != 1 or not all(ends):
        return {}
    first, last = (json.loads(str(data)) for data in ends)
    begun, ended = (datetime.fromisoformat(one["time"]) for one in (first, last))
    passed = (last.get("step") or 0) - (first.get("step") or 0)
    if passed <= 0:
        return {}
    step_s = (ended - begun).total_seconds() / passed
    done = last["step"] - (row.continues or {}).get("steps", 0)
    return {row.id: (step_s, max(0.0, row.running_s - done * step_s))}


# ---- going on from a finished job


def continued(row: Any, tags: Sequence[str], folder: Path, more: JobContinue) -> tuple[AnySpec, dict[str, Any]]:
    """The specification of the job that goes on from `row`, and what is recorded about that.

    Args:
        row: of the finished job.
        tags: of the finished job, which the new one gets.
        folder: of the finished job.
        more: the request.

    Raises:
        Problem: the job has not succeeded, is of another method, stopped early, or has lost its state; or it would
            have too many steps.
    """
    done = _steps(row, folder)
    labels = {"name": row.name if more.name is None else more.name, "tags": list(tags)}
    spec = {**row.spec, **labels, "output_name": more.output_name}
    spec["hyperparameters"] = {**spec["hyperparameters"], "steps": done + more.steps}
    try:
        parsed = parse_spec(spec)
    except ValidationError as error:
        first = error.errors()[0]
        path = "body.steps" if "steps" in first["loc"] else f"body.{'.'.join(map(str, first['loc'][1:]))}"
        raise field_problem("invalid", path, first["msg"]) from None
    return parsed, {"job_id": row.id, "steps": done, "differs": _differences(parsed, done)}


def _steps(row: Any, folder: Path) -> int:
    """The finished steps of a job that can go on."""
    if row.status != "succeeded":
        other = "resume it" if row.status in ("cancelled", "failed", "interrupted") else "wait for its end"
        raise Problem("not_continuable", f"the job is {row.status}: {other}")
    if row.method not in ("pesft", "perpo"):
        raise Problem("not_continuable", f"only pesft and perpo jobs go on, this is a {row.method} job")
    done, planned = (row.result or {}).get("steps"), row.spec["hyperparameters"].get("steps")
    if not isinstance(done, int) or (planned is not None and done < planned):
        raise Problem("not_continuable", "the validation ended the job before its last step; start another run")
    if not (folder / "runs" / row.method / "state.pt").exists():
        raise Problem("not_continuable", "the job's saved state was deleted; start another run from its checkpoint")
    return done


def _differences(spec: AnySpec, done: int) -> list[str]:
    """What one run of as many steps would have done differently; nothing if the result is the same."""
    assert isinstance(spec, PeSFTSpec | PeRPOSpec)
    hyper = spec.hyperparameters
    total, floor = hyper.steps or done, spec.hyperparameters.floor if isinstance(spec, PeSFTSpec) else 0.0
    found = []
    if hyper.schedule != "constant":
        old, new = (make_schedule(hyper.schedule, hyper.lr, n, hyper.warmup, floor=floor) for n in (done, total))
        found.append(
            f"The {hyper.schedule} schedule of {done:,} steps ended at a learning rate of {old.lr(done - 1):.2g}; that "
            f"of {total:,} steps goes on at {new.lr(done):.2g}. One run would not have slowed down in between."
        )
    if isinstance(spec, PeRPOSpec) and spec.hyperparameters.validation is not None:
        every = spec.hyperparameters.validation.every
        if done % every:
            found.append(f"Step {done:,} was validated as the last one; one run validates every {every} steps only.")
    return found
