"""Prompts -> G completions each, drawn by the serving engine from the very module that is being trained.

The samples of a group share one prefill. The engine reads stacked copies of the module's weights, and
:meth:`Sampler.sample` rebuilds them before it draws, so that no optimiser step can be forgotten. What is drawn is a
function of the weights and of (job seed, step, place of the prompt in the step, g) alone, whoever else is in the batch.

Knows no reward and no loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from model.engine.engine import CPU_SLOTS, Engine
from model.engine.phases import Legal, LegalText
from model.engine.sequence import FinishedBy, SamplingParams
from model.nets.kv_cache import KVCache
from model.nets.transformer import Transformer
from model.text.vocab import Vocabulary
from training.scoring.rewards import RewardBreakdown

MAX_SLOTS = 256
CACHE_SHARE = 0.4  # of the device's free memory, for keys and values


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model gets it, and what its answer is compared with.

    Attributes:
        number: its place in the data set.
        ids: the whole prompt.
        question: its text.
        images: codes of its pictures.
        reference: the right answer.
        slice: of the world or the data set.
        choices: labelled options, if the question has any.
        identity_steps: steps (from 1) whose picture should equal the one before.
        exact: whether the answer must equal the reference as it is written, as for tasks of the world.
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


@dataclass(slots=True)
class Rollout:
    """One completion. ``legal[i]`` says what token i was drawn from, ``logprobs[i]`` with which log-probability."""

    index: int
    token_ids: list[int]
    legal: bytes
    logprobs: list[float]
    finish_reason: FinishedBy
    weight_version: int
    reward: RewardBreakdown | None = None
    advantage: float = 0.0

    @property
    def num_drawn(self) -> int:
        """L_i: tokens that were drawn, forced ones apart."""
        return len(self.legal) - self.legal.count(Legal.FORCED)


@dataclass(slots=True)
class RolloutGroup:
    """A prompt and its completions."""

    prompt: Prompt
    rollouts: list[Rollout] = field(default_factory=list)


def rollout_seed(seed: int, step: int, prompt: int) -> int:
    """The seed of the group at place ``prompt`` of a step; its sample g takes ``sample_seed`` of it and g."""
    digest = hashlib.blake2b(f"{seed}/{step}/{prompt}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


class Sampler:
    """Draws from a transformer that somebody else changes between two calls."""

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
    ) -> None:
        """
        Args:
            transformer: the module that is trained.
            vocab: of the checkpoint.
            template: says which ids may be drawn as text.
            group_size: G.
            max_new_tokens: of a completion.
            max_prompt_len: of the longest prompt.
            temperature: of the sampling.
            top_p: of the sampling; log-probabilities are those without it.
            max_images: pictures of a completion; as many as fit when None.
            num_slots: sequences at once; as many as are good for the device when None.

        Raises:
            ValueError: a group of one, or a prompt that leaves no room.
        """
        if group_size < 2:
            raise ValueError(f"rollouts_per_prompt is {group_size}: a group of one has nothing to be compared with")
        context = transformer.config.context_len
        if max_prompt_len >= context:
            raise ValueError(f"a prompt of {max_prompt_len} tokens leaves no room in a context of {context}")
        context = min(context, max_prompt_len + max_new_tokens)
        slots = num_slots or slots_for(transformer, context)
        self.group_size, self._max_new_tokens, self._max_images = group_size, max_new_tokens, max_images
        self._temperature, self._top_p = temperature, top_p
        self._engine = Engine(
            transformer, vocab, template, num_slots=slots, context_len=context, admissions_per_step=slots
        )
        self.weight_version, self._written = 0, -1

    def refresh(self) -> None:
        """Read the module's weights anew; changed ones are a new ``weight_version``."""
        self._engine.refresh()
        written = sum(parameter._version for parameter in self._engine.transformer.parameters())
        if written != self._written:
            self._written = written
            self.weight_version += 1

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        step: int,
        first: int = 0,
        on_finish: Callable[[int], None] | None = None,
    ) -> list[RolloutGroup]:
        """G completions of every prompt under the module's weights of now.

        Args:
            prompts: what to ask.
            seed: of the job.
            step: of the loop.
            first: prompts that this step has asked already; its seeds go on from there.
            on_finish: told the number of completions so far.

        Raises:
            FloatingPointError: the policy gave logits that are no numbers.
        """
        self.refresh()
        params = [
            SamplingParams(
                temperature=self._temperature,
                top_p=self._top_p,
                seed=rollout_seed(seed, step, first + place),
                max_new_tokens=self._max_new_tokens,
                max_images=self._max_images,
            )
            for place in range(len(prompts))
        ]
        ids = [prompt.ids for prompt in prompts]
        done = self._engine.generate(ids, params, num_samples=self.group_size, on_finish=on_finish)
        groups = []
        for number, prompt in enumerate(prompts):
            group = RolloutGroup(prompt)
            for index, c in enumerate(done[number * self.group_size : (number + 1) * self.group_size]):
                if c.finish_reason == "error":
                    raise FloatingPointError(f"step {step}: the policy's logits are not finite; nothing can be drawn")
                group.rollouts.append(
                    Rollout(index, c.token_ids, c.mask_bytes, c.logprobs, c.finish_reason, self.weight_version)
                )
            groups.append(group)
        return groups


def slots_for(transformer: Transformer, context_len: int) -> int:
    """How many sequences at once: `CPU_SLOTS` on a CPU, on a GPU as many as a share of its free memory holds."""
    device = transformer.device
    if device.type != "cuda":
        return CPU_SLOTS
    one = KVCache(transformer.config, 1, context_len, device="meta", dtype=transformer.dtype).num_bytes
    free, _ = torch.cuda.mem_get_info(device)
    return max(2, min(MAX_SLOTS, int(free * CACHE_SHARE) // one))
