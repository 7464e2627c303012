"""Sequences in pages: more of them than whole contexts would fit, and a shared beginning computed once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.engine import Engine
from model.engine.sequence import Judge, SamplingParams, Status
from model.nets.page_cache import PageCache
from model.paging import CHUNK
from tests.near_ties import assert_equal_up_to_near_tie

PAGE, CONTEXT = 16, 512


class SumOfCodes:
    """A verifier that prefers large codes."""

    def about(self, prompt: Sequence[int], response: Sequence[int]) -> Judge:
        return lambda drawn: [float(sum(codes)) for codes in drawn]


def a_prompt(loaded: LoadedCheckpoint, seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [loaded.vocab.bos_id, *rng.choices(loaded.vocab.text_ids, k=length - 1)]


def engine_with(loaded: LoadedCheckpoint, pages: int, **options: int) -> Engine:
    shape = (loaded.transformer, loaded.vocab, loaded.template)
    return Engine(*shape, **{"num_slots": 16, "num_pages": pages, "page": PAGE, **options})


def test_sequences_wait_for_pages_and_lose_no_token(loaded: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest gives way, and the oldest never does."""
    prompts = [a_prompt(loaded, seed, 20 + 9 * seed) for seed in range(12)]
    params = [SamplingParams(temperature=1.0, seed=seed, max_new_tokens=120) for seed in range(12)]
    engine = engine_with(loaded, CONTEXT // PAGE, admissions_per_step=12)
    gave_way: list[tuple[int, list[int]]] = []
    remove = engine._remove

    def noted(sequence, status):  # type: ignore[no-untyped-def]
        if status is Status.WAITING:
            gave_way.append((sequence.admission, [s.admission for s in engine.scheduler.running]))
        remove(sequence, status)

    monkeypatch.setattr(engine, "_remove", noted)
    together = engine.generate(prompts, params)
    assert len(gave_way) > 3
    assert all(one == max(running) and one != min(running) for one, running in gave_way)
    for prompt, one, answer in zip(prompts, params, together, strict=True):
        (alone,) = Engine(loaded.transformer, loaded.vocab, loaded.template).generate([prompt], one)
        assert_equal_up_to_near_tie(loaded, prompt, one, alone, answer)
    assert isinstance(engine.cache, PageCache)
    assert engine.cache.num_free == CONTEXT // PAGE


def test_short_sequences_run_at_once_where_one_context_fits(loaded: LoadedCheckpoint) -> None:
    engine = engine_with(loaded, CONTEXT // PAGE)
    for seed in range(10):
        params = SamplingParams(temperature=1.0, seed=seed, max_new_tokens=20)
        engine.add_request(a_prompt(loaded, seed, 12), params, request_id=str(seed))
    for _ in range(5):
        engine.step()
    assert engine.num_running == 10


def test_long_prompt_is_not_overtaken(loaded: LoadedCheckpoint) -> None:
    engine = engine_with(loaded, CONTEXT // PAGE)
    short = SamplingParams(temperature=1.0, seed=1, max_new_tokens=40)
    for name, length in (("a", 200), ("b", 400), ("c", 10)):
        engine.add_request(a_prompt(loaded, len(name), length), short, request_id=name)
    engine.step()
    assert [s.request_id for s in engine.scheduler.running] == ["a"]
    order = []
    while not engine.scheduler.is_idle:
        order += [output.request_id for output in engine.step() if output.finished_by]
    assert order[0] == "a"


def test_running_sequences_wait_for_a_part_of_a_prompt_at_a_time(loaded: LoadedCheckpoint) -> None:
    engine = engine_with(loaded, 3 * CONTEXT // PAGE, admissions_per_step=4)
    params = SamplingParams(temperature=1.0, seed=3, max_new_tokens=60)
    prompts = {name: a_prompt(loaded, len(name), 10 + 190 * len(name)) for name in ("a", "bb")}
    engine.add_request(a_prompt(loaded, 9, 12), SamplingParams(seed=1, max_new_tokens=100), request_id="running")
    engine.step()
    widths, forward = list[int](), engine.transformer.forward

    def noted(ids, *rest, **more):  # type: ignore[no-untyped-def]
        widths.append(len(ids))
        return forward(ids, *rest, **more)

    engine.transformer.forward = noted
    sequences = [engine.add_request(prompt, params, request_id=name)[0] for name, prompt in prompts.items()]
    order = list[str]()
    try:
        while engine.num_waiting:
            before = len(widths)
            names = {output.request_id for output in engine.step()}
            assert "running" in names
            order += names - {"running", *order}
            assert sum(widths[before:]) <= 3 * CHUNK * PAGE, "a part each for those that start, and the step's tokens"
    finally:
        engine.transformer.forward = forward
    assert order == ["a", "bb"]
    while not engine.scheduler.is_idle:
        engine.step()
    for sequence, prompt in zip(sequences, prompts.values(), strict=True):
        (alone,) = Engine(loaded.transformer, loaded.vocab, loaded.template).generate([prompt], params)
        found = replace(alone, token_ids=sequence.response, logprobs=sequence.logprobs)
        assert_equal_up_to_near_tie(loaded, prompt, params, alone, found)


def test_prompt_that_is_given_up_leaves_its_pages(loaded: LoadedCheckpoint) -> None:
    engine = engine_with(loaded, 2 * CONTEXT // PAGE)
    engine.add_request(a_prompt(loaded, 9, 12), SamplingParams(seed=1, max_new_tokens=100), request_id="running")
    engine.step()
    engine.add_request(a_prompt(loaded, 1, 300), SamplingParams(), request_id="gone")
    for _ in range(3):
        engine.step()
    assert engine.abort("gone") == 1
    engine.abort("running")
    assert isinstance(engine.cache, PageCache)
    assert engine.cache.num_free == 2 * CONTEXT // PAGE


@pytest.mark.parametrize("images", [0, 3])
def test_same_beginning_is_computed_once(loaded: LoadedCheckpoint, images: int) -> None:
    """A prompt again, and one that differs at its end; with the tokens of an engine that has seen neither."""
    codes = [(k,) * loaded.vocab.codes_per_image for k in range(images)]
    head = [*loaded.template.prompt_ids("Where is the star?", codes), *a_prompt(loaded, 5, 150)[1:]]
    engine = engine_with(loaded, 64)
    params = SamplingParams(temperature=1.0, seed=2, max_new_tokens=30)
    computed = []
    for prompt in (head, head, [*head[:-3], *a_prompt(loaded, 6, 4)[1:]]):
        before = engine.transformer.forward
        lengths: list[int] = []

        def counted(ids, *rest, forward=before, lengths=lengths, **more):  # type: ignore[no-untyped-def]
            lengths.append(len(ids))
            return forward(ids, *rest, **more)

        engine.transformer.forward = counted
        try:
            (answer,) = engine.generate([prompt], params)
        finally:
            engine.transformer.forward = before
        computed.append(sum(length for length in lengths if length > 1))
        (alone,) = Engine(loaded.transformer, loaded.vocab, loaded.template).generate([prompt], params)
        assert_equal_up_to_near_tie(loaded, prompt, params, alone, answer)
    chunk = CHUNK * PAGE
    whole = (len(head) - 1) // chunk * chunk
    assert computed[0] - computed[1] == whole
    assert computed[2] - computed[1] <= chunk


def test_new_weights_forget_what_old_ones_computed(loaded: LoadedCheckpoint) -> None:
    transformer = type(loaded.transformer)(loaded.transformer.config)
    transformer.load_state_dict(loaded.transformer.state_dict())
    engine = Engine(transformer, loaded.vocab, loaded.template, num_pages=64, page=PAGE)
    prompt, params = a_prompt(loaded, 1, 200), SamplingParams(max_new_tokens=20)
    engine.generate([prompt], params)
    transformer.model.layers[0].self_attn.v_proj.weight.data.mul_(-3.0)
    engine.refresh()
    (after,) = engine.generate([prompt], params)
    (fresh,) = Engine(transformer, loaded.vocab, loaded.template).generate([prompt], params)
    assert after.token_ids == fresh.token_ids


def test_nan_of_a_longer_sequence_spares_a_shorter_one(loaded: LoadedCheckpoint) -> None:
    """Rows with fewer pages are padded with pages of their own."""
    transformer = type(loaded.transformer)(loaded.transformer.config)
    transformer.load_state_dict(loaded.transformer.state_dict())
    poison, good = loaded.vocab.text_ids[7], a_prompt(loaded, 1, 4)
    assert poison not in good
    transformer.model.embed_tokens.weight.data[poison] = float("nan")
    engine = Engine(transformer, loaded.vocab, loaded.template, num_pages=64, page=PAGE)
    bad = [loaded.vocab.bos_id, poison, *a_prompt(loaded, 2, 40)[1:]]
    completions = engine.generate([bad, good], SamplingParams(max_new_tokens=5))
    assert [one.finish_reason == "error" for one in completions] == [True, False]


def test_candidates_share_the_pages_before_their_image(drawing_checkpoint: Path) -> None:
    loaded = load_checkpoint(drawing_checkpoint)
    prompt, count = a_prompt(loaded, 1, 200), loaded.vocab.codes_per_image
    params = SamplingParams(temperature=1.0, seed=3, max_new_tokens=count + 40, max_images=1, candidates=6)
    needed = -(-(201 + count) // PAGE) + 5 * (2 + count // PAGE)
    engine = engine_with(loaded, needed + 1, context_len=(needed + 1) * PAGE)
    assert needed < 3 * (201 // PAGE), "three copies of the prompt would not fit"
    (sequence,) = engine.add_request(
        prompt, params, request_id="a", resumed=[loaded.vocab.boi_id], verifier=SumOfCodes()
    )
    most = 0
    while not engine.scheduler.is_idle:
        engine.step()
        most = max(most, engine.num_running)
    assert most >= 4
    assert sequence.state.images_done == 1
    assert isinstance(engine.cache, PageCache)
    assert engine.cache.num_free == needed + 1


def test_forks_on_few_pages_lose_no_token(drawing_checkpoint: Path) -> None:
    loaded = load_checkpoint(drawing_checkpoint)
    prompts = [a_prompt(loaded, seed, 40 + 25 * seed) for seed in range(6)]
    params = [
        SamplingParams(temperature=1.0, seed=seed, max_new_tokens=110, max_images=2, candidates=3) for seed in range(6)
    ]
    tight = engine_with(loaded, CONTEXT // PAGE, context_len=CONTEXT, admissions_per_step=6)
    together = tight.generate(prompts, params, verifier=SumOfCodes())
    for prompt, one, answer in zip(prompts, params, together, strict=True):
        (alone,) = engine_with(loaded, 200).generate([prompt], one, verifier=SumOfCodes())
        assert_equal_up_to_near_tie(loaded, prompt, replace(one, candidates=1), alone, answer)
    assert isinstance(tight.cache, PageCache)
    assert tight.cache.num_free == CONTEXT // PAGE


@pytest.mark.parametrize("length", [400, 200], ids=["to start", "to grow"])
def test_held_pages_are_let_go_where_the_only_sequence_lacks_room(loaded: LoadedCheckpoint, length: int) -> None:
    engine = engine_with(loaded, CONTEXT // PAGE)
    engine.add_request(a_prompt(loaded, 9, 300), SamplingParams(), request_id="holds")
    engine.step()
    held = engine.cache.hold(0, 288)
    engine.abort("holds")
    prompt, params = a_prompt(loaded, 1, length), SamplingParams(temperature=1.0, seed=1, max_new_tokens=90)
    (answer,) = engine.generate([prompt], params)
    (alone,) = engine_with(loaded, 200).generate([prompt], params)
    assert_equal_up_to_near_tie(loaded, prompt, params, alone, answer)
    assert not held.is_whole
    assert isinstance(engine.cache, PageCache)
    assert engine.cache.num_free == CONTEXT // PAGE


def test_lost_page_is_an_error(loaded: LoadedCheckpoint) -> None:
    """Not an endless step: a fault in the counts must reach whoever runs the engine."""
    engine = engine_with(loaded, CONTEXT // PAGE)
    engine.add_request(a_prompt(loaded, 1, 400), SamplingParams(temperature=1.0), request_id="a")
    assert isinstance(engine.cache, PageCache)
    engine.step()
    engine.cache._free.clear()
    with pytest.raises(RuntimeError, match="no free pages"):
        [engine.step() for _ in range(2 * PAGE)]


def test_sequence_whose_rows_were_let_go_is_prepared_in_parts(drawing_checkpoint: Path) -> None:
    loaded = load_checkpoint(drawing_checkpoint)
    engine = engine_with(loaded, 200, admissions_per_step=1)
    engine.add_request(a_prompt(loaded, 2, 20), SamplingParams(max_new_tokens=200, max_images=0), request_id="other")
    params = SamplingParams(temperature=1.0, max_new_tokens=80, candidates=2)
    begun = [loaded.vocab.boi_id]
    engine.add_request(a_prompt(loaded, 1, 400), params, request_id="a", resumed=begun, verifier=SumOfCodes())
    while not any(sequence.fork for sequence in engine.scheduler.running):
        engine.step()
    engine.cache.let_go()
    engine.cache.forget()
    steps = 0
    while engine.num_waiting:
        engine.step()
        steps += 1
    assert steps >= 400 // (CHUNK * PAGE) - 1
