"""Rollouts of reinforcement learning against transformers' `generate`: groups of equal and of ragged lengths.

Useful tokens a second over the whole call, prefills included and, on our side, the weights' rebuilding. Both sides hold
16 sequences at once and are given the same weights, prompts, sampling and lengths; ours prefills a group's prompt once
(`generate` repeats it a sample) and also gives each token's log-probability, which the training needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tests.benchmarks.decoding import NEW, PROMPT, SLOTS, Row, Sides, TextOf, compare, wanted_tokens
from training.perpo.rollout import Prompt, Sampler

GROUP = 8


def asked(sides: Sides, count: int) -> list[Prompt]:
    """So many prompts of equal length."""
    return [Prompt(n, tuple(ids), "", (), "") for n, ids in enumerate(sides.prompts[:count])]


def our_sampler(sides: Sides, tokens: int) -> Sampler:
    loaded = sides.loaded
    return Sampler(
        loaded.transformer,
        loaded.vocab,
        TextOf(sides.text_ids),
        group_size=GROUP,
        max_new_tokens=tokens,
        max_prompt_len=PROMPT,
        max_images=0,
        num_slots=SLOTS,
    )


def our_rollouts(sides: Sides) -> Callable[[], float]:
    """Two groups of eight, as the training loop asks for them."""
    sampler, prompts = our_sampler(sides, NEW), asked(sides, SLOTS // GROUP)

    def once() -> float:
        start = time.perf_counter()
        groups = sampler.sample(prompts, seed=0, step=0)
        elapsed = time.perf_counter() - start
        drawn = [len(rollout.token_ids) for group in groups for rollout in group.rollouts]
        assert drawn == [NEW] * SLOTS
        return sum(drawn) / elapsed

    return once


def their_rollouts(sides: Sides) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        return_sequences(sides, sides.prompts[: SLOTS // GROUP], NEW)
        return SLOTS * NEW / (time.perf_counter() - start)

    return once


def our_ragged(sides: Sides) -> Callable[[], float]:
    """Eight groups of eight through 16 slots; every rollout ends at a length of its own."""
    wanted = wanted_tokens()
    engine = sides.engine(SLOTS)

    def once() -> float:
        start = time.perf_counter()
        engine.refresh()
        sequences = [
            sequence
            for place, tokens in enumerate(wanted)
            for sequence in engine.add_request(
                sides.prompts[place // GROUP], sides.params(tokens, place), request_id=f"group-{place // GROUP}"
            )
        ]
        while not engine.scheduler.is_idle:
            engine.step()
        elapsed = time.perf_counter() - start
        assert [len(sequence.response) for sequence in sequences] == wanted
        return sum(wanted) / elapsed

    return once


def their_ragged(sides: Sides) -> Callable[[], float]:
    """Two groups at a time, each batch as long as its longest rollout."""
    wanted = wanted_tokens()

    def once() -> float:
        start = time.perf_counter()
        for first in range(0, len(wanted), SLOTS):
            prompts = sides.prompts[first // GROUP : (first + SLOTS) // GROUP]
            return_sequences(sides, prompts, max(wanted[first : first + SLOTS]))
        return sum(wanted) / (time.perf_counter() - start)

    return once


def return_sequences(sides: Sides, prompts: Sequence[list[int]], tokens: int) -> None:
    """Theirs: eight samples of each prompt."""
    ids, vocab = torch.tensor(prompts), sides.loaded.vocab
    out = sides.peer.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        num_return_sequences=GROUP,
        do_sample=True,
        temperature=1.0,
        top_p=0.95,
        top_k=0,
        repetition_penalty=1.0,
        eos_token_id=vocab.eos_id,
        pad_token_id=vocab.pad_id,
        bos_token_id=vocab.bos_id,
    )
    assert out.shape == (len(prompts) * GROUP, PROMPT + tokens)


def _row(ours: Callable[[Sides], Callable[[], float]], peer: Callable[[Sides], Callable[[], float]]) -> Any:
    def measure(sides: Sides, *, rounds: int, threads: Sequence[int]) -> Row:
        return compare(ours(sides), peer(sides), unit="tokens/s", more_is_better=True, rounds=rounds, threads=threads)

    return measure


ROWS: dict[str, Callable[..., Row]] = {
    "rollouts_equal16": _row(our_rollouts, their_rollouts),
    "rollouts_ragged64": _row(our_ragged, their_ragged),
}
