"""An engine with quantised matrices is the engine of the restored weights: answers, analyses and judgements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.memory import needs_of
from model.config import ModelConfig
from model.engine.analysis import attention_to, likeliest, token_logprobs
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.engine.verifier import order_logprobs
from model.nets.quantised import QuantisedLinear, is_quantised
from model.nets.transformer import Transformer
from model.quantisation import QuantKind
from tests.model.spoil import change_json
from tests.near_ties import assert_equal_up_to_near_tie

KINDS: tuple[QuantKind, ...] = ("int8", "fp8")
FIRST = SamplingParams(temperature=1.0, top_p=0.9, seed=3, max_new_tokens=90)


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, drawing_checkpoint: Path) -> tuple[LoadedCheckpoint, LoadedCheckpoint]:
    """A checkpoint that was quantised as it was loaded, and a plain one with its restored weights."""
    quantised = load_checkpoint(drawing_checkpoint, quant=request.param)
    return quantised, restored(quantised)


def restored(loaded: LoadedCheckpoint) -> LoadedCheckpoint:
    state = dict(loaded.transformer.state_dict())
    for name, module in loaded.transformer.named_modules():
        if isinstance(module, QuantisedLinear):
            state[f"{name}.weight"] = module.weight.float() * state.pop(f"{name}.scale")
    transformer = Transformer(loaded.config.transformer).requires_grad_(False).eval()
    transformer.load_state_dict(state)
    return replace(loaded, transformer=transformer)


def engine_of(loaded: LoadedCheckpoint, *, speculation: int = 32) -> Engine:
    return Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=4, speculation=speculation)


def prompts_of(loaded: LoadedCheckpoint, count: int) -> list[list[int]]:
    codes = range(loaded.vocab.codes_per_image)
    images = [[(number + code) % loaded.vocab.num_codes for code in codes] for number in range(count)]
    return [loaded.template.prompt_ids(f"What is it? {n}", [image]) for n, image in enumerate(images)]


def test_matrices_take_a_byte_and_the_answers_are_those_of_the_restored_ones(
    both: tuple[LoadedCheckpoint, LoadedCheckpoint],
) -> None:
    """In a batch of four, alone, and without speculation; also after the parameters are freed."""
    quantised, plain = both
    prompts = prompts_of(plain, 4)
    params = [replace(FIRST, temperature=t, seed=n) for n, t in enumerate((0.0, 0.7, 1.0, 1.3))]
    expected = engine_of(plain).generate(prompts, params)
    found = engine_of(quantised).generate(prompts, params)
    one_a_pass = engine_of(quantised, speculation=0).generate(prompts, params)
    compared = 0
    for prompt, one, right, batched, single in zip(prompts, params, expected, found, one_a_pass, strict=True):
        (alone,) = engine_of(quantised).generate([prompt], one)
        compared += assert_equal_up_to_near_tie(plain, prompt, one, right, batched)
        for answer in (single, alone):
            assert_equal_up_to_near_tie(plain, prompt, one, batched, answer)
    assert compared > 100
    assert any(plain.vocab.boi_id in answer.token_ids for answer in found)


def test_analyses_and_judgements_are_those_of_the_restored_weights(
    both: tuple[LoadedCheckpoint, LoadedCheckpoint],
) -> None:
    engines = [engine_of(loaded) for loaded in both]
    plain = both[1]
    (prompt,) = prompts_of(plain, 1)
    (answer,) = engines[1].generate([prompt], FIRST)
    ids = answer.token_ids[:-1]
    hidden = range(3, 5)
    logprobs = [token_logprobs(engine, prompt, ids, FIRST, hidden=hidden) for engine in engines]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)
    weights = [attention_to(engine, [*prompt, *ids], [len(prompt), len(prompt) + 3]) for engine in engines]
    assert weights[0] == pytest.approx(weights[1], abs=1e-5)
    first, second = ([value for _, value in likeliest(engine, prompt, ids, FIRST, 5)] for engine in engines)
    assert first == pytest.approx(second, abs=1e-4)
    codes = [tuple(range(k, k + plain.vocab.codes_per_image)) for k in range(3)]
    judged = [
        order_logprobs(engine, plain.template, "What was done?", codes[0], codes[1:], ["turn it", "move it"])
        for engine in engines
    ]
    assert judged[0] == pytest.approx(judged[1], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_counted_bytes_are_those_of_the_engine(tiny_checkpoint: Path, kind: QuantKind, dtype: torch.dtype) -> None:
    """The parameters are freed as the engine copies them, and no matrix exists in another form."""
    loaded = load_checkpoint(tiny_checkpoint, dtype=dtype, quant=kind)
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=3, keep_parameters=False)
    left = [*loaded.transformer.parameters(), *loaded.transformer.buffers()]
    kept = (loaded.transformer.model.embed_tokens.weight, loaded.transformer.model.norm.weight)
    assert sum(tensor.nbytes for tensor in left) == sum(tensor.nbytes for tensor in kept)
    assert loaded.vq is not None
    held = engine.num_weight_bytes + sum(tensor.nbytes for tensor in loaded.vq.state_dict().values())
    needs = needs_of(tiny_checkpoint, width=dtype.itemsize, device="cpu", quant=kind)
    assert held <= needs.weights <= held * 1.02  # a few rows of the head are never drawn, and not kept
    assert needs.kv_per_token * 3 * engine.context_len == engine.cache.num_bytes
    (answer,) = engine.generate([loaded.template.prompt_ids("?", [])], FIRST)
    assert answer.finish_reason != "error"


def test_a_head_tied_to_the_embedding_is_quantised_and_the_embedding_is_not(folder: Path) -> None:
    config = ModelConfig.read(folder)
    assert not config.transformer.tie_word_embeddings
    untied = load_checkpoint(folder)
    drop_the_head(folder)
    tied = load_checkpoint(folder, quant="int8")
    head, embedding = tied.transformer.lm_head, tied.transformer.model.embed_tokens.weight
    assert isinstance(head, QuantisedLinear)
    assert torch.equal(embedding, untied.transformer.model.embed_tokens.weight)
    torch.testing.assert_close(head.weight * head.scale, embedding, rtol=0, atol=float(head.scale.max()) / 2)


def drop_the_head(folder: Path) -> None:
    from tests.model.spoil import change_lm

    change_json(folder, "config.json", tie_word_embeddings=True)
    change_lm(folder, lambda state: state.pop("lm_head.weight"))


def test_without_the_setting_nothing_is_quantised(tiny_checkpoint: Path) -> None:
    """So jobs, which load without it, train on the files' own weights."""
    loaded = load_checkpoint(tiny_checkpoint)
    assert not is_quantised(loaded.transformer)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.transformer.state_dict().values())
