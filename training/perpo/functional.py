"""The functional-correctness reward: the checkers' verdict on every drawing of a trajectory.

It is supervision that the paper's rewards do without, so it is off by default (`reward.functional`). Verdicts are those
of the benchmark: each drawing is decoded and checked against the image that it started from as the model saw it. The
checkers are those of the world or of a task family of your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from PIL import Image

from model.images.codes import decode_codes
from model.nets.vq import VQModel
from training.perpo.rollout import Prompt
from training.scoring.rewards import RewardBreakdown, Scorer, Scores, score_all
from training.world.checkers import drawing_verdicts, num_drawings

Codes = tuple[int, ...]


class DrawingJudge:
    """Judges the trajectories of one prompt; equal images are decoded once."""

    def __init__(self, vq: VQModel, prompt: Prompt, rewards: Sequence[RewardBreakdown], weight: float) -> None:
        """Decode the question's image and every different image of ``rewards`` in one batch.

        Args:
            vq: the decoder.
            prompt: without a task that has steps, nothing is judged.
            rewards: of all trajectories to judge.
            weight: of the share of right drawings in the total.
        """
        self._prompt, self._weight = prompt, weight
        self._known: dict[tuple[Codes | None, ...], tuple[bool | None, ...]] = {}
        drawn = {codes: None for reward in rewards for _, codes in reward.steps if codes is not None}
        wanted = list({prompt.images[-1]: None, **drawn}) if has_checkers(prompt) and prompt.images else []
        self._images: dict[Codes, Image.Image] = dict(zip(wanted, decode_codes(vq, wanted), strict=True))

    def judge(self, reward: RewardBreakdown) -> RewardBreakdown:
        """The reward with ``verdicts`` and ``functional``; unchanged if the prompt has no checker.

        ``functional`` is the share of right drawings: of the reference's number of drawings, or of those drawn if there
        are more, without those that cannot be judged.
        """
        task = self._prompt.task
        if task is None or not self._images:
            return reward
        codes = tuple(codes for _, codes in reward.steps)
        verdicts = self._known.get(codes)
        if verdicts is None:
            drawn = [None if one is None else self._images[one] for one in codes]
            verdicts = tuple(drawing_verdicts(task, self._images[self._prompt.images[-1]], drawn))
            self._known[codes] = verdicts
        unknown = sum(verdict is None for verdict, one in zip(verdicts, codes, strict=True) if one is not None)
        right, total = sum(verdict is True for verdict in verdicts), num_drawings(task, codes)
        share = right / max(1, total - unknown)
        return replace(reward, total=reward.total + self._weight * share, functional=share, verdicts=verdicts)


def has_checkers(prompt: Prompt) -> bool:
    """Whether the drawings of its answers can be judged; a task of your own may have no steps."""
    return prompt.task is not None and bool(prompt.task.steps)


def judged(vq: VQModel, prompt: Prompt, scores: Scores, weight: float) -> Scores:
    """The scores of a prompt's trajectories with their verdicts; arguments as for :class:`DrawingJudge`.

    A trajectory whose checker raises is an error like any other.
    """
    known = [reward for reward in scores.rewards if reward is not None]
    judge = DrawingJudge(vq, prompt, known, weight)
    found = score_all(partial(judge.judge, reward) for reward in known)
    rewards = iter(found.rewards)
    return Scores([None if one is None else next(rewards) for one in scores.rewards], [*scores.errors, *found.errors])


def score(scorer: Scorer, prompt: Prompt, response: Sequence[int]) -> RewardBreakdown:
    """Score a response to a prompt."""
    return scorer.score(
        response,
        prompt.reference,
        seen=prompt.images[-1] if prompt.images else None,
        choices=prompt.choices,
        identity_steps=prompt.identity_steps,
        exact=prompt.exact,
    )
