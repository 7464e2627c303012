"""Interventions: does the answer change when an image is replaced and the model goes on from there?

Every replacement is a branch of the trace that continues greedily; together they are a group, whose `effects` compare
each with the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from app.checkpoints.folder import CheckpointInfo
from app.checkpoints.registry import CheckpointRegistry
from app.common import pools
from app.contract.problems import Problem, field_problem
from app.contract.schemas_branches import BranchCreate
from app.contract.schemas_why import MAX_MEMBERS, InterventionsIn
from app.contract.words import Replacement
from app.storage import tables
from app.storage.database import Database
from app.storage.idempotency import Claim
from app.storage.images import ImageStore
from app.traces.branches import BranchIntake
from app.traces.edits import Parent
from app.traces.intake import Prepared
from app.traces.launch import Launcher
from app.traces.service import TraceService
from app.traces.tasks import TaskWorld

OTHERS = 200  # newest traces among which another one is looked for


class Interventions:
    """Plans interventions and starts them."""

    def __init__(
        self,
        *,
        db: Database,
        traces: TraceService,
        branches: BranchIntake,
        images: ImageStore,
        world: TaskWorld,
        checkpoints: CheckpointRegistry,
        launcher: Launcher,
    ) -> None:
        self._db = db
        self._traces = traces
        self._branches = branches
        self._images = images
        self._world = world
        self._checkpoints = checkpoints
        self._launcher = launcher

    async def start(self, trace_id: str, body: InterventionsIn, *, claim: Claim) -> dict[str, Any]:
        """Start the group; one without possible replacements is complete at once. Returns the group."""
        self._traces.admit()
        parent = await pools.reads.run(self._branches.parent, trace_id)
        steps = _steps(parent, body)
        wanted = [(step, kind) for step in steps for kind in dict.fromkeys(body.with_)]
        if len(wanted) > MAX_MEMBERS:
            detail = f"{len(wanted)} replacements; at most {MAX_MEMBERS} run at once: name fewer steps"
            raise field_problem("invalid", "body.steps", detail)
        row = parent.row
        info, lease = await self._checkpoints.lend_row(row.checkpoint, row.weight_version)
        with lease:
            planned, skipped = await pools.intake.run(self._plan, parent, wanted, info)
            self._traces.admit(len(planned))

            def about(ids: list[str]) -> dict[str, Any]:
                members = [
                    {"trace_id": id_, "step": step, "with": kind}
                    for id_, (step, kind, _) in zip(ids, planned, strict=True)
                ]
                images = {step["index"]: step["image"]["image_id"] for step in parent.steps if step.get("image")}
                plan = {"answer": row.answer, "verdict": row.verdict, "images": images}
                return {"trace_id": row.id, "plan": plan | {"members": members, "skipped": skipped}}

            each = [prepared for _, _, prepared in planned]
            return await self._launcher.start(each, "intervention", lease, background=True, claim=claim, about=about)

    def _plan(
        self, parent: Parent, wanted: list[tuple[int, Replacement]], info: CheckpointInfo
    ) -> tuple[list[tuple[int, Replacement, Prepared]], list[dict[str, Any]]]:
        """The branches that are possible, and why the others are not."""
        planned: list[tuple[int, Replacement, Prepared]] = []
        skipped: list[dict[str, Any]] = []
        for step, kind in wanted:
            try:
                edits = [] if kind == "none" else [{"step": step, "image": self._picture(parent, step, kind)}]
                greedy: dict[str, Any] = {
                    "sampling": {"temperature": 0.0},
                    "mode": "auto",
                    "partial_images": 0,
                    "metadata": {},
                }
                greedy["verify"] = {"candidates": 1}
                body = BranchCreate.model_validate({"after_step": step, "edits": edits, **greedy})
                planned.append((step, kind, self._branches.prepare(parent, body, info)))
            except Problem as problem:
                if problem.code not in ("bad_edit", "prompt_too_long", "image_not_found"):
                    raise
                skipped.append({"step": step, "with": kind, "reason": problem.detail})
        return planned, skipped

    def _picture(self, parent: Parent, step: int, kind: Replacement) -> dict[str, Any]:
        """The image to put into a step, as the body of a branch names it."""
        if kind != "other":
            return {"use": kind}
        if parent.row.task_id is None:
            return self._of_another_trace(parent.row, step, len(parent.steps))
        image = self._world.other(parent.row.task_id, step)
        if image is None:
            raise Problem("bad_edit", f"no other task of this family has a step {step}")
        return {"image_id": self._images.put_image(image).image_id}

    def _of_another_trace(self, row: Row[Any], step: int, num_steps: int) -> dict[str, Any]:
        """The image of the same step of the newest unrelated trace with as many steps."""
        t = tables.traces.c
        query = sa.select(t.id, t.steps, t.root_id).where(t.status == "completed", t.codec == row.codec, t.id != row.id)
        with self._db.read() as connection:
            found = connection.execute(query.order_by(t.id.desc()).limit(OTHERS)).all()
        family = row.root_id or row.id
        for other in found:
            steps = other.steps or []
            if len(steps) == num_steps and steps[step - 1].get("image") and (other.root_id or other.id) != family:
                return {"use": "other", "trace_id": other.id, "step": step}
        raise Problem("bad_edit", f"no other trace has {num_steps} steps with an image at step {step}")


def _steps(parent: Parent, body: InterventionsIn) -> list[int]:
    """The steps whose image is replaced; 422 for one that the trace does not have or that has no image."""
    drawn = [step["index"] for step in parent.steps if step.get("image")]
    if body.steps == "all":
        return drawn
    return list(_checked(body.steps, drawn, len(parent.steps)))


def _checked(steps: list[int], drawn: list[int], count: int) -> Iterator[int]:
    for index, step in enumerate(dict.fromkeys(steps)):
        if step > count:
            raise field_problem("no_such_step", f"body.steps.{index}", f"the trace has {count} complete steps")
        if step not in drawn:
            raise field_problem("no_such_step", f"body.steps.{index}", f"step {step} has no image")
        yield step
