"""The job that goes on from a finished one: its specification, and how its result differs from one longer run.

Blocking; knows no HTTP: errors are :class:`app.contract.problems.Problem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.contract.problems import Problem, field_problem
from app.contract.schemas_jobs import JobContinue
from training.jobs.schedules import make_schedule
from training.spec.spec import AnySpec, PeRPOSpec, PeSFTSpec, parse_spec


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
