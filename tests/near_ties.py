"""Equality up to a near tie, which holds for two computations of one answer on every CPU.

Batches, caches and kernels round differently. In fp32 this changes a log-probability by less than `NEAR`, so both
computations choose the same tokens until a choice is within `NEAR` of changing. A plain forward pass over the whole
sequence (teacher forcing) verifies the log-probabilities and how close each choice was.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.phases import Legal, LegalIds
from model.engine.sequence import SamplingParams, sample_seed
from model.nets.transformer import CausalAttention
from model.nets.vq import VQModel

NEAR = 1e-4  # nats of a log-probability, probability mass, or squared distance to a code
LEVELS = 8  # of 256: maximum difference of images decoded from the same codes


@dataclass(frozen=True)
class Answer:
    """The output of one computation: tokens, what each was drawn from, and log-probabilities (None: unknown)."""

    tokens: list[int]
    legal: list[int]
    logprobs: list[float | None]

    @classmethod
    def of(cls, drawn: Any) -> Answer:
        """From a `Completion`, a `Rollout` or an engine's `Sequence`."""
        tokens = list(drawn.token_ids if hasattr(drawn, "token_ids") else drawn.response)
        legal = list(drawn.mask_bytes if hasattr(drawn, "mask_bytes") else drawn.legal)
        logprobs: list[float | None] = list(drawn.logprobs)
        resumed = getattr(drawn, "num_resumed", 0)
        return cls(tokens, legal, [None] * resumed + logprobs[resumed:])


def assert_equal_up_to_near_tie(
    loaded: LoadedCheckpoint, prompt: Sequence[int], params: SamplingParams, one: Any, other: Any, *, index: int = 0
) -> int:
    """Fails unless both answers are correct; returns how many tokens are equal (all, or those before a near tie).

    Args:
        loaded: the checkpoint with the weights in use.
        prompt: token ids.
        params: of the request, for sample `index` of its group.
        one: an `Answer`, or an argument of `Answer.of`.
        other: likewise.
        index: of the sample in its group.
    """
    answers = [a if isinstance(a, Answer) else Answer.of(a) for a in (one, other)]
    choices = [forced_choices(loaded, prompt, params, a, index=index) for a in answers]
    for answer, forced in zip(answers, choices, strict=True):
        for place, (logprob, (expected, _)) in enumerate(zip(answer.logprobs, forced, strict=True)):
            assert logprob is None or abs(logprob - expected) <= NEAR, f"token {place}: {logprob} for {expected}"
    first, second = (a.tokens for a in answers)
    same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if same is None:
        assert len(first) == len(second), "one answer ends where the other goes on"
        return len(first)
    margin = min(forced[same][1] for forced in choices)
    assert margin <= NEAR, f"token {same} is {first[same]} or {second[same]}, although the choice was {margin} away"
    return same


@torch.no_grad()
def forced_choices(
    loaded: LoadedCheckpoint, prompt: Sequence[int], params: SamplingParams, answer: Answer, *, index: int = 0
) -> list[tuple[float, float]]:
    """(log-probability, margin) of each token in one plain forward pass of the whole sequence."""
    if not answer.tokens:
        return []
    ids = torch.tensor([[*prompt, *answer.tokens[:-1]]])
    hidden = loaded.transformer(ids, torch.arange(ids.shape[1])[None], CausalAttention())[0, len(prompt) - 1 :]
    logits = loaded.transformer.logits(hidden).double()
    if params.temperature > 0:
        logits /= params.temperature
    columns = LegalIds.of(loaded.template, loaded.vocab)
    drawn_from = {
        Legal.TEXT: columns.text[:-1],
        Legal.TEXT_OR_IMAGE: columns.text,
        Legal.CODE: columns.codes,
    }
    rng, out = random.Random(sample_seed(params.seed, index)), []
    for row, token, byte in zip(logits, answer.tokens, answer.legal, strict=True):
        if byte == Legal.FORCED:
            out.append((0.0, 1.0))
            continue
        legal = drawn_from[Legal(byte)]
        logprobs = torch.log_softmax(row[list(legal)], -1)
        _, margin = choose(logprobs, params, rng)
        out.append((float(logprobs[legal.index(token)]), margin))
    return out


def choose(logprobs: Tensor, params: SamplingParams, rng: random.Random) -> tuple[int, float]:
    """The index chosen by log-probabilities [V] and the next random numbers, and its margin.

    The margin is in nats for greedy choices, otherwise in probability mass.
    """
    if params.temperature == 0:
        best = logprobs.topk(2)
        return int(best.indices[0]), float(best.values[0] - best.values[1])
    probs = logprobs.exp()
    edges = probs.cumsum(-1)
    draws = [rng.random() for _ in range(3)]
    margin = 1.0
    for draw in draws[:2]:
        index = int((edges <= draw).sum())
        margin = min(margin, float((edges - draw).abs().min()))
        if params.top_p == 1.0:
            return index, margin
        above, margin = _mass_above(probs, index, params.top_p, margin)
        if above < params.top_p:
            return index, margin
    sorted_probs, order = probs.sort(descending=True, stable=True)
    kept = sorted_probs.cumsum(-1)
    kept = kept[: int((kept < params.top_p).sum()) + 1]
    place = int((kept <= draws[2] * kept[-1]).sum())
    gaps = (kept - draws[2] * kept[-1]).abs()[:-1]
    neighbours = sorted_probs[max(0, place - 1) : place + 2].log().diff().abs()  # these could swap places
    return int(order[place]), min([margin, *gaps.tolist(), *neighbours.tolist()])


def _mass_above(probs: Tensor, index: int, top_p: float, margin: float) -> tuple[float, float]:
    """The mass of all likelier tokens, and its distance from another rejection decision."""
    chance = probs[index]
    surely = float(probs[probs > chance * (1 + NEAR)].sum())
    perhaps = float(probs[probs > chance * (1 - NEAR)].sum() - chance)
    if surely < top_p <= perhaps:
        margin = 0.0
    return float(probs[probs > chance].sum()), min(margin, abs(surely - top_p), abs(perhaps - top_p))


def assert_same_image(one: bytes, other: bytes) -> None:
    """Two PNGs of the same codes: the decoder rounds differently per batch, and more so in bf16."""
    mine, theirs = (np.asarray(Image.open(io.BytesIO(png)), np.int16) for png in (one, other))
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() <= LEVELS


@torch.no_grad()
def assert_same_codes(vq: VQModel, pixels: Tensor, one: Tensor, other: Tensor) -> None:
    """Codes [B, N] of pixels [B, 3, R, R] by two computations: equal, or equally near within `NEAR`."""
    assert one.shape == other.shape
    vectors, differ = vq.features(pixels), one != other
    gaps = [(vectors - vq.codebook[codes]).square().sum(-1) for codes in (one, other)]
    assert (gaps[0] - gaps[1]).abs()[differ].le(NEAR).all()
    assert differ.float().mean() < 0.05, "no more than a few can be near ties"
