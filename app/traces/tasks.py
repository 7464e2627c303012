"""The procedural world behind the API: tasks on demand, and what their checkers say of a trace.

Blocking (drawing a task takes milliseconds): call from threads. Imports the world on first use.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from app.contract.problems import field_problem
from app.contract.schemas import MAX_SEED
from app.storage.images import ImageStore, StoredImage

if TYPE_CHECKING:
    from training.world.task import Task


@dataclass(frozen=True)
class Verdict:
    """What the checkers say: the answer, and how many of the reference's drawings the trace got right."""

    answer: str
    drawings_right: int
    drawings_total: int


class TaskWorld:
    """Makes tasks, stores their pictures, judges traces."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    def draw(self, slice_: str | None, seed: int | None) -> Task:
        """The task of slice and seed; what is absent is drawn, the seed from the evaluation range."""
        from training.world.world import EVAL_SEED_MIN, SLICES, make_task

        slice_ = slice_ or secrets.choice(SLICES)
        if seed is None:
            seed = EVAL_SEED_MIN + secrets.randbelow(MAX_SEED - EVAL_SEED_MIN + 1)
        return make_task(slice_, seed)

    def as_json(self, task: Task, *, reveal: bool) -> dict[str, Any]:
        """The task as the contract shows it; its pictures are stored first."""
        image = self._images.put_image(task.image)
        shown: dict[str, Any] = {
            "task_id": task.task_id,
            "slice": task.slice,
            "family": task.family,
            "seed": task.seed,
            "question": task.question,
            "image_id": image.image_id,
            "image": image.as_json(),
        }
        if reveal:
            shown["answer"] = task.answer
            shown["steps"] = [
                {
                    "index": index,
                    "text": step.text,
                    "skill": step.skill,
                    "action": step.action,
                    "image": self._images.put_image(step.image).as_json(),
                }
                for index, step in enumerate(task.steps, 1)
            ]
        return shown

    def of_request(self, task_id: str, question: str, images: Sequence[StoredImage]) -> Task:
        """The task `task_id`, if this request asks its question about its picture; raises :class:`Problem`."""
        from training.world.world import task_of_id

        try:
            task = task_of_id(task_id)
        except ValueError:
            raise field_problem("task_mismatch", "body.task_id", "no task has this id") from None
        if question.strip() != task.question.strip():
            raise field_problem("task_mismatch", "body.task_id", "the question is not that task's question")
        if [image.image_id for image in images] != [self._images.put_image(task.image).image_id]:
            raise field_problem("task_mismatch", "body.task_id", "the picture is not that task's picture")
        return task

    def judge(self, task_id: str, answer: str | None, seen: bytes | None, drawn: Sequence[bytes | None]) -> Verdict:
        """The verdict on a finished trace, the same as the evaluation's.

        Args:
            task_id: the task that was asked.
            answer: the trace's answer.
            seen: PNG of the question's picture as the model saw it, the decode of its codes; None if nothing was drawn.
            drawn: PNG of each step's functional image, None for a step without one.
        """
        from training.scoring.grading import is_right
        from training.world.checkers import judge_drawings
        from training.world.world import task_of_id

        task = task_of_id(task_id)
        right, total = 0, len(task.steps)
        if seen is not None:
            right, total = judge_drawings(task, _open(seen), [None if png is None else _open(png) for png in drawn])
        return Verdict("right" if is_right(answer, task.answer) else "wrong", right, total)


def _open(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
        return opened.convert("RGB")


def skill_of(text: str, task_id: str | None, step: int) -> str | None:
    """The skill a step uses: named by its text, else by the task's chain, else None."""
    from training.skills import skill_of_text

    skill = skill_of_text(text)
    if skill is None and task_id is not None:
        from training.world.world import task_of_id

        steps = task_of_id(task_id).steps
        skill = steps[step - 1].skill if step <= len(steps) else None
    return skill
