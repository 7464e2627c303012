"""Log-probabilities of orders, against one pair at a time and a plain forward."""

from __future__ import annotations

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.verifier import order_logprobs
from model.nets.attention import CausalAttention
from model.text.template import ImagePart, TextPart

QUESTION = "What was done between the two images?"


def codes(loaded: LoadedCheckpoint, shift: int) -> tuple[int, ...]:
    return tuple((7 * i + shift) % 16 for i in range(loaded.vocab.codes_per_image))


def test_logprobs_are_those_of_a_plain_forward(loaded: LoadedCheckpoint) -> None:
    before, after, order = codes(loaded, 0), codes(loaded, 3), "Mark the red star."
    (found,) = order_logprobs(loaded.transformer, loaded.template, QUESTION, before, [after], [order])
    parts = [ImagePart(before), ImagePart(after), TextPart(QUESTION)]
    whole = loaded.template.render_parts(parts, [TextPart(order)])
    ids = torch.tensor([whole.ids])
    with torch.inference_mode():
        hidden = loaded.transformer(ids, torch.arange(len(whole.ids))[None], CausalAttention())
        logprobs = torch.log_softmax(loaded.transformer.logits(hidden), -1)
    expected = sum(logprobs[0, i - 1, whole.ids[i]].item() for i, learnt in enumerate(whole.loss_mask) if learnt)
    assert found == pytest.approx(expected, abs=1e-4)


def test_candidates_do_not_influence_each_other(loaded: LoadedCheckpoint) -> None:
    before, after = codes(loaded, 0), [codes(loaded, shift) for shift in (1, 2, 3)]
    orders = ["Mark it.", "Draw a box around the blue square.", "Zoom in."]
    together = order_logprobs(loaded.transformer, loaded.template, QUESTION, before, after, orders)
    alone = [
        order_logprobs(loaded.transformer, loaded.template, QUESTION, before, [one], [order])[0]
        for one, order in zip(after, orders, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together)) == 3


def test_nothing_to_judge_gives_nothing(loaded: LoadedCheckpoint) -> None:
    assert order_logprobs(loaded.transformer, loaded.template, QUESTION, codes(loaded, 0), [], []) == []
