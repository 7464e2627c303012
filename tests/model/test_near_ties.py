"""The tests' notion of equal answers: it only forgives a near tie."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from tests.near_ties import NEAR, Answer, assert_equal_up_to_near_tie, choose

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12, max_images=0)


@pytest.fixture
def loaded(tiny_checkpoint: Path) -> LoadedCheckpoint:
    return load_checkpoint(tiny_checkpoint)


def answer_of(loaded: LoadedCheckpoint, prompt: list[int]) -> Answer:
    return Answer.of(Engine(loaded.transformer, loaded.vocab, loaded.template).generate([prompt], GREEDY)[0])


def test_other_tokens_and_logprobs_are_caught(loaded: LoadedCheckpoint) -> None:
    prompt = loaded.template.prompt_ids("Where is it?", [])
    right = answer_of(loaded, prompt)
    assert assert_equal_up_to_near_tie(loaded, prompt, GREEDY, right, right) == len(right.tokens)
    other = next(i for i in loaded.vocab.text_ids if i != right.tokens[3] and i != loaded.vocab.eos_id)
    swapped = replace(right, tokens=[*right.tokens[:3], other, *right.tokens[4:]], logprobs=[None] * len(right.tokens))
    with pytest.raises(AssertionError, match="token 3"):
        assert_equal_up_to_near_tie(loaded, prompt, GREEDY, right, swapped)
    off = replace(right, logprobs=[right.logprobs[0], right.logprobs[1] - 3 * NEAR, *right.logprobs[2:]])  # type: ignore[operator]
    with pytest.raises(AssertionError, match="token 1"):
        assert_equal_up_to_near_tie(loaded, prompt, GREEDY, right, off)
    cut = Answer(right.tokens[:-1], right.legal[:-1], right.logprobs[:-1])
    with pytest.raises(AssertionError, match="one answer ends"):
        assert_equal_up_to_near_tie(loaded, prompt, GREEDY, right, cut)


def test_near_tie_is_forgiven(loaded: LoadedCheckpoint) -> None:
    """Two tokens with the same output row: if one is the best, both are."""
    prompt = loaded.template.prompt_ids("Where is it?", [])
    first = answer_of(loaded, prompt).tokens[0]
    twin = next(i for i in loaded.vocab.text_ids if i not in (first, loaded.vocab.eos_id))
    with torch.no_grad():
        loaded.transformer.lm_head.weight[twin] = loaded.transformer.lm_head.weight[first]
    right = answer_of(loaded, prompt)
    swapped = replace(right, tokens=[twin if right.tokens[0] == first else first, *right.tokens[1:]])
    unknown = [Answer(a.tokens, a.legal, [None] * len(a.tokens)) for a in (right, swapped)]
    assert assert_equal_up_to_near_tie(loaded, prompt, GREEDY, *unknown) == 0


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
def test_margins_bound_the_tokens(top_p: float) -> None:
    """A token whose margin exceeds the distribution's shift stays the same."""
    rng, params = random.Random(0), SamplingParams(temperature=1.0, top_p=top_p)
    clear = 0
    for seed in range(300):
        logits = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        logprobs = logits.log_softmax(-1)
        nudged = (logprobs + 1e-6 * torch.randn(12, generator=torch.Generator().manual_seed(seed + 1))).log_softmax(-1)
        draws = rng.random()
        chosen, margin = choose(logprobs, params, random.Random(draws))
        again, _ = choose(nudged, params, random.Random(draws))
        if margin > 1e-5:
            clear += 1
            assert again == chosen
    assert clear > 200
