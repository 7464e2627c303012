"""The engine core produces the naive loop's tokens in any batch, up to a near tie, and loses no slot."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.engine import Engine
from model.engine.phases import Legal
from model.engine.sequence import Completion, SamplingParams, sample_seed
from model.nets.slot_cache import SlotCache
from model.nets.transformer import CausalAttention
from tests.model.engine.naive import naive_generate
from tests.near_ties import Answer, assert_equal_up_to_near_tie

pytestmark = pytest.mark.usefixtures("cache_kind")


def a_prompt(loaded: LoadedCheckpoint, seed: int, length: int = 20) -> list[int]:
    rng = random.Random(seed)
    return [loaded.vocab.bos_id, *rng.choices(loaded.vocab.text_ids, k=length - 1)]


def run_alone(loaded: LoadedCheckpoint, prompt: list[int], params: SamplingParams, slots: int = 16) -> Completion:
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=slots)
    return engine.generate([prompt], params)[0]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0, max_new_tokens=60),
        SamplingParams(temperature=1.0, top_p=1.0, seed=7, max_new_tokens=80),
        SamplingParams(temperature=0.7, top_p=0.9, seed=11, max_new_tokens=80),
        SamplingParams(temperature=1.3, top_p=0.2, seed=5, max_new_tokens=60, max_images=1),
    ],
    ids=["greedy", "plain", "nucleus", "small-nucleus"],
)
def test_invariant_3_engine_equals_the_naive_loop(loaded: LoadedCheckpoint, params: SamplingParams) -> None:
    compared = 0
    for seed in range(4):
        prompt = a_prompt(loaded, seed, 15 + 9 * seed)
        naive = naive_generate(loaded, prompt, params, context=512)
        ours = run_alone(loaded, prompt, params)
        legal = list(ours.mask_bytes) + [Legal.TEXT] * max(0, len(naive.tokens) - len(ours.mask_bytes))
        theirs = Answer(naive.tokens, legal[: len(naive.tokens)], naive.logprobs)
        compared += assert_equal_up_to_near_tie(loaded, prompt, params, ours, theirs)
    assert compared > 60


@pytest.mark.parametrize("mates", [2, 3, 4, 16])
def test_invariant_4_tokens_are_independent_of_the_batch(loaded: LoadedCheckpoint, mates: int) -> None:
    params = [
        SamplingParams(temperature=(0.0, 1.0, 0.8)[i % 3], top_p=(1.0, 0.9)[i % 2], seed=i, max_new_tokens=40 + 13 * i)
        for i in range(mates)
    ]
    prompts = [a_prompt(loaded, i, 10 + 17 * i) for i in range(mates)]
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=16)
    together = engine.generate(prompts, params)
    for prompt, one, answer in zip(prompts, params, together, strict=True):
        assert_equal_up_to_near_tie(loaded, prompt, one, run_alone(loaded, prompt, one), answer)


def test_invariant_5_image_has_exactly_n_codes(loaded: LoadedCheckpoint) -> None:
    vocab = loaded.vocab
    count, images = vocab.codes_per_image, 0
    state = {key: value.clone() for key, value in loaded.transformer.state_dict().items()}
    for seed in range(6):
        head = torch.randn(state["lm_head.weight"].shape, generator=torch.Generator().manual_seed(seed)) * 3
        head[vocab.boi_id] = head[vocab.boi_id].abs() * 20 if seed % 2 else head[vocab.boi_id]
        transformer = type(loaded.transformer)(loaded.transformer.config)
        transformer.load_state_dict(state | {"lm_head.weight": head})
        engine = Engine(transformer, vocab, loaded.template, num_slots=8)
        limits = [(30 + 7 * i, i % 4) for i in range(16)]
        completions = engine.generate(
            [a_prompt(loaded, i) for i in range(16)],
            [
                SamplingParams(temperature=5.0, seed=i, max_new_tokens=tokens, max_images=most)
                for i, (tokens, most) in enumerate(limits)
            ],
        )
        legal_text = {*loaded.template.text_legal_ids(), vocab.boi_id}
        for completion, (tokens, most) in zip(completions, limits, strict=True):
            ids, i, drawn = completion.token_ids, 0, 0
            assert len(ids) <= tokens
            while i < len(ids):
                assert ids[i] in legal_text
                assert ids[i] != vocab.eos_id or i == len(ids) - 1
                if ids[i] != vocab.boi_id:
                    i += 1
                    continue
                drawn += 1
                assert tokens - i >= count + 2 + 32, "begin-image without room for the image and an answer"
                assert all(vocab.is_code(t) for t in ids[i + 1 : i + 1 + count])
                assert ids[i + 1 + count] == vocab.eoi_id
                assert completion.mask_bytes[i] == Legal.TEXT_OR_IMAGE
                assert set(completion.mask_bytes[i + 1 : i + 1 + count]) == {Legal.CODE}
                assert completion.mask_bytes[i + 1 + count] == Legal.FORCED
                i += count + 2
            assert drawn <= most
            images += drawn
    assert images > 50


def test_invariant_6_question_images_change_logits(loaded: LoadedCheckpoint) -> None:
    count, hidden = loaded.vocab.codes_per_image, []
    for codes in ((1,) * count, (2,) * count, None):
        ids = torch.tensor([loaded.template.prompt_ids("Where is the red star?", [codes])])
        positions = torch.arange(ids.shape[1])[None]
        hidden.append(loaded.transformer.logits(loaded.transformer(ids, positions, CausalAttention())[0, -1]))
    assert (hidden[0] - hidden[1]).abs().max() > 1e-3
    assert (hidden[0] - hidden[2]).abs().max() > 1e-3


def test_invariant_7_changed_weight_applies_after_refresh(loaded: LoadedCheckpoint) -> None:
    transformer = type(loaded.transformer)(loaded.transformer.config)
    transformer.load_state_dict(loaded.transformer.state_dict())
    engine = Engine(transformer, loaded.vocab, loaded.template)
    prompt, params = a_prompt(loaded, 1, 40), SamplingParams(temperature=0.0, max_new_tokens=30)
    before = engine.generate([prompt], params)[0].token_ids
    for parameter in (transformer.model.layers[0].self_attn.q_proj.weight, transformer.lm_head.weight):
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        assert engine.generate([prompt], params)[0].token_ids == before
        engine.refresh()
        after = engine.generate([prompt], params)[0].token_ids
        assert after != before
        before = after


def test_invariant_10_thousand_aborts_free_every_slot(engine: Engine, loaded: LoadedCheckpoint) -> None:
    rng = random.Random(0)
    params = SamplingParams(temperature=1.0, seed=1, max_new_tokens=50)
    reference = run_alone(loaded, a_prompt(loaded, 99), params)
    live: list[str] = []
    for number in range(1000):
        engine.add_request(a_prompt(loaded, number, 5), params, request_id=str(number), num_samples=1 + number % 2)
        live.append(str(number))
        if number % 3 == 0:
            engine.step()
        if len(live) > 12:
            assert engine.abort(live.pop(rng.randrange(len(live)))) <= 2
    for name in live:
        engine.abort(name)
    assert engine.scheduler.is_idle
    assert engine.step() == []
    after = engine.generate([a_prompt(loaded, 99)], params)[0]
    assert_equal_up_to_near_tie(loaded, a_prompt(loaded, 99), params, after, reference)


def test_group_shares_one_prefill(loaded: LoadedCheckpoint) -> None:
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=8)
    prompt = a_prompt(loaded, 4, 50)
    params = SamplingParams(temperature=1.0, seed=9, max_new_tokens=60)
    group = engine.generate([prompt], params, num_samples=8)
    if isinstance(engine.cache, SlotCache):  # in pages, whole chunks are shared, and there is none
        assert engine.num_prefills == 1
    assert len({tuple(c.token_ids) for c in group}) == 8
    for index, completion in enumerate(group):
        alone = run_alone(loaded, prompt, replace(params, seed=sample_seed(9, index)))
        assert_equal_up_to_near_tie(loaded, prompt, params, alone, completion, index=index)


def test_resumed_sequence_continues_identically(loaded: LoadedCheckpoint) -> None:
    prompt, params = a_prompt(loaded, 2, 30), SamplingParams(temperature=1.0, top_p=0.9, seed=3, max_new_tokens=60)
    whole = run_alone(loaded, prompt, params)
    for with_kv in (False, True):
        engine = Engine(loaded.transformer, loaded.vocab, loaded.template)
        (sequence,) = engine.add_request(prompt, params, request_id="a")
        for _ in range(25):
            engine.step()
        kv = engine.cache.export(sequence.slot, sequence.position) if with_kv else None
        engine.abort("a")
        tokens, draws = list(sequence.response), sequence.draws.count
        engine.add_request(a_prompt(loaded, 70), params, request_id="other")
        (resumed,) = engine.add_request(prompt, params, request_id="a", resumed=tokens, num_draws=draws, kv=kv)
        while engine.scheduler.find("a"):
            engine.step()
        assert_equal_up_to_near_tie(loaded, prompt, params, resumed, whole)


def test_nan_logits_end_only_their_sequence(loaded: LoadedCheckpoint) -> None:
    transformer = type(loaded.transformer)(loaded.transformer.config)
    transformer.load_state_dict(loaded.transformer.state_dict())
    good = a_prompt(loaded, 1, 30)
    params = SamplingParams(temperature=0.0, max_new_tokens=12)
    reference = Engine(transformer, loaded.vocab, loaded.template).generate([good], params)[0]
    poison = next(i for i in loaded.vocab.text_ids if i not in {*good, *reference.token_ids})
    with torch.no_grad():
        transformer.model.embed_tokens.weight[poison] = float("nan")
    engine = Engine(transformer, loaded.vocab, loaded.template, num_slots=4)
    bad = [*good[:10], poison, *good[10:]]
    completions = engine.generate([bad, good, bad, good, good], params)
    assert [c.finish_reason for c in completions] == ["error", reference.finish_reason] * 2 + [reference.finish_reason]
    clean = replace(loaded, transformer=transformer)
    for completion in (completions[1], completions[3], completions[4]):
        assert_equal_up_to_near_tie(clean, good, params, completion, reference)


def test_prompt_without_room_is_rejected(engine: Engine, loaded: LoadedCheckpoint) -> None:
    with pytest.raises(ValueError, match="512"):
        engine.add_request(a_prompt(loaded, 0, 512), SamplingParams(), request_id="long")
    with pytest.raises(ValueError, match="vocabulary"):
        engine.add_request([0, 10**6], SamplingParams(), request_id="strange")
    assert engine.scheduler.is_idle


def test_full_context_ends_with_length(engine: Engine, loaded: LoadedCheckpoint) -> None:
    prompt = a_prompt(loaded, 0, 500)
    completions = [engine.generate([prompt], SamplingParams(temperature=1.0, seed=seed))[0] for seed in range(5)]
    full = [completion for completion in completions if len(completion.token_ids) == 12]
    assert full
    assert {completion.finish_reason for completion in full if completion.token_ids[-1] != loaded.vocab.eos_id} == {
        "length"
    }
    assert all(completion.finish_reason == "stop" for completion in completions if completion not in full)
