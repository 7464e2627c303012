"""Samples G completions per prompt with the serving engine, from the module in training.

The samples of a group share one prefill. The engine reads stacked copies of the module's weights, and
:meth:`Sampler.sample` rebuilds them as a step begins, so that no optimiser step can be missed. It may also be engines
elsewhere, which get the weights then (`training/cluster/rollouts.py`). Samples are a function of the
weights and of (job seed, step, index of the prompt in the step, g) alone, independent of the rest of the batch.

Knows no rewards or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from model.engine.engine import Engine
from model.engine.phases import Legal, LegalText
from model.engine.sequence import Completion, FinishedBy, SamplingParams
from model.nets.transformer import Transformer
from model.seeds import mixed_seed
from model.text.vocab import Vocabulary
from training.jobs.memory import slots_for
from training.scoring.rewards import RewardBreakdown
from training.world.task import Task


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model sees it, and its reference answer.

    Attributes:
        number: its index in the data set.
        ids: the whole prompt.
        question: its text.
        images: codes of its images.
        reference: the right answer.
        slice: of the world or the data set.
        choices: labelled options, if any.
        identity_steps: steps (from 1) whose image should equal the previous one.
        exact: whether the answer must equal the reference literally, as for tasks of the world.
        task: the world's, if it is one; its checkers judge drawings.
    """

    number: int
    ids: tuple[int, ...]
    question: str
    images: tuple[tuple[int, ...], ...]
    reference: str
    slice: str | None = None
    choices: tuple[str, ...] = ()
    identity_steps: frozenset[int] = frozenset()
    exact: bool = False
    task: Task | None = None


@dataclass(slots=True)
class Rollout:
    """One completion. ``legal[i]`` is the legal set of token i, ``logprobs[i]`` its log-probability.

    ``advantage`` is the trajectory's; ``step_advantages`` are added to it on the tokens of a step (from 1). ``factors``
    multiply each token's weight in the policy's loss; None: all are 1.
    """

    index: int
    token_ids: list[int]
    legal: bytes
    logprobs: list[float]
    finish_reason: FinishedBy
    reward: RewardBreakdown | None = None
    advantage: float = 0.0
    step_advantages: dict[int, float] = field(default_factory=dict)
    factors: list[float] | None = None

    @property
    def num_drawn(self) -> int:
        """L_i: number of sampled tokens, forced ones excluded."""
        return len(self.legal) - self.legal.count(Legal.FORCED)


@dataclass(slots=True)
class RolloutGroup:
    """A prompt and its completions."""

    prompt: Prompt
    rollouts: list[Rollout] = field(default_factory=list)


class Generates(Protocol):
    """An `Engine`, or what answers like one."""

    def refresh(self) -> None:
        """Take the module's weights as they are now."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[SamplingParams],
        *,
        num_samples: int = 1,
        on_finish: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Run prompts to completion: `num_samples` completions each, those of prompt 0 first."""
        ...


class Sampler:
    """Samples from a transformer that is updated between calls."""

    def __init__(
        self,
        transformer: Transformer,
        vocab: Vocabulary,
        template: LegalText,
        *,
        group_size: int,
        max_new_tokens: int,
        max_prompt_len: int,
        temperature: float = 1.0,
        top_p: float = 0.95,
        max_images: int | None = None,
        num_slots: int | None = None,
        engine: Generates | None = None,
    ) -> None:
        """Build an engine around the module, unless there is one.

        Args:
            transformer: the module in training.
            vocab: of the checkpoint.
            template: defines which ids may be sampled as text.
            group_size: G.
            max_new_tokens: of a completion.
            max_prompt_len: of the longest prompt.
            temperature: of the sampling.
            top_p: of the sampling; log-probabilities ignore it.
            max_images: images per completion; None: as many as fit.
            num_slots: concurrent sequences; None: chosen for the device.
            engine: samples for the module instead; it has a context of `context_for` or more.

        Raises:
            ValueError: a group of one, or a prompt that leaves no room.
        """
        if group_size < 2:
            raise ValueError(f"rollouts_per_prompt is {group_size}, but a group needs at least 2 to compare")
        context = context_for(transformer, max_prompt_len, max_new_tokens)
        self.group_size, self._max_new_tokens, self._max_images = group_size, max_new_tokens, max_images
        self._temperature, self._top_p = temperature, top_p
        if engine is None:
            slots = num_slots or slots_for(transformer, context)
            engine = Engine(
                transformer, vocab, template, num_slots=slots, context_len=context, admissions_per_step=slots
            )
        self.engine = engine

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        step: int,
        first: int = 0,
        on_finish: Callable[[int], None] | None = None,
    ) -> list[RolloutGroup]:
        """Sample G completions of every prompt under the module's current weights.

        Args:
            prompts: the prompts.
            seed: of the job.
            step: of the loop.
            first: prompts that this step has already sampled, from the same weights; seeds continue from there.
            on_finish: called with the number of completions so far.

        Raises:
            FloatingPointError: the policy's logits are not finite.
        """
        if not first:
            self.engine.refresh()
        params = [
            SamplingParams(
                temperature=self._temperature,
                top_p=self._top_p,
                seed=mixed_seed(seed, step, first + place),
                max_new_tokens=self._max_new_tokens,
                max_images=self._max_images,
            )
            for place in range(len(prompts))
        ]
        ids = [prompt.ids for prompt in prompts]
        done = self.engine.generate(ids, params, num_samples=self.group_size, on_finish=on_finish)
        groups = []
        for number, prompt in enumerate(prompts):
            group = RolloutGroup(prompt)
            for index, c in enumerate(done[number * self.group_size : (number + 1) * self.group_size]):
                if c.finish_reason == "error":
                    raise FloatingPointError(f"step {step}: the policy's logits are not finite; sampling is impossible")
                group.rollouts.append(Rollout(index, c.token_ids, c.mask_bytes, c.logprobs, c.finish_reason))
            groups.append(group)
        return groups


def context_for(transformer: Transformer, max_prompt_len: int, max_new_tokens: int) -> int:
    """The context that the longest prompt and its completion take, at most the model's.

    Raises:
        ValueError: the prompt leaves no room.
    """
    context = transformer.config.context_len
    if max_prompt_len >= context:
        raise ValueError(f"a prompt of {max_prompt_len} tokens leaves no room in a context of {context}")
    return min(context, max_prompt_len + max_new_tokens)
