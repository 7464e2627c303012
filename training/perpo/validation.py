"""Validation of a run on a fixed held-out set, and the record of its best step.

Answers are greedy. Tasks of the world come from `VALIDATION_SEEDS`, the end of the seeds for reinforcement learning;
files hold out their last rows. Neither is ever trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.nets.transformer import Transformer
from training.jobs.memory import slots_for
from training.perpo.functional import DrawingJudge, has_checkers, score
from training.perpo.rollout import Generates, Prompt
from training.scoring.rewards import RewardBreakdown, Scorer, score_all
from training.spec.hyperparameters import PeRPOHyperparameters
from training.world.checkers import num_drawings


class Validation:
    """Answers and scores the held-out prompts."""

    def __init__(
        self,
        base: LoadedCheckpoint,
        prompts: Sequence[Prompt],
        scorer: Scorer,
        hp: PeRPOHyperparameters,
        engine: Generates | None = None,
    ) -> None:
        """``base`` provides template and VQ, ``scorer`` the verdict on an answer.

        ``engine`` is one of the module that is validated; without it, each validation makes its own. ``errors`` are
        those of the last call: why answers count as wrong that could not be scored.
        """
        self._base, self._prompts, self._scorer, self._engine = base, prompts, scorer, engine
        self.errors: list[str] = []
        self._params = SamplingParams(temperature=0.0, max_new_tokens=hp.max_new_tokens, max_images=hp.max_images)
        longest = max(len(prompt.ids) for prompt in prompts)
        self._context = min(base.config.transformer.context_len, longest + hp.max_new_tokens)

    def __call__(self, transformer: Transformer, check_stop: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The metrics of these weights: `val/accuracy`, for tasks with checkers also `val/drawings_right`.

        ``check_stop`` is called after every answer and may raise.
        """
        engine = self._engine
        if engine is None:
            slots = slots_for(transformer, self._context)
            engine = Engine(
                transformer,
                self._base.vocab,
                self._base.template,
                num_slots=slots,
                context_len=self._context,
                admissions_per_step=slots,
            )
        else:
            engine.refresh()
        ids = [prompt.ids for prompt in self._prompts]
        answers = engine.generate(ids, [self._params] * len(ids), on_finish=lambda _: check_stop())
        accuracy, right, total = 0.0, 0, 0
        pairs = zip(self._prompts, answers, strict=True)
        scores = score_all(partial(self._score, prompt, answer.token_ids) for prompt, answer in pairs)
        self.errors = scores.errors
        for prompt, reward in zip(self._prompts, scores.rewards, strict=True):
            if reward is None:  # scoring failed: not right
                continue
            accuracy += reward.accuracy
            if prompt.task is not None and has_checkers(prompt):
                right += sum(verdict is True for verdict in reward.verdicts)
                total += num_drawings(prompt.task, [codes for _, codes in reward.steps])
        values = {"val/accuracy": accuracy / len(ids)}
        return values | ({"val/drawings_right": right / total} if total else {})

    def _score(self, prompt: Prompt, response: Sequence[int]) -> RewardBreakdown:
        assert self._base.vq is not None
        reward = score(self._scorer, prompt, response)
        return DrawingJudge(self._base.vq, prompt, [reward], weight=0.0).judge(reward)


@dataclass
class Record:
    """The validations of a run so far; better is a higher accuracy, of equal ones a higher share of right drawings.

    Attributes:
        validated: the step of the last validation; -1: none yet. The start counts as step 0, but never as the best.
        best: the best step; 0: none yet.
        since: validations after the best one.
        values: metrics of the best step.
    """

    validated: int = -1
    best: int = 0
    since: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def add(self, step: int, metrics: dict[str, float]) -> bool:
        """Enter a step's metrics, `val/...` among them; return whether it is the best."""
        self.validated = step
        if step == 0:
            return False
        if self.best and _rank(metrics) <= _rank(self.values):
            self.since += 1
            return False
        self.best, self.since, self.values = step, 0, dict(metrics)
        return True

    def state(self) -> dict[str, Any]:
        """Plain values to resume from."""
        return asdict(self)


def _rank(metrics: dict[str, float]) -> tuple[float, float]:
    return metrics["val/accuracy"], metrics.get("val/drawings_right", 0.0)
