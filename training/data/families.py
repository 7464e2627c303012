"""Task families of your own: found by entry point, checked against themselves, turned into tasks like the world's.

A family is an object, or a class without arguments, of the entry-point group ``omni_r1.tasks``:

    class Dots:
        description = "count the dots"

        def make(self, seed: int) -> OwnTask: ...
        def check(self, task: OwnTask, step: int, before: Image, drawn: Image) -> bool: ...

``make`` is a pure function of the seed. ``check`` judges the drawing of a step (from 1) on the image before it, as the
model sees it; a step may have one of the world's targets instead (:mod:`training.world.task`). Nothing is installed
into the world: seeds of its slices keep their tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from PIL import Image

from training.data.rows import DataError
from training.entry_points import TASKS, installed
from training.spec.spec import TasksData
from training.world.checkers import check_step, sized
from training.world.task import SIZE, OwnTarget, Step, Target, Task
from training.world.world import SLICES

CALIBRATED = 32  # first tasks of a job that are checked
MAX_STEPS = 32


@dataclass(frozen=True)
class OwnStep:
    """A step of the reference: its text, the image that it draws, and in words what that shows.

    With a ``target`` of the world (a box, a mark, a line, a zoom), its checker judges the drawing, else ``check``.
    """

    text: str
    image: Image.Image
    state: str = ""
    target: Target | None = None


@dataclass(frozen=True)
class OwnTask:
    """A question about an image of 64 x 64 pixels, its answer, and the steps that lead there.

    Without steps there is nothing to train PeSFT on and no drawing to judge; PeRPO and benchmarks grade the answer.
    """

    question: str
    image: Image.Image
    answer: str
    steps: tuple[OwnStep, ...] = field(default=())
    choices: tuple[str, ...] = field(default=())


class TaskFamily(Protocol):
    """What an entry point gives."""

    description: str

    def make(self, seed: int) -> OwnTask:
        """The task of this seed, always the same."""
        ...

    def check(self, task: OwnTask, step: int, before: Image.Image, drawn: Image.Image) -> bool:
        """Whether `drawn` is the right drawing of the step (from 1) on `before`; both are RGB of 64 x 64 pixels.

        Anything but True and False (or 1 and 0) is an error, like an exception.
        """
        ...


class FamilyError(DataError):
    """The family cannot be used."""


def load_family(name: str) -> TaskFamily:
    """Import a family.

    Raises:
        FamilyError: there is none of this name, or importing it fails.
    """
    point = installed(TASKS).get(name)
    if name in SLICES:
        raise FamilyError(f"{name} is a slice of the world: give the task family another name")
    if point is None:
        known = ", ".join(installed(TASKS)) or "none"
        raise FamilyError(f"no installed package has the task family {name}; installed: {known}")
    try:
        found = point.load()
        family: TaskFamily = found() if isinstance(found, type) else found
        if not (callable(family.make) and callable(family.check)):
            raise TypeError("make and check must be functions")
    except Exception as error:  # whatever the package raises
        raise FamilyError(f"the task family {name} cannot be loaded: {_text(error)}") from error
    return family


def make_own(name: str, family: TaskFamily, seed: int) -> Task:
    """The task of a seed, like a task of the world whose slice and family have this name.

    Raises:
        FamilyError: ``make`` raises, or returns something else.
    """
    try:
        task = family.make(seed)
        steps = tuple(
            Step(
                step.text.strip(),
                "own",
                "",
                sized(step.image.convert("RGB")),
                step.state,
                _target(step) or OwnTarget(partial(_accepts, name, family, task, seed, k)),
            )
            for k, step in enumerate(task.steps, 1)
        )
        image = sized(task.image.convert("RGB"))
        texts = (task.question, task.answer, *(step.text for step in steps), *task.choices)
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("question, answer and the texts of the steps must not be empty")
        if len(steps) > MAX_STEPS:
            raise ValueError(f"{len(steps)} steps; at most {MAX_STEPS} are possible")
    except Exception as error:
        raise FamilyError(f"the task family {name} fails at seed {seed}: {_text(error)}") from error
    return Task(name, name, seed, task.question.strip(), image, steps, task.answer.strip(), choices=task.choices)


def _target(step: OwnStep) -> Target | None:
    if step.target is not None and not isinstance(step.target, Target):
        raise TypeError(f"a step's target is a {type(step.target).__name__}, none of training.world.task")
    return step.target


def _accepts(
    name: str, family: TaskFamily, task: OwnTask, seed: int, k: int, before: Image.Image, drawn: Image.Image
) -> bool:
    try:
        verdict = family.check(task, k, before, drawn)
        if verdict not in (True, False):  # numpy's are equal to them
            raise TypeError(f"it returned {verdict!r}, not True or False")
        return bool(verdict)
    except Exception as error:
        where = f"at seed {seed}, step {k}"
        raise FamilyError(f"the checker of the task family {name} fails {where}: {_text(error)}") from error


def own_tasks(data: TasksData, first: int) -> Iterator[Task]:
    """The tasks of a specification in the order of their seeds, after the calibration.

    Raises:
        FamilyError: see :func:`calibrate` and :func:`make_own`.
    """
    family = open_family(data, first)
    for k in range(data.num_samples):
        yield make_own(data.family, family, first + k)


def open_family(data: TasksData, first: int) -> TaskFamily:
    """Load the family and calibrate it on the first tasks of a job.

    Raises:
        FamilyError: it cannot be used.
    """
    family = load_family(data.family)
    calibrate(data.family, family, range(first, first + min(CALIBRATED, data.num_samples)))
    return family


def calibrate(name: str, family: TaskFamily, seeds: range) -> None:
    """Hold a family against itself: equal seeds give equal tasks, references pass, blank and unchanged images fail.

    Raises:
        FamilyError: with the first seed and step that disagree.
    """
    blank = Image.new("RGB", (SIZE, SIZE), "white")
    for seed in seeds:
        task, again = make_own(name, family, seed), make_own(name, family, seed)
        if _facts(task) != _facts(again):
            raise FamilyError(f"the task family {name} makes two different tasks of seed {seed}")
        before = task.image
        for k, step in enumerate(task.steps, 1):
            place = f"at seed {seed}, step {k}"
            if not check_step(task, k, before, step.image):
                raise FamilyError(f"the checker of the task family {name} rejects its own reference {place}")
            for what, image in (("a blank image", blank), ("an unchanged image", before)):
                if image.tobytes() != step.image.tobytes() and check_step(task, k, before, image):
                    raise FamilyError(f"the checker of the task family {name} accepts {what} {place}")
            before = step.image


def _facts(task: Task) -> tuple[object, ...]:
    return (
        task.question,
        task.answer,
        task.choices,
        task.image.tobytes(),
        tuple((step.text, step.state, step.image.tobytes()) for step in task.steps),
    )


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
