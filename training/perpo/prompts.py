"""Prompts for reinforcement learning: questions with reference answers, without annotated traces.

From the world's tasks (each encoded when used), or from files: the authors' jsonl, saved traces, Zebra-CoT, M3CoT and
Omni-Bench, of which only question, images and answer are used. A run's order is a function of its seed: a new shuffle
every epoch.
"""

from __future__ import annotations

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
from training.perpo.rollout import Prompt
from training.spec.spec import UniTasksData
from training.world.task import Task
from training.world.world import RL_SEEDS, SLICES, make_task, require_training_seed

SEEDS_A_RUN = 100_000  # jobs with different seeds see different tasks


class PromptSet(Protocol):
    """Prompts by number; `longest` is the length of the longest one."""

    longest: int

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        """Return the prompts of these numbers."""
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


class WorldPrompts:
    """Tasks of the world, generated and encoded on use."""

    def __init__(self, data: UniTasksData, seed: int, template: Template, vq: VQModel) -> None:
        """Choose the tasks; ``seed`` is the job's.

        Raises:
            ValueError: a seed lies in the evaluation range.
        """
        self._slices = tuple(data.slices or SLICES)
        first = data.first_seed
        self._first = RL_SEEDS.start + seed % 100 * SEEDS_A_RUN if first is None else first
        require_training_seed(self._first + data.num_samples - 1)
        self._count, self._level, self._template, self._vq = data.num_samples, data.level, template, vq
        some = [self._task(i) for i in range(min(64, self._count))]
        images = template.vocab.tokens_per_image
        # The world has few phrasings: the longest of 64 plus a margin bounds all of them.
        self.longest = max(template.prompt_len(task.question) for task in some) + images + 32

    def __len__(self) -> int:
        return self._count

    def _task(self, number: int) -> Task:
        return make_task(self._slices[number % len(self._slices)], self._first + number, level=self._level)

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        """Generate the tasks of these numbers, and encode their images."""
        tasks = [self._task(number) for number in numbers]
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
            )
            for number, task, image in zip(numbers, tasks, codes, strict=True)
        ]


def identity_steps(task: Task) -> frozenset[int]:
    """Steps of a task (from 1) whose right image equals the previous one: a walker that stays, a row that is sorted."""
    images = [task.image, *(step.image for step in task.steps)]
    same = (k for k in range(1, len(images)) if images[k].tobytes() == images[k - 1].tobytes())
    return frozenset(same)


class FilePrompts:
    """Questions read from files; their images are encoded once, at the start."""

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

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        """The prompts of these numbers, which were encoded at the start."""
        return [self._prompts[number] for number in numbers]


def _prompt(item: Question, number: int, template: Template, vq: VQModel, most: int) -> Prompt:
    images = tuple(image_codes(image, template, vq) for image in item.images)
    ids = tuple(template.prompt_ids(item.text, images))
    if len(ids) > most:
        raise SampleError("too_long", f"a prompt of {len(ids)} tokens leaves no room for an answer: {most} may be used")
    return Prompt(number, ids, item.text, images, item.answer, item.slice, item.choices)
