"""Log-probabilities of orders, against one pair at a time and a plain forward."""

from __future__ import annotations

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.engine import Engine
from model.engine.verifier import OrderVerifier, order_logprobs
from model.nets.attention import CausalAttention
from model.text.template import ImagePart, StepPart, TextPart

QUESTION = "What was done between the two images?"


def codes(loaded: LoadedCheckpoint, shift: int) -> tuple[int, ...]:
    return tuple((7 * i + shift) % 16 for i in range(loaded.vocab.codes_per_image))


def test_logprobs_are_those_of_a_plain_forward(loaded: LoadedCheckpoint, engine: Engine) -> None:
    before, after, order = codes(loaded, 0), codes(loaded, 3), "Mark the red star."
    (found,) = order_logprobs(engine, loaded.template, QUESTION, before, [after], [order])
    parts = [ImagePart(before), ImagePart(after), TextPart(QUESTION)]
    whole = loaded.template.render_parts(parts, [TextPart(order)])
    ids = torch.tensor([whole.ids])
    with torch.inference_mode():
        hidden = loaded.transformer(ids, torch.arange(len(whole.ids))[None], CausalAttention())
        legal = loaded.template.text_legal_ids()
        logprobs = torch.log_softmax(loaded.transformer.logits(hidden)[0, :, legal], -1)
    places = [i for i, learnt in enumerate(whole.loss_mask) if learnt]
    expected = sum(logprobs[i - 1, legal.index(whole.ids[i])].item() for i in places)
    assert found == pytest.approx(expected, abs=1e-4)


def test_candidates_do_not_influence_each_other(loaded: LoadedCheckpoint, engine: Engine) -> None:
    before, after = codes(loaded, 0), [codes(loaded, shift) for shift in (1, 2, 3)]
    orders = ["Mark it.", "Draw a box around the blue square.", "Zoom in."]
    together = order_logprobs(engine, loaded.template, QUESTION, before, after, orders)
    alone = [
        order_logprobs(engine, loaded.template, QUESTION, before, [one], [order])[0]
        for one, order in zip(after, orders, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together)) == 3


def test_nothing_to_judge_gives_nothing(loaded: LoadedCheckpoint, engine: Engine) -> None:
    assert order_logprobs(engine, loaded.template, QUESTION, codes(loaded, 0), [], []) == []


def begun(loaded: LoadedCheckpoint, text: str, drawn: list[tuple[str, int]]) -> list[int]:
    """A response up to the begin-image of its last step, after steps with images."""
    steps = [StepPart(said, codes(loaded, shift)) for said, shift in drawn]
    return [*loaded.template.steps_ids([*steps, StepPart(text)]), loaded.vocab.boi_id]


@pytest.mark.parametrize("drawn", [[], [("I zoom in.", 9)]], ids=["question's image", "drawn image"])
def test_judge_compares_with_the_newest_image(
    loaded: LoadedCheckpoint, engine: Engine, drawn: list[tuple[str, int]]
) -> None:
    verifier = OrderVerifier(engine, loaded.template, QUESTION, loaded.template)
    prompt = loaded.template.prompt_ids("Where is it?", [codes(loaded, 5), codes(loaded, 0)])
    judge = verifier.about(prompt, begun(loaded, "Now I mark the red star.", drawn))
    assert judge is not None
    after = [codes(loaded, 1), codes(loaded, 2)]
    before, orders = codes(loaded, 9 if drawn else 0), ["Mark the red star."] * 2
    expected = order_logprobs(engine, loaded.template, QUESTION, before, after, orders)
    assert judge([loaded.vocab.image_ids(c)[1:-1] for c in after]) == pytest.approx(expected, abs=1e-4)


def test_nothing_is_judged_without_a_text_or_an_image_before(loaded: LoadedCheckpoint, engine: Engine) -> None:
    verifier = OrderVerifier(engine, loaded.template, QUESTION, loaded.template)
    template = loaded.template
    seen = template.prompt_ids("Where is it?", [codes(loaded, 0)])
    assert verifier.about(seen, [loaded.vocab.boi_id]) is None
    assert verifier.about(template.prompt_ids("Draw it.", []), begun(loaded, "I draw it.", [])) is None
    with pytest.raises(ValueError, match="no verifier"):
        OrderVerifier(engine, template, "", template)
