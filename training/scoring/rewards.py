"""Rewards of a trajectory: R = alpha R_Acc + beta R_Fmt + gamma R_Pe, with the guards of R_Pe (docs/method).

R_Acc is :func:`training.scoring.grading.grade` of the answer. R_Fmt is 1 if the response is a complete trajectory of
its template. R_Pe (Eqs. 4-11) is the mean score of its images, s = 1 / (1 + E_2D / tau), with these guards, since blank
images are the smoothest:

* *malformed*: an incomplete image scores 0 (and fails R_Fmt);
* *flat*: one code covers too much of it, or it is far smoother than any real image: 0;
* *copied*: it repeats the previous image although its step should change something: 0;
* *capped*: it is smoother than 95 % of real images: its score is limited to theirs.

Without images R_Pe is 0. The authors' code rewards trajectories without images more; here they earn less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from model.checkpoint.manifest import Perception
from model.images.codes import copied_share, tv_energy
from model.text.parser import ImageCompleted, ImageStarted, StepCompleted
from model.text.template import Template
from training.scoring.custom import CustomValue, flat_values
from training.scoring.grading import grade
from training.scoring.guards import ImageScore as ImageScore
from training.scoring.guards import aggregate as aggregate
from training.scoring.guards import changes_nothing as changes_nothing
from training.scoring.guards import guarded_score
from training.spec.hyperparameters import RewardHyperparameters


@dataclass(frozen=True, slots=True)
class RewardBreakdown:
    """The rewards of a trajectory. ``check`` names the check that decided the accuracy.

    ``spans`` are the response's tokens [start, end) of each step with a complete image: its sentence and its codes.
    ``functional`` is the share of right drawings, and ``verdicts`` judges the drawing of each step; None and empty
    without the functional-correctness reward (:mod:`training.perpo.functional`).
    """

    total: float
    accuracy: float
    format: float
    perception: float
    check: str = "none"
    answer: str | None = None
    steps: tuple[tuple[str, tuple[int, ...] | None], ...] = ()
    images: tuple[ImageScore, ...] = ()
    spans: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    functional: float | None = None
    verdicts: tuple[bool | None, ...] = ()
    custom: Mapping[str, CustomValue] = field(default_factory=dict)  # rewards of your own, by label

    def as_dict(self) -> dict[str, Any]:
        """The numbers by name; ``custom`` has those of your own rewards and of their parts, if there are any."""
        functional = {} if self.functional is None else {"functional": self.functional}
        shown: dict[str, Any] = {
            "total": self.total,
            "accuracy": self.accuracy,
            "format": self.format,
            "perception": self.perception,
            **functional,
        }
        return shown | ({"custom": self.custom_numbers} if self.custom else {})

    @property
    def custom_numbers(self) -> dict[str, float]:
        """Values of your own rewards by label, and those of their parts as ``label/part``."""
        return flat_values(self.custom)


class Scorer:
    """Scores responses of one checkpoint."""

    def __init__(
        self,
        template: Template,
        codebook: Tensor,
        perception: Perception | None,
        settings: RewardHyperparameters | None = None,
    ) -> None:
        """Score trajectories of one checkpoint.

        Args:
            template: of the checkpoint; defines a complete trajectory.
            codebook: [K, D] of its VQ.
            perception: the scale of the score from its manifest; default tau 3.0 and no cap.
            settings: weights and guards.
        """
        self.settings = settings or RewardHyperparameters()
        scale = perception or Perception()
        self.perception = scale if self.settings.tau is None else replace(scale, tau=self.settings.tau)
        self._template = template
        self._codebook = codebook.detach().float().cpu()

    def score(
        self,
        response: Sequence[int],
        reference: str,
        *,
        seen: Sequence[int] | None = None,
        choices: Sequence[str] = (),
        identity_steps: AbstractSet[int] = frozenset(),
        exact: bool = False,
    ) -> RewardBreakdown:
        """Score a response.

        Args:
            response: its token ids.
            reference: the right answer.
            seen: codes of the question's last image, if any: the first drawing must not copy it.
            choices: the question's labelled options, if any.
            identity_steps: steps (from 1) that change nothing, whose image may equal the previous one.
            exact: whether the answer must equal the reference literally, as for tasks of the world.
        """
        parser = self._template.parser()
        drawn: list[tuple[int, tuple[int, ...] | None]] = []  # step and codes; None: incomplete
        spans, begin = dict[int, tuple[int, int]](), 0
        for place, token in enumerate(response):
            for event in parser.feed(token):
                if isinstance(event, ImageStarted):
                    drawn.append((event.step, None))
                elif isinstance(event, ImageCompleted):
                    drawn[-1] = (drawn[-1][0], event.codes)
                    spans[event.step] = (begin, place + 1)
                elif isinstance(event, StepCompleted):
                    begin = place + 1
        parser.finish()
        steps = tuple(parser.steps)
        images: list[ImageScore] = []
        previous = None if seen is None else tuple(seen)
        for step, codes in drawn:
            may_copy = step in identity_steps or changes_nothing(steps[step - 1][0])
            images.append(self.score_image(codes, None if may_copy else previous))
            previous = previous if codes is None else codes
        graded = grade(parser.answer, reference, choices, exact=exact, similarity=self.settings.similarity)
        well_formed = float(parser.well_formed)
        perception = aggregate([p.score for p in images], self.settings.aggregation)
        s = self.settings
        return RewardBreakdown(
            total=s.alpha * graded.score + s.beta * well_formed + s.gamma * perception,
            accuracy=graded.score,
            format=well_formed,
            perception=perception,
            check=graded.check,
            answer=parser.answer,
            steps=steps,
            images=tuple(images),
            spans=spans,
        )

    def score_image(self, codes: Sequence[int] | None, previous: Sequence[int] | None = None) -> ImageScore:
        """Score one image; also return the deciding guard.

        Args:
            codes: of the complete image; None for an incomplete one.
            previous: the previous image; None if missing or allowed to be equal.
        """
        if codes is None:
            return ImageScore(math.nan, 0.0, "malformed")
        rows, columns = self._template.vocab.grid
        energy = float(tv_energy(self._codebook[torch.tensor(list(codes))].view(rows, columns, -1)))
        copied = 0.0 if previous is None else copied_share(codes, previous)
        return guarded_score(codes, energy, copied, self.perception, self.settings.copied_share)


@dataclass(frozen=True)
class Scores:
    """Rewards in order, None if scoring raised; with the errors' texts."""

    rewards: list[RewardBreakdown | None]
    errors: list[str]

    @property
    def error_share(self) -> float:
        """Share of the trajectories that could not be scored."""
        return len(self.errors) / len(self.rewards) if self.rewards else 0.0


def score_all(calls: Iterable[Callable[[], RewardBreakdown]]) -> Scores:
    """Score trajectories one by one. Failures are excluded and counted, not treated as image-free."""
    rewards: list[RewardBreakdown | None] = []
    errors: list[str] = []
    for call in calls:
        try:
            rewards.append(call())
        except Exception as error:  # counted; the job fails above a share of them
            rewards.append(None)
            errors.append(f"{type(error).__name__}: {error}")
    return Scores(rewards, errors)


def reward_metrics(rewards: Sequence[RewardBreakdown]) -> dict[str, float]:
    """Means and spreads of the rewards, and the guards' verdicts as shares of all images."""
    values: dict[str, float] = {}
    names = ["total", "accuracy", "format", "perception"]
    names += ["functional"] if any(r.functional is not None for r in rewards) else []
    for name in names:  # not every task of a family of your own has drawings to judge
        column = [value for r in rewards if (value := getattr(r, name)) is not None]
        mean = sum(column) / len(column) if column else 0.0
        values[f"reward/{name}"] = mean
        values[f"reward/{name}_std"] = math.sqrt(sum((x - mean) ** 2 for x in column) / len(column)) if column else 0.0
    numbers = [r.custom_numbers for r in rewards]
    for name in sorted({name for one in numbers for name in one}):
        column = [one[name] for one in numbers if name in one]
        values[f"reward/custom/{name}"] = sum(column) / len(column)
    images = [image for r in rewards for image in r.images]
    for name, verdict in (("blank", "flat"), ("copied", "copied"), ("capped", "capped"), ("malformed", "malformed")):
        count = sum(image.verdict == verdict for image in images)
        values[f"pictures/{name}_share"] = count / len(images) if images else 0.0
    values["format/error_share"] = 1.0 - values["reward/format"] if rewards else 0.0
    values["response/images"] = len(images) / len(rewards) if rewards else 0.0
    return values
