"""Adds the rewards of your own to scored trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from model.images.codes import decode_codes
from model.nets.vq import VQModel
from training.jobs.stop import Stop
from training.scoring.custom import Case, Response, ResponseStep, Sample
from training.scoring.custom_sources import CustomRewards
from training.scoring.rewards import RewardBreakdown, Scores
from training.spec.hyperparameters import CustomReward

Codes = tuple[int, ...]


class CustomScorer:
    """The custom rewards of one job."""

    def __init__(self, settings: Sequence[CustomReward], vq: VQModel, *, stop: Stop | None = None) -> None:
        """Open the rewards; raises what :class:`training.scoring.custom_sources.CustomRewards` raises."""
        self._rewards = CustomRewards(settings, stop=stop)
        self._vq = vq
        self._with_images = any(one.images for one in settings)

    def add(self, scores: Scores, sample: Sample, images: Sequence[Codes], lengths: Sequence[int]) -> Scores:
        """Add each trajectory's custom rewards to its total; those without one are errors like any other.

        Args:
            scores: of the trajectories of one question.
            sample: the question.
            images: codes of the question's images.
            lengths: tokens of each trajectory.

        Raises:
            training.scoring.custom.RewardError: a reward cannot be used any more.
            JobStopped: the job should stop.
        """
        rewards, errors = list(scores.rewards), list(scores.errors)
        scored = [(k, reward) for k, reward in enumerate(rewards) if reward is not None]
        if self._with_images:
            sample = replace(sample, images=tuple(decode_codes(self._vq, images)))
        cases = [Case(sample, self._response(reward, lengths[k])) for k, reward in scored]
        for (k, reward), values in zip(scored, self._rewards.score(cases), strict=True):
            if isinstance(values, str):
                rewards[k] = None
                errors.append(values)
            else:
                rewards[k] = replace(reward, total=reward.total + self._rewards.weighted(values), custom=values)
        return Scores(rewards, errors)

    def _response(self, reward: RewardBreakdown, num_tokens: int) -> Response:
        codes = [c for _, c in reward.steps if c is not None] if self._with_images else []
        drawn = iter(decode_codes(self._vq, codes))

        def image(codes: Codes | None) -> Image.Image | None:
            return next(drawn) if codes is not None and self._with_images else None

        return Response(
            answer=reward.answer,
            steps=tuple(ResponseStep(text, codes, image(codes)) for text, codes in reward.steps),
            accuracy=reward.accuracy,
            format=reward.format,
            perception=reward.perception,
            num_tokens=num_tokens,
        )

    def close(self) -> None:
        """End processes and close connections."""
        self._rewards.close()


def open_custom(settings: Sequence[CustomReward], vq: VQModel, *, stop: Stop | None = None) -> CustomScorer | None:
    """The custom rewards of a job; None if it has none. Raises like :class:`CustomScorer`."""
    return CustomScorer(settings, vq, stop=stop) if settings else None
