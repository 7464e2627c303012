"""Prompts for reinforcement learning: questions with reference answers, without annotated traces.

From the world's tasks (each encoded when used), or from files: the authors' jsonl, saved traces, Zebra-CoT, M3CoT and
Omni-Bench, of which only question, images and answer are used. A run's order is a function of its seed: a new shuffle
every epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Protocol

import numpy as np

from model.images.codes import encode_images
from model.nets.vq import VQModel
from model.text.template import Template
from training.data.questions import Question, QuestionFiles, image_codes, read_questions
from training.data.row_images import SampleError
from training.data.rows import Intake, Rejection, attempted
from training.perpo.difficulty import Difficulty
from training.perpo.rollout import Prompt
from training.spec.spec import UniTasksData
from training.world.task import Level, Task, identity_steps
from training.world.world import (
    FAMILIES,
    RL_SEEDS,
    SLICES,
    TRAINED_GRADES,
    make_task,
    require_training_level,
    require_training_seed,
)

SEEDS_A_RUN = 100_000  # jobs with different seeds see different tasks
ENCODED_AT_ONCE = 64
MARGIN = 32  # tokens by which a question may be longer than the longest known one
VALIDATION_SEEDS = RL_SEEDS[-10_000:]


class PromptSet(Protocol):
    """Prompts by number; `longest` is the length of the longest one, `difficulty` chooses levels if they adapt."""

    longest: int
    difficulty: Difficulty | None

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        """Return the prompts of these numbers."""
        ...

    def hold_out(self, count: int) -> list[Prompt]:
        """Return so many prompts that are never among the others; call before the first :meth:`take`.

        Raises:
            ValueError: too few are left to train on, or a job's seeds reach into those of the validation.
        """
        ...


@dataclass(frozen=True)
class PromptOrder:
    """Order of a run's prompts: a new shuffle of all of them every epoch."""

    count: int
    seed: int

    def __getitem__(self, position: int) -> int:
        return int(_shuffle(self.count, self.seed, position // self.count)[position % self.count])


@cache
def _shuffle(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class TaskPrompts(ABC):
    """Tasks by seed, generated and encoded on use."""

    difficulty: Difficulty | None = None
    longest: int

    def __init__(self, first_seed: int | None, count: int, seed: int, template: Template, vq: VQModel) -> None:
        """Choose the seeds; ``seed`` is the job's.

        Raises:
            ValueError: a seed is kept for evaluation.
        """
        self._first = RL_SEEDS.start + seed % 100 * SEEDS_A_RUN if first_seed is None else first_seed
        self._count, self._template, self._vq = count, template, vq
        require_training_seed(self._first + count - 1)

    @abstractmethod
    def _task(self, number: int) -> Task:
        """The task of a prompt."""

    @abstractmethod
    def _held_out(self, place: int, seed: int) -> Task:
        """A task of the validation."""

    def __len__(self) -> int:
        return self._count

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        """Generate the tasks of these numbers, and encode their images."""
        return self._prompts(numbers, [self._task(number) for number in numbers])

    def hold_out(self, count: int) -> list[Prompt]:
        """Tasks from `VALIDATION_SEEDS`."""
        first, last = self._first, self._first + self._count - 1
        seeds = VALIDATION_SEEDS[:count]
        if first <= seeds[-1] and last >= seeds[0]:
            raise ValueError(
                f"seeds {first:,} to {last:,} reach into those of the validation (from {seeds[0]:,}): "
                "use fewer samples or another first_seed"
            )
        tasks = [self._held_out(place, seed) for place, seed in enumerate(seeds)]
        chunks = [tasks[i : i + ENCODED_AT_ONCE] for i in range(0, count, ENCODED_AT_ONCE)]
        prompts = [prompt for chunk in chunks for prompt in self._prompts(range(len(chunk)), chunk)]
        self.longest = max(self.longest, *(len(prompt.ids) for prompt in prompts))  # the engine answers them, too
        return prompts

    def _longest_of(self, tasks: Sequence[Task]) -> int:
        """A bound on the length of a prompt: the longest of these plus a margin."""
        longest = max(self._template.prompt_len(task.question) for task in tasks)
        return longest + self._template.vocab.tokens_per_image + MARGIN

    def _prompts(self, numbers: Sequence[int], tasks: Sequence[Task]) -> list[Prompt]:
        codes = encode_images(self._vq, [task.image for task in tasks])
        return [
            Prompt(
                number=number,
                ids=tuple(self._template.prompt_ids(task.question, [image])),
                question=task.question,
                images=(image,),
                reference=task.answer,
                slice=task.slice,
                identity_steps=identity_steps(task),
                exact=True,
                task=task,
            )
            for number, task, image in zip(numbers, tasks, codes, strict=True)
        ]


class WorldPrompts(TaskPrompts):
    """Tasks of the world: the slices in turn, of one level or of levels that adapt."""

    def __init__(self, data: UniTasksData, seed: int, template: Template, vq: VQModel) -> None:
        """Choose the tasks; ``seed`` is the job's.

        Raises:
            ValueError: a seed or level is kept for evaluation.
        """
        super().__init__(data.first_seed, data.num_samples, seed, template, vq)
        self._slices, self._level = tuple(data.slices or SLICES), require_training_level(data.level)
        families = [family for name in self._slices for family in FAMILIES[name]]
        self.difficulty = Difficulty(families, seed) if data.difficulty == "adaptive" else None
        if self.difficulty is None:  # the world has few phrasings: these have the longest, up to the margin
            self.longest = self._longest_of([self._task(i) for i in range(min(64, self._count))])
        else:
            some = [self._made(i, self._first, level) for i in range(16) for level in TRAINED_GRADES]
            self.longest = self._longest_of(some)

    def _task(self, number: int) -> Task:
        level = self._level if self.difficulty is None else self.difficulty.level(self._family(number), number)
        return self._made(number, self._first + number, level)

    def _held_out(self, place: int, seed: int) -> Task:
        """Of the same slices in turn, of the same level or of every level that may train."""
        turn = place // len(self._slices)
        level = self._level if self.difficulty is None else TRAINED_GRADES[turn % len(TRAINED_GRADES)]
        return self._made(place, seed, level)

    def _made(self, number: int, seed: int, level: Level) -> Task:
        """Slices in turn; with adaptive difficulty families as well, since the level follows from the family."""
        family = None if self.difficulty is None else self._family(number)
        return make_task(self._slices[number % len(self._slices)], seed, family=family, level=level)

    def _family(self, number: int) -> str:
        turn, place = divmod(number, len(self._slices))
        families = list(FAMILIES[self._slices[place]])
        return families[turn % len(families)]


class FilePrompts:
    """Questions read from files; their images are encoded once, at the start."""

    difficulty: Difficulty | None = None

    def __init__(
        self, data: QuestionFiles, template: Template, vq: VQModel, *, context_len: int, min_response: int = 64
    ) -> None:
        """Unusable rows are listed in ``intake``.

        Args:
            data: the files.
            template: of the checkpoint.
            vq: encodes the images.
            context_len: of the model.
            min_response: prompts that leave fewer tokens are rejected as ``too_long``.

        Raises:
            training.data.rows.DataError: no known data was found.
        """
        self._prompts: list[Prompt] = []
        rejected: list[Rejection] = []
        for item in islice(read_questions(data, vq.config.resolution), data.num_samples):
            if isinstance(item, Rejection):
                rejected.append(item)
                continue
            most = context_len - min_response
            prompt = attempted(item.where, partial(_prompt, item, len(self._prompts), template, vq, most))
            if isinstance(prompt, Rejection):
                rejected.append(prompt)
            else:
                self._prompts.append(prompt)
        self.intake = Intake(len(self._prompts), tuple(rejected))
        self.longest = max((len(prompt.ids) for prompt in self._prompts), default=0)

    def __len__(self) -> int:
        return len(self._prompts)

    def hold_out(self, count: int) -> list[Prompt]:
        """The last rows, which are taken out."""
        if 2 * count > len(self._prompts):
            raise ValueError(f"the data has {len(self._prompts)} prompts: validation can hold out at most half of them")
        self._prompts, held = self._prompts[:-count], self._prompts[-count:]
        return held

    def keep(self, numbers: Sequence[int]) -> None:
        """Drop all other prompts."""
        self._prompts = [self._prompts[number] for number in numbers]

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        """The prompts of these numbers, which were encoded at the start."""
        return [self._prompts[number] for number in numbers]


def _prompt(item: Question, number: int, template: Template, vq: VQModel, most: int) -> Prompt:
    images = tuple(image_codes(image, template, vq) for image in item.images)
    ids = tuple(template.prompt_ids(item.text, images))
    if len(ids) > most:
        raise SampleError("too_long", f"a prompt of {len(ids)} tokens leaves no room for an answer: {most} may be used")
    return Prompt(number, ids, item.text, images, item.answer, item.slice, item.choices)
