"""Prompts from a task family of your own, generated and encoded on use like the world's."""

from __future__ import annotations

from collections.abc import Sequence

from model.nets.vq import VQModel
from model.text.template import Template
from training.data.families import make_own, open_family
from training.data.rows import DataError
from training.perpo.prompts import SEEDS_A_RUN, WorldPrompts
from training.perpo.rollout import Prompt
from training.spec.spec import TasksData
from training.world.task import Task
from training.world.world import RL_SEEDS, require_training_seed

MARGIN = 32  # tokens by which a question may be longer than the longest of the first 64


class FamilyPrompts(WorldPrompts):
    """Tasks of one family."""

    def __init__(self, data: TasksData, seed: int, template: Template, vq: VQModel) -> None:
        """Load and calibrate the family, and choose the tasks; ``seed`` is the job's.

        Raises:
            training.data.rows.DataError: the family cannot be used.
            ValueError: a seed lies in the evaluation range.
        """
        first = data.first_seed
        self._first = RL_SEEDS.start + seed % 100 * SEEDS_A_RUN if first is None else first
        require_training_seed(self._first + data.num_samples - 1)
        self._name, self._family = data.family, open_family(data, self._first)
        self._count, self._template, self._vq = data.num_samples, template, vq
        some = [self._task(i) for i in range(min(64, self._count))]
        longest = max(template.prompt_len(task.question) for task in some)
        self.longest = longest + template.vocab.tokens_per_image + MARGIN

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        """Make the tasks of these numbers; raises DataError for a question that is much longer than the others."""
        prompts = super().take(numbers)
        if (longest := max(len(prompt.ids) for prompt in prompts)) > self.longest:
            detail = f"a prompt of {longest} tokens; those of its first 64 tasks allow {self.longest}"
            raise DataError(f"the task family {self._name}: {detail}")
        return prompts

    def _task(self, number: int) -> Task:
        return make_own(self._name, self._family, self._first + number)
