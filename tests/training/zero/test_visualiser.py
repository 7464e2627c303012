"""Bootstrapping: the base's context, candidate selection, rejections, and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.phases import Legal
from model.engine.sequence import SamplingParams
from model.engine.verifier import order_logprobs
from model.images.codes import decode_codes
from model.seeds import mixed_seed
from model.text.instructions import as_instruction
from tests.near_ties import Answer, assert_equal_up_to_near_tie
from training.data.chains import TextChain
from training.spec.hyperparameters import ZeroHyperparameters
from training.spec.spec import UniTasksData
from training.zero.chain_sources import read_chains
from training.zero.report import bootstrap_report, contact_sheet, correlation, pairwise_distance
from training.zero.visualiser import (
    Candidate,
    DrawnChain,
    DrawnStep,
    Visualiser,
    best,
    leave_out_the_unsure,
)

SETTINGS: dict[str, Any] = {"candidates": 3, "batch_size": 4, "max_steps": 2, "copied_share": 1.0}
DATA = {"source": "unitasks", "num_samples": 6, "first_seed": 20_000_000}


def chains(count: int = 4, **settings: Any) -> list[TextChain]:
    given = ZeroHyperparameters.model_validate({**SETTINGS, **settings})
    data = UniTasksData(num_samples=count, first_seed=20_000_000)
    return [c for c in read_chains(data, 0, given) if isinstance(c, TextChain)]


def visualiser(tiny: LoadedCheckpoint, **settings: Any) -> Visualiser:
    return Visualiser(tiny, ZeroHyperparameters.model_validate({**SETTINGS, **settings}), seed=1)


def candidate(
    codes: Sequence[int],
    *,
    score: float = 0.5,
    logprob: float = -1.0,
    flat: bool = False,
    copied: bool = False,
    right: bool | None = None,
) -> Candidate:
    return Candidate(tuple(codes), 1.0, 0.5, score, logprob, flat, copied, right)


def test_base_sees_images_and_steps_so_far(
    tiny: LoadedCheckpoint,
) -> None:
    vocab, codes, drawn = tiny.vocab, tuple(range(16)), tuple(range(16, 32))
    one = DrawnChain("c", "natural", "Where?", "left", codes, ("I look.", "There."), [])
    one.steps.append(DrawnStep("I look.", (candidate(drawn),), 0))
    prompt, begun = visualiser(tiny)._context(one, 1)
    assert prompt == tiny.template.prompt_ids("Where?", [codes])
    assert begun[-1] == vocab.boi_id
    assert begun.count(vocab.boi_id) == 2
    parser = tiny.template.parser()
    for token in begun[:-1]:
        parser.feed(token)
    parser.finish()
    assert parser.steps == [("I look.", drawn), ("There.", None)]

    prompt, begun = visualiser(tiny, context="picture")._context(one, 1)
    assert prompt == [vocab.bos_id, *vocab.image_ids(drawn), *tiny.tokenizer.encode("There.")]
    assert begun == [vocab.boi_id]
    one.texts = ("I look.", "There I draw a box.")
    bos, image, order = [vocab.bos_id], vocab.image_ids(drawn), tiny.tokenizer.encode("There draw a box.")
    assert visualiser(tiny, context="instruction")._context(one, 1)[0] == [*bos, *image, *order]
    both = visualiser(tiny, context="instruction", pictures_shown=2)._context(one, 1)[0]
    assert both == [*bos, *vocab.image_ids(codes), *image, *order]


def test_tagged_base_draws_inside_its_brackets(tiny_tagged_checkpoint: Path) -> None:
    tagged = load_checkpoint(tiny_tagged_checkpoint)
    one = DrawnChain("c", "natural", "Where?", "left", None, ("I look.", "There."), [])
    one.steps.append(DrawnStep("I look.", (candidate(range(16)),), 0))
    _, begun = visualiser(tagged)._context(one, 1)
    assert begun[-1] == tagged.vocab.boi_id
    rest = [*tagged.vocab.image_ids(range(20, 36))[1:], tagged.vocab.thought_close_id, tagged.vocab.answer_open_id]
    ends = [*tagged.tokenizer.encode("left"), tagged.vocab.answer_close_id, tagged.vocab.eos_id]
    parser = tagged.template.parser()
    for token in [*begun, *rest, *ends]:
        assert token is not None
        parser.feed(token)
    parser.finish()
    assert parser.well_formed
    assert parser.steps == [("I look.", tuple(range(16))), ("There.", tuple(range(20, 36)))]


def test_candidate_logprobs_match_the_model(tiny: LoadedCheckpoint) -> None:
    """A candidate's log-probability equals that of a plain forward of the whole sequence."""
    drawer = visualiser(tiny, temperature=1.0, top_p=1.0)
    (drawn,) = drawer.draw(chains(1, max_steps=1))
    prompt, begun = drawer._context(DrawnChain("", "", drawn.question, "", drawn.question_codes, drawn.texts, []), 0)
    found = drawn.steps[0].candidates
    assert len({c.codes for c in found}) == 3
    for one in found:
        ids = torch.tensor([*prompt, *begun, *map(tiny.vocab.code_to_id, one.codes)])
        hidden = tiny.transformer(ids, torch.arange(len(ids)), _causal(tiny, len(ids)))
        logits = tiny.transformer.logits(hidden)[:, torch.tensor(tiny.vocab.code_ids)]
        logprobs = logits.log_softmax(-1)
        start = len(prompt) + len(begun) - 1
        expected = sum(float(logprobs[start + i, code]) for i, code in enumerate(one.codes)) / len(one.codes)
        assert one.logprob == pytest.approx(expected, abs=1e-4)


def _causal(tiny: LoadedCheckpoint, length: int) -> Any:
    from model.nets.transformer import PackedAttention, PackedLayout

    return PackedAttention(PackedLayout.from_lengths([length]))


def assert_same_drawings(drawer: Visualiser, one: DrawnChain, other: DrawnChain) -> None:
    """Assert equal candidates up to a near tie, after which the next steps see another image."""
    assert one.texts == other.texts
    begun_alike = replace(one, steps=[])
    for k, (mine, theirs) in enumerate(zip(one.steps, other.steps, strict=True)):
        assert len(mine.candidates) == len(theirs.candidates)
        prompt, begun = drawer._context(begun_alike, k)
        settings = drawer.settings
        params = SamplingParams(settings.temperature, settings.top_p, mixed_seed(drawer.seed, one.chain_id, k))
        for index, (a, b) in enumerate(zip(mine.candidates, theirs.candidates, strict=True)):
            assert_equal_up_to_near_tie(
                drawer.loaded, [*prompt, *begun], params, *(as_answer(drawer, c) for c in (a, b)), index=index
            )
            if a.codes == b.codes:
                assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
                assert replace(a, logprob=0.0) == replace(b, logprob=0.0)
        if mine.image != theirs.image:
            return
        begun_alike.steps.append(mine)


def as_answer(drawer: Visualiser, one: Candidate) -> Answer:
    tokens = [drawer.loaded.vocab.code_to_id(code) for code in one.codes]
    return Answer(tokens, [Legal.CODE] * len(tokens), [None] * len(tokens))


def test_drawing_depends_on_chain_and_seed(tiny: LoadedCheckpoint) -> None:
    given = chains(4)
    together = visualiser(tiny).draw(given)
    alone = [visualiser(tiny).draw([chain])[0] for chain in given]
    again = visualiser(tiny, batch_size=2).draw(given)
    for one, *others in zip(together, alone, again, strict=True):
        for other in others:
            assert_same_drawings(visualiser(tiny), one, other)
    assert Visualiser(tiny, visualiser(tiny).settings, seed=2).draw(given)[0].steps != together[0].steps


def test_best_valid_candidate_is_kept(tiny: LoadedCheckpoint) -> None:
    flat = candidate([1] * 4, score=0.0, flat=True)
    copied = candidate([2] * 4, score=0.0, logprob=-0.1, copied=True)
    smooth, likely = candidate([3] * 4, score=0.8, logprob=-2.0), candidate([4] * 4, score=0.6, logprob=-0.5)
    found = [flat, likely, smooth, copied]
    assert best(found, "perception") == 2
    assert best(found, "likelihood") == 1
    assert best(found, "first") is None  # the first is flat, and the others are ignored
    assert best([likely, smooth], "first") == 0
    assert best([flat, copied], "perception") is None
    assert best([candidate([5] * 4, score=0.8, logprob=-1.0), smooth], "perception") == 0  # ties: the likelier one
    with pytest.raises(ValueError, match="unknown score"):
        best(found, "beauty")


def test_verifier_keeps_the_candidate_that_fits_its_order(tiny: LoadedCheckpoint) -> None:
    with pytest.raises(ValueError, match="no verifier"):
        visualiser(tiny, score="verifier")
    judge = replace(tiny, manifest=replace(tiny.manifest, verifier="What was done?"))
    drawer, later = visualiser(judge, score="verifier"), 0
    for chain in drawer.draw(chains(3, score="verifier")):
        before = chain.question_codes
        for step in chain.steps:
            assert before is not None
            codes, orders = [c.codes for c in step.candidates], [as_instruction(step.text)] * len(step.candidates)
            scores = order_logprobs(drawer.engine, judge.template, "What was done?", before, codes, orders)
            assert [c.verified for c in step.candidates] == pytest.approx(scores, abs=1e-4)
            if step.kept is not None:
                assert scores[step.kept] == max(s for s, c in zip(scores, step.candidates, strict=True) if c.accepted)
                later += step.kept > 0
            before = step.image or before
    assert later, "not always the first"


class Drawn:
    """A finished sequence of the engine, as needed to read its candidates."""

    def __init__(self, tiny: LoadedCheckpoint, codes: Sequence[int]) -> None:
        self.num_resumed = 0
        self.response = [tiny.vocab.code_to_id(c) for c in codes]
        self.logprobs = [-1.0] * len(codes)


def test_blank_drawing_is_rejected(tiny: LoadedCheckpoint) -> None:
    blank, nearly, rich = (7,) * 16, (7,) * 9 + tuple(range(20, 27)), tuple(range(16))
    made = visualiser(tiny)._candidates([Drawn(tiny, c) for c in (blank, nearly, rich)], None)  # type: ignore[misc]
    assert made[0].perception == 1.0  # 1 / (1 + 0 / tau): it would win without the guard
    assert [c.flat for c in made] == [True, True, False]
    assert [c.score for c in made[:2]] == [0.0, 0.0]
    assert best(made, "perception") == 2


def test_copied_image_is_rejected(tiny: LoadedCheckpoint) -> None:
    codes = tuple(range(16))
    drawer, drawn = visualiser(tiny), [Drawn(tiny, codes)]
    assert drawer._candidates(drawn, codes)[0].copied  # type: ignore[arg-type]
    assert not drawer._candidates(drawn, None)[0].copied  # type: ignore[arg-type]
    assert not drawer._candidates(drawn, (*codes[:-1], 20))[0].copied  # type: ignore[arg-type]  # one code is a change


def test_step_without_image_drops_or_stays_text(tiny: LoadedCheckpoint) -> None:
    given = chains(2)
    dropped = visualiser(tiny, copied_share=0.0).draw(given)  # everything counts as a copy
    assert [one.rejected for one in dropped] == ["no_picture"] * 2
    assert [len(one.steps) for one in dropped] == [1, 1]  # nothing more is drawn for a rejected trace
    kept = visualiser(tiny, copied_share=0.0, on_rejected="text").draw(given)
    assert [one.rejected for one in kept] == [None, None]
    assert all(step.image is None for one in kept for step in one.steps)


def test_too_long_chain_is_not_drawn(tiny: LoadedCheckpoint) -> None:
    long = TextChain("long", "natural", "Where? " * 300, None, ("I look.",), "left")
    empty = TextChain("empty", "natural", "Where?", None, (), "left")
    drawn = visualiser(tiny).draw([long, *chains(1), empty])
    assert [one.rejected for one in drawn] == ["too_long", None, "no_steps"]


def test_drawn_chain_round_trip(tiny: LoadedCheckpoint) -> None:
    for one in visualiser(tiny).draw(chains(2)):
        assert DrawnChain.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_most_confident_chains_per_kind_are_kept() -> None:
    def chain(name: str, slice_: str, *logprobs: float, rejected: str | None = None, kind: str = "") -> DrawnChain:
        steps = [DrawnStep("s", (candidate(range(16), logprob=p),), 0) for p in logprobs]
        return DrawnChain(name, slice_, "q", "x", None, ("s",) * len(steps), steps, rejected, kind)

    drawn = [
        chain("sure", "natural", -0.1, -0.2),
        chain("one bad step", "natural", -0.01, -2.0),
        chain("bad", "natural", -1.0, -1.0),
        chain("middling", "natural", -0.5),
        chain("other slice", "structured", -5.0),
        chain("other kind", "natural", -5.0, kind="count"),
        chain("gone", "natural", -0.01, rejected="no_picture"),
    ]
    leave_out_the_unsure(drawn, 0.5)
    assert {one.chain_id: one.rejected for one in drawn} == {
        "sure": None,
        "middling": None,
        "bad": "unsure",
        "one bad step": "unsure",
        "other slice": None,
        "other kind": None,
        "gone": "no_picture",
    }
    words_alone = [chain("no picture at all", "natural"), chain("a picture", "natural", -9.0)]
    leave_out_the_unsure(words_alone, 0.5)
    assert [one.rejected for one in words_alone] == ["unsure", None]
    everything = [chain("a", "natural", -9.0), chain("b", "natural", -1.0)]
    leave_out_the_unsure(everything, 1.0)
    assert all(one.rejected is None for one in everything)


def test_pairwise_distance_by_hand() -> None:
    # pairs: (a, b) differ at 1 of 4, (a, c) at 4 of 4, (b, c) at 4 of 4: mean 9/12
    assert pairwise_distance([(0, 0, 0, 0), (0, 0, 0, 1), (2, 2, 2, 2)]) == pytest.approx(0.75)
    assert pairwise_distance([(1, 2), (1, 2)]) == 0.0
    assert pairwise_distance([(1, 2)]) is None


def test_report_counts_kept_and_rejected_images(tiny: LoadedCheckpoint) -> None:
    assert tiny.manifest.perception is not None
    grid = tuple(range(16))
    other = (*grid[:8], *range(20, 28))
    good = DrawnChain(
        "a",
        "natural",
        "q",
        "x",
        grid,
        ("s", "t"),
        [
            DrawnStep("s", (candidate(other, right=True), candidate(grid, score=0.0, copied=True, right=False)), 0),
            DrawnStep("t", (candidate([1] * 16, score=0.0, flat=True, right=False), candidate(grid, right=False)), 1),
        ],
    )
    bad = DrawnChain("b", "structured", "q", "x", None, ("s",), [DrawnStep("s", (), None, 2)], "no_picture")
    report = bootstrap_report([good, bad], tiny.manifest.perception)
    assert (report["chains"], report["accepted"], report["rejected"]) == (2, 1, {"no_picture": 1})
    assert report["rejected_chains"] == ["b"]
    assert (report["pictures_drawn"], report["pictures_kept"], report["pictures_broken"]) == (4, 2, 2)
    assert report["candidates_rejected"] == 2
    assert (report["blank_share"], report["copied_share"]) == (0.25, 0.25)
    assert report["diversity"]["kept"] == 0.5
    assert report["diversity"]["candidates_of_a_step"] == pytest.approx((0.5 + 15 / 16) / 2)
    assert report["diversity"]["from_picture_before"] == 0.5  # half of the codes, twice
    assert sum(report["tv"]["counts"]) == 4
    assert report["checkers"] == {
        "judged": 4,
        "candidates_right": 0.25,
        "kept_right": 0.5,
        "traces_right": 0.5,
        "score_correlation": None,
        "confidence_correlation": None,
    }
    assert report["by_slice"]["natural"] == {"chains": 1, "accepted": 1, "kept_right": 0.5}


def test_correlation_is_pearsons() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert correlation([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0.0)
    assert correlation([1, 1], [0, 1]) is None


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean distance of two images, in levels of 256."""
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


def test_contact_sheet_shows_previous_and_candidates(tiny: LoadedCheckpoint) -> None:
    assert tiny.vq is not None
    drawn = visualiser(tiny).draw(chains(3))
    sheet = contact_sheet(tiny.vq, drawn, max_steps=4)
    assert sheet.width > 4 * 96
    before = decode_codes(tiny.vq, [drawn[0].question_codes or ()])[0].resize((92, 92), Image.Resampling.NEAREST)
    where = min(range(sheet.height - 92), key=lambda y: difference(sheet.crop((8, y, 100, y + 92)), before))
    assert difference(sheet.crop((8, where, 100, where + 92)), before) < 2.0  # another batch rounds differently
    kept = drawn[0].steps[0].kept
    assert kept is not None
    left = 6 + (1 + kept) * 102
    assert sheet.getpixel((left, where - 2)) == (0, 140, 60)  # its frame is green
    assert contact_sheet(tiny.vq, []).height > 0
