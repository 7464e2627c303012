"""Prompts from a task family of your own, generated and encoded on use like the world's."""

from __future__ import annotations

from collections.abc import Sequence

from model.images.codes import decode_codes, encode_images
from model.nets.vq import VQModel
from model.text.template import Template
from training.data.families import make_own, open_family
from training.data.rows import DataError
from training.perpo.prompts import TaskPrompts
from training.perpo.rollout import Prompt
from training.spec.spec import TasksData
from training.world.checkers import drawing_verdicts
from training.world.task import Task

JUDGED = 8  # tasks whose coded references are judged


class FamilyPrompts(TaskPrompts):
    """Tasks of one family."""

    def __init__(self, data: TasksData, seed: int, template: Template, vq: VQModel, *, judged: bool = False) -> None:
        """Load and calibrate the family, and choose the tasks; ``seed`` is the job's.

        Raises:
            training.data.rows.DataError: the family cannot be used, or not be ``judged``: its first tasks have no
                steps, or their checker accepts none of its references once the tokenizer has coded them.
            ValueError: a seed lies in the evaluation range.
        """
        super().__init__(data.first_seed, data.num_samples, seed, template, vq)
        self._name, self._family = data.family, open_family(data, self._first)
        first = [self._task(i) for i in range(min(64, self._count))]
        if judged:
            self._require_verdicts([task for task in first if task.steps][:JUDGED])
        self.longest = self._longest_of(first)

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        """Make the tasks of these numbers; raises DataError for a question that is much longer than the others."""
        prompts = super().take(numbers)
        if (longest := max(len(prompt.ids) for prompt in prompts)) > self.longest:
            detail = f"a prompt of {longest} tokens; those of its first 64 tasks allow {self.longest}"
            raise DataError(f"the task family {self._name}: {detail}")
        return prompts

    def _require_verdicts(self, tasks: Sequence[Task]) -> None:
        """Refuse a family none of whose drawings could ever be right."""
        if not tasks:
            raise DataError(f"the task family {self._name} has no steps: reward.functional has no drawing to judge")
        for task in tasks:
            images = [task.image, *(step.image for step in task.steps)]
            seen, *kept = decode_codes(self._vq, encode_images(self._vq, images))
            if any(drawing_verdicts(task, seen, kept)):
                return
        lost = "rejects its own references as the checkpoint's tokenizer keeps them"
        raise DataError(f"the checker of the task family {self._name} {lost}: reward.functional could not be earned")

    def _task(self, number: int) -> Task:
        return make_own(self._name, self._family, self._first + number)

    def _held_out(self, place: int, seed: int) -> Task:
        return make_own(self._name, self._family, seed)
