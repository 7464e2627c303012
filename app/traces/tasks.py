"""The procedural world in the API: tasks on demand, and the checkers' verdict on a trace.

Blocking (a task takes milliseconds): call from threads. Imports the world on first use.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from app.contract.problems import field_problem
from app.contract.words import MAX_SEED
from app.storage.images import ImageStore, StoredImage

if TYPE_CHECKING:
    from training.world.task import Task


@dataclass(frozen=True)
class Verdict:
    """The checkers' result: the answer, and how many of the reference's drawings are right."""

    answer: str
    drawings_right: int
    drawings_total: int
    drawings: tuple[bool | None, ...] = ()  # of each step; None without a drawing


class TaskWorld:
    """Makes tasks, stores their images, judges traces."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    def draw(self, slice_: str | None, seed: int | None, level: str = "normal") -> Task:
        """The task of slice, seed and level; absent ones are random, the seed from the evaluation range."""
        from training.world.world import EVAL_SEED_MIN, SLICES, make_task, parse_level

        slice_ = slice_ or secrets.choice(SLICES)
        if seed is None:
            seed = EVAL_SEED_MIN + secrets.randbelow(MAX_SEED - EVAL_SEED_MIN + 1)
        return make_task(slice_, seed, level=parse_level(level))

    def as_json(self, task: Task, *, reveal: bool) -> dict[str, Any]:
        """The API's JSON of a task, after storing its images."""
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
        """The task `task_id`, if the request has its question and image; raises :class:`Problem`."""
        from training.world.world import task_of_id

        try:
            task = task_of_id(task_id)
        except ValueError:
            raise field_problem("task_mismatch", "body.task_id", "no task has this id") from None
        if question.strip() != task.question.strip():
            raise field_problem("task_mismatch", "body.task_id", "the question is not the task's question")
        if [image.image_id for image in images] != [self._images.put_image(task.image).image_id]:
            raise field_problem("task_mismatch", "body.task_id", "the image is not the task's image")
        return task

    def reference(self, task_id: str, step: int) -> Image.Image | None:
        """The reference image of a step; None beyond the task's steps."""
        from training.world.world import task_of_id

        steps = task_of_id(task_id).steps
        return steps[step - 1].image if step <= len(steps) else None

    def other(self, task_id: str, step: int) -> Image.Image | None:
        """The reference image of the same step of another task of the same family; None if no other has this step."""
        from training.world.world import other_task, task_of_id

        other = other_task(task_of_id(task_id), step)
        return None if other is None else other.steps[step - 1].image

    def judge(self, task_id: str, answer: str | None, seen: bytes | None, drawn: Sequence[bytes | None]) -> Verdict:
        """The verdict on a finished trace, as in the evaluation.

        Args:
            task_id: the task of the trace.
            answer: the trace's answer.
            seen: PNG of the question's image as the model saw it, decoded from its codes; None without drawings.
            drawn: PNG of each step's functional image, None for a step without one.
        """
        from training.scoring.grading import is_right
        from training.world.checkers import drawing_verdicts, judge_drawings
        from training.world.world import task_of_id

        task = task_of_id(task_id)
        right, total, each = 0, len(task.steps), list[bool | None]()
        if seen is not None:
            before, images = _open(seen), [None if png is None else _open(png) for png in drawn]
            right, total = judge_drawings(task, before, images)
            each = drawing_verdicts(task, before, images)
        return Verdict("right" if is_right(answer, task.answer) else "wrong", right, total, tuple(each))


def _open(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
        return opened.convert("RGB")


def skill_of(text: str, task_id: str | None, step: int) -> str | None:
    """The skill of a step: named by its text, else by the task's chain, else None."""
    from training.skills import skill_of_text

    skill = skill_of_text(text)
    if skill is None and task_id is not None:
        from training.world.world import task_of_id

        steps = task_of_id(task_id).steps
        skill = steps[step - 1].skill if step <= len(steps) else None
    return skill
