"""Images with several candidates: which one goes on, and that nothing of the others remains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.analysis import token_logprobs
from model.engine.engine import Engine
from model.engine.sequence import Chosen, Completion, SamplingParams, SequenceOutput
from model.nets.page_cache import PageCache
from tests.model.engine.test_engine import a_prompt
from tests.near_ties import assert_equal_up_to_near_tie

PARAMS = SamplingParams(temperature=2.5, seed=5, max_new_tokens=120, max_images=3, candidates=4)
Score = Callable[[Sequence[Sequence[int]]], Sequence[float]]

pytestmark = pytest.mark.usefixtures("cache_kind")


@dataclass
class Scorer:
    """A verifier that judges by the codes alone."""

    score: Score

    def about(self, prompt: Sequence[int], response: Sequence[int]) -> Score:
        return self.score


FIRST = Scorer(lambda drawn: [0.0] * len(drawn))
LARGEST = Scorer(lambda drawn: [float(sum(codes)) for codes in drawn])


@pytest.fixture(scope="module")
def drawing(drawing_checkpoint: Path) -> LoadedCheckpoint:
    return load_checkpoint(drawing_checkpoint)


def an_engine(loaded: LoadedCheckpoint, slots: int = 16) -> Engine:
    return Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=slots)


def run(engine: Engine) -> list[SequenceOutput]:
    outputs = []
    while not engine.scheduler.is_idle:
        outputs += engine.step()
    return outputs


def assert_nothing_is_held(engine: Engine) -> None:
    if isinstance(engine.cache, PageCache):
        assert not engine.cache._held
        assert engine.cache.num_free == engine.cache.keys.shape[1]


def choices(outputs: list[SequenceOutput]) -> list[Chosen]:
    return [output.chosen for output in outputs if output.chosen is not None]


def complete(loaded: LoadedCheckpoint, prompt: list[int], params: SamplingParams, slots: int = 16) -> Completion:
    engine = an_engine(loaded, slots)
    (completion,) = engine.generate([prompt], params, verifier=LARGEST)
    assert_nothing_is_held(engine)
    return completion


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_first_candidate_is_what_is_drawn_without_candidates(drawing: LoadedCheckpoint, temperature: float) -> None:
    prompt, params = a_prompt(drawing, 1), replace(PARAMS, temperature=temperature, top_p=0.9)
    begun = [drawing.vocab.boi_id]
    answers = []
    for one in (params, replace(params, candidates=1)):
        engine = an_engine(drawing)
        (sequence,) = engine.add_request(prompt, one, request_id="a", resumed=begun, verifier=FIRST)
        run(engine)
        answers.append(sequence)
    assert_equal_up_to_near_tie(drawing, prompt, replace(params, candidates=1), *answers)


def test_best_candidate_goes_on_with_its_own_rows(drawing: LoadedCheckpoint) -> None:
    prompt, engine = a_prompt(drawing, 1), an_engine(drawing)
    (sequence,) = engine.add_request(prompt, PARAMS, request_id="a", verifier=LARGEST)
    outputs = run(engine)
    assert [output.token for output in outputs] == sequence.response
    assert [output.logprob for output in outputs] == sequence.logprobs
    assert len(sequence.response) == PARAMS.max_new_tokens, "only the chosen tokens count"
    found, count = choices(outputs), drawing.vocab.codes_per_image
    assert len(found) == 3
    assert any(chosen.index for chosen in found)
    for chosen in found:
        assert len(set(chosen.candidates)) > 1
        assert chosen.scores[chosen.index] == max(chosen.scores)
        place = next(i for i, output in enumerate(outputs) if output.chosen is chosen)
        assert tuple(sequence.response[place - count + 1 : place + 1]) == chosen.candidates[chosen.index]
    plain = token_logprobs(engine, prompt, sequence.response, PARAMS)
    assert sequence.logprobs == pytest.approx(plain, abs=1e-4)


def test_greedy_request_draws_different_candidates(drawing: LoadedCheckpoint) -> None:
    engine = an_engine(drawing)
    params = replace(PARAMS, temperature=0.0, max_new_tokens=60)
    engine.add_request(a_prompt(drawing, 1), params, request_id="a", resumed=[drawing.vocab.boi_id], verifier=LARGEST)
    (chosen, *_) = choices(run(engine))
    assert len(set(chosen.candidates)) > 1


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_choice_needs_no_free_slots(drawing: LoadedCheckpoint, slots: int) -> None:
    prompt = a_prompt(drawing, 1)
    alone, other = complete(drawing, prompt, PARAMS), complete(drawing, prompt, PARAMS, slots)
    assert alone.token_ids == other.token_ids
    assert alone.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_choice_does_not_depend_on_the_batch(drawing: LoadedCheckpoint) -> None:
    prompts = [a_prompt(drawing, seed, 10 + seed) for seed in range(6)]
    params = [replace(PARAMS, seed=seed, candidates=1 + seed % 4) for seed in range(6)]
    together = an_engine(drawing).generate(prompts, params, num_samples=2, verifier=LARGEST)
    for number, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        alone = complete(drawing, prompt, one)
        assert together[2 * number].token_ids == alone.token_ids
        assert together[2 * number + 1].token_ids != alone.token_ids


def test_abort_at_any_time_frees_every_slot(drawing: LoadedCheckpoint) -> None:
    engine, prompt = an_engine(drawing, 3), a_prompt(drawing, 1)
    reference = complete(drawing, prompt, PARAMS)
    for steps in range(1, 60):
        engine.add_request(prompt, PARAMS, request_id="a", verifier=LARGEST)
        for _ in range(steps):
            engine.step()
        assert engine.abort("a") == 1
        assert engine.scheduler.is_idle
        assert_nothing_is_held(engine)
    assert engine.generate([prompt], PARAMS, verifier=LARGEST)[0].token_ids == reference.token_ids


def test_reset_drops_candidates_that_wait(drawing: LoadedCheckpoint) -> None:
    engine = an_engine(drawing, 2)
    engine.add_request(a_prompt(drawing, 1), PARAMS, request_id="a", resumed=[drawing.vocab.boi_id], verifier=LARGEST)
    engine.step()
    assert engine.scheduler.waiting
    engine.reset()
    assert engine.scheduler.is_idle


def test_candidate_with_nan_is_left_out(drawing: LoadedCheckpoint) -> None:
    prompt, params = a_prompt(drawing, 1), replace(PARAMS, max_new_tokens=60, max_images=1)
    engine = an_engine(drawing)
    engine.add_request(prompt, params, request_id="a", resumed=[drawing.vocab.boi_id], verifier=FIRST)
    outputs = run(engine)
    ((first, *others),) = [chosen.candidates for chosen in choices(outputs)]
    used = {*prompt, *(output.token for output in outputs)}
    broken = next(code for codes in others for code in codes[:-1] if code not in used)
    transformer = type(drawing.transformer)(drawing.transformer.config)
    transformer.load_state_dict(drawing.transformer.state_dict())
    with torch.no_grad():
        transformer.model.embed_tokens.weight[broken] = math.nan
    engine = Engine(transformer, drawing.vocab, drawing.template)
    engine.add_request(prompt, params, request_id="a", resumed=[drawing.vocab.boi_id], verifier=FIRST)
    again = run(engine)
    assert [output.token for output in again] == [output.token for output in outputs]
    ((kept, *_),) = ([chosen.candidates for chosen in choices(again)],)
    assert kept == (first, *(codes for codes in others if broken not in codes[:-1]))


def test_unknown_score_is_the_worst(drawing: LoadedCheckpoint) -> None:
    engine = an_engine(drawing)
    worst = Scorer(lambda drawn: [math.nan, -5.0, -1.0, math.nan])
    engine.add_request(a_prompt(drawing, 1), PARAMS, request_id="a", resumed=[drawing.vocab.boi_id], verifier=worst)
    assert choices(run(engine))[0].index == 2


def test_candidates_need_a_verifier_and_have_a_limit(drawing: LoadedCheckpoint) -> None:
    with pytest.raises(ValueError, match="need a verifier"):
        an_engine(drawing).add_request(a_prompt(drawing, 1), PARAMS, request_id="a")
    for count in (0, 9):
        with pytest.raises(ValueError, match="between 1 and 8"):
            replace(PARAMS, candidates=count)
