"""Questions of a benchmark, one at a time: tasks of the world, or questions of files.

Read again for every checkpoint, so that a thousand large images are never in memory together. Knows no checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from training.data.families import own_tasks
from training.data.questions import QuestionFiles, read_questions
from training.data.rows import Rejection
from training.data.traces import SampleImage
from training.spec.spec import TasksData, UniTasksData
from training.world.task import Task
from training.world.world import EVAL_SEED_MIN, SLICES, make_task


@dataclass(frozen=True)
class Item:
    """A question for every checkpoint.

    ``task`` is set if the right drawings are known; ``exact``: the answer must equal the reference literally.
    """

    item_id: str
    slice: str
    group: str | None
    question: str
    images: tuple[SampleImage, ...]
    reference: str
    choices: tuple[str, ...] = ()
    task: Task | None = None
    exact: bool = False


def read_items(
    data: UniTasksData | TasksData | QuestionFiles, image_size: int | None = None
) -> Iterator[Item | Rejection]:
    """Read the questions of a specification, always in the same order.

    Args:
        data: the part of the specification.
        image_size: pixels a side of the model that the images are for.

    Raises:
        training.data.rows.DataError: no known data was found.
    """
    if isinstance(data, UniTasksData):
        first, slices = first_seed(data), data.slices or SLICES
        for i in range(data.num_samples):
            t = make_task(slices[i % len(slices)], first + i, level=data.level)
            yield Item(t.task_id, t.slice, t.family, t.question, (t.image,), t.answer, t.choices, t, exact=True)
        return
    if isinstance(data, TasksData):
        for t in own_tasks(data, first_seed(data)):
            known = t if t.steps else None
            yield Item(t.task_id, t.slice, None, t.question, (t.image,), t.answer, t.choices, known, exact=True)
        return
    for number, found in enumerate(islice(read_questions(data, image_size), data.num_samples)):
        if isinstance(found, Rejection):
            yield found
            continue
        group = found.source if found.source != found.slice else None
        yield Item(
            item_id=found.question_id or f"question-{number}",
            slice=found.slice or "all",
            group=group,
            question=found.text,
            images=found.images,
            reference=found.answer,
            choices=found.choices,
        )


def first_seed(data: UniTasksData | TasksData) -> int:
    """The first seed: of the evaluation range by default."""
    return EVAL_SEED_MIN if data.first_seed is None else data.first_seed
