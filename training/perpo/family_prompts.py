"""Prompts from a task family of your own, generated and encoded on use like the world's."""

from __future__ import annotations

from collections.abc import Sequence

from model.nets.vq import VQModel
from model.text.template import Template
from training.data.families import make_own, open_family
from training.data.rows import DataError
from training.perpo.prompts import TaskPrompts
from training.perpo.rollout import Prompt
from training.spec.spec import TasksData
from training.world.task import Task


class FamilyPrompts(TaskPrompts):
    """Tasks of one family."""

    def __init__(
        self, data: TasksData, seed: int, template: Template, vq: VQModel, *, with_steps: bool = False
    ) -> None:
        """Load and calibrate the family, and choose the tasks; ``seed`` is the job's.

        Raises:
            training.data.rows.DataError: the family cannot be used, or its first tasks lack steps, ``with_steps``.
            ValueError: a seed lies in the evaluation range.
        """
        super().__init__(data.first_seed, data.num_samples, seed, template, vq)
        self._name, self._family = data.family, open_family(data, self._first)
        first = [self._task(i) for i in range(min(64, self._count))]
        if with_steps and not any(task.steps for task in first):
            raise DataError(f"the task family {self._name} has no steps: reward.functional has no drawing to judge")
        self.longest = self._longest_of(first)

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        """Make the tasks of these numbers; raises DataError for a question that is much longer than the others."""
        prompts = super().take(numbers)
        if (longest := max(len(prompt.ids) for prompt in prompts)) > self.longest:
            detail = f"a prompt of {longest} tokens; those of its first 64 tasks allow {self.longest}"
            raise DataError(f"the task family {self._name}: {detail}")
        return prompts

    def _task(self, number: int) -> Task:
        return make_own(self._name, self._family, self._first + number)

    def _held_out(self, place: int, seed: int) -> Task:
        return make_own(self._name, self._family, seed)
