"""Speculative drawing changes the number of forward passes, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.config import TransformerConfig
from model.engine.drafts import MOST_ROWS
from model.engine.engine import Engine
from model.engine.phases import Legal
from model.engine.sequence import SamplingParams, Sequence
from model.nets.transformer import Transformer
from tests.near_ties import Answer, assert_equal_up_to_near_tie
from tests.tiny import make_tiny_checkpoint

COUNT = 64  # codes of an image
FAVOURITES = 5  # codes that the weights prefer, so that guesses are often right


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    params: SamplingParams
    resumed: list[int]


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> LoadedCheckpoint:
    """A checkpoint of 64 codes an image, whose transformer each test replaces."""
    return load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("drafts") / "tiny", resolution=64))


def with_weights(loaded: LoadedCheckpoint, shape: TransformerConfig, seed: int, favour: float) -> LoadedCheckpoint:
    """Random weights of a shape; a few codes are likelier by about `favour` nats."""
    transformer = Transformer(shape).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        wide = "embed" in name or "head" in name
        scale = 0.3 if wide else 0.2 if "norm" in name else parameter.shape[-1] ** -0.5
        parameter.copy_(noise * scale + (1.0 if "norm" in name and not name.endswith("bias") else 0.0))
    transformer.model.embed_tokens.weight[:, 0] = 2.0
    for name, parameter in transformer.named_parameters():  # column 0 of the residual stream stays positive
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter[0] = 0.0
    transformer.model.norm.weight[0] = 1.0
    codes = list(loaded.vocab.code_ids)
    transformer.lm_head.weight[codes, 0] = 0.0
    transformer.lm_head.weight[codes[:FAVOURITES], 0] = favour
    return replace(loaded, transformer=transformer)


def a_shape(loaded: LoadedCheckpoint, rng: random.Random) -> TransformerConfig:
    heads = rng.choice([2, 4])
    return replace(
        loaded.config.transformer,
        num_layers=rng.choice([1, 2]),
        num_heads=heads,
        num_kv_heads=rng.choice([1, 2, heads]),
        hidden_size=16 * heads,
        intermediate_size=rng.choice([40, 96]),
        swin_norm=rng.random() < 0.25,
    )


def a_request(loaded: LoadedCheckpoint, rng: random.Random, seed: int) -> Request:
    """A prompt with or without an image, and a response that has just begun an image, or is about to."""
    vocab = loaded.vocab
    codes = [vocab.code_to_id(rng.randrange(FAVOURITES + 2)) for _ in range(COUNT)]
    image = [vocab.boi_id, *codes, vocab.eoi_id] if rng.random() < 0.7 else []
    text = rng.choices(loaded.vocab.text_ids, k=rng.randint(1, 30))
    begun = [vocab.boi_id, *rng.choices(codes, k=rng.choice([0, 0, 1, 30, 63]))] if rng.random() < 0.8 else []
    params = SamplingParams(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.7]),
        top_p=rng.choice([1.0, 0.9, 0.4]),
        seed=seed,
        max_new_tokens=len(begun) + rng.choice([3, 40, 70, 120]),
    )
    return Request([vocab.bos_id, *image, *text], params, begun)


def run(engine: Engine, requests: Seq[Request]) -> list[Sequence]:
    sequences = [
        engine.add_request(r.prompt, r.params, request_id=str(number), resumed=r.resumed)[0]
        for number, r in enumerate(requests)
    ]
    while not engine.scheduler.is_idle:
        engine.step()
    return sequences


def assert_same(loaded: LoadedCheckpoint, request: Request, one: Sequence, other: Sequence) -> int:
    """Fails unless what follows the given tokens is equal up to a near tie; returns how many tokens are."""
    given = len(request.resumed)
    answers = [Answer(s.response[given:], list(s.legal[given:]), list(s.logprobs[given:])) for s in (one, other)]
    if one.num_resumed > given:
        answers[0].logprobs[: one.num_resumed - given] = [None] * (one.num_resumed - given)
    return assert_equal_up_to_near_tie(loaded, [*request.prompt, *request.resumed], request.params, *answers)


@pytest.mark.usefixtures("cache_kind")
@pytest.mark.parametrize("seed", range(44))
def test_guesses_change_no_token(drawing: LoadedCheckpoint, seed: int) -> None:
    rng = random.Random(seed)
    loaded = with_weights(drawing, a_shape(drawing, rng), seed, favour=rng.choice([0.0, 2.0, 4.0]))
    requests = [a_request(loaded, rng, seed=n) for n in range(rng.choice([1, 2, 5]))]
    window = rng.choice([2, 3, 8, 32, 1000])
    engines = [Engine(loaded.transformer, loaded.vocab, loaded.template, speculation=w) for w in (0, window)]
    for request, one, other in zip(requests, *(run(engine, requests) for engine in engines), strict=True):
        same = assert_same(loaded, request, one, other)
        if same == len(one.response) - len(request.resumed):
            assert one.draws.count == other.draws.count
            assert one.draws.peek() == other.draws.peek()
            assert one.legal == other.legal


def copying(loaded: LoadedCheckpoint) -> LoadedCheckpoint:
    """Weights that draw the first code everywhere."""
    weights = with_weights(loaded, loaded.config.transformer, 0, favour=0.0)
    weights.transformer.lm_head.weight[weights.vocab.code_to_id(0), 0] = 100.0
    return weights


def one_image(loaded: LoadedCheckpoint, code: int | None, *, speculation: int, mates: int = 0) -> Sequence:
    """The sequence of a greedy image after one that has `code` everywhere, or after none."""
    vocab = loaded.vocab
    before = [] if code is None else [vocab.boi_id, *[vocab.code_to_id(code)] * COUNT, vocab.eoi_id]
    params = SamplingParams(max_new_tokens=COUNT + 2)
    request = Request([vocab.bos_id, *before], params, [vocab.boi_id])
    engine = Engine(
        loaded.transformer,
        vocab,
        loaded.template,
        num_slots=mates + 1,
        admissions_per_step=mates + 1,
        speculation=speculation,
    )
    return run(engine, [request] + [replace(request, prompt=[vocab.bos_id])] * mates)[0]


@pytest.mark.parametrize(
    ("code", "speculation", "mates", "passes"),
    [
        (0, 0, 0, COUNT),
        (0, 1, 0, COUNT),
        (0, 2, 0, COUNT // 2),
        (0, 8, 0, COUNT // 8),
        (0, 32, 0, 3),  # windows of 16 and 32, and the 16 codes that are left
        (0, 1000, 0, 3),
        (0, 32, MOST_ROWS - 1, 3),
        (0, 32, MOST_ROWS, COUNT),
        (None, 32, 0, 4),  # nothing to guess the first code by; then the code before
        (7, 32, 0, 6),  # every guess is wrong once; what a pass drew after the first wrong one is guessed next
    ],
)
def test_passes_of_an_image(
    drawing: LoadedCheckpoint, code: int | None, speculation: int, mates: int, passes: int
) -> None:
    drawn = one_image(copying(drawing), code, speculation=speculation, mates=mates)
    assert drawn.response[1 : 1 + COUNT] == [drawing.vocab.code_to_id(0)] * COUNT
    assert drawn.passes == passes


@pytest.mark.usefixtures("cache_kind")
def test_outputs_of_a_pass_end_it_once(drawing: LoadedCheckpoint) -> None:
    rng = random.Random(5)
    loaded = with_weights(drawing, drawing.config.transformer, 5, favour=3.0)
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template)
    requests = [a_request(loaded, rng, seed=n) for n in range(6)]
    for number, r in enumerate(requests):
        engine.add_request(r.prompt, r.params, request_id=str(number), resumed=r.resumed)
    bursts = 0
    while not engine.scheduler.is_idle:
        outputs = engine.step()
        for name in {o.request_id for o in outputs}:
            own = [o for o in outputs if o.request_id == name]
            assert [o.ends_pass for o in own] == [False] * (len(own) - 1) + [True]
            assert [o.finished_by for o in own[:-1]] == [None] * (len(own) - 1)
            assert len(own) == 1 or {o.legal for o in own} == {Legal.CODE}
            bursts += len(own) > 1
    assert bursts > 5


@pytest.mark.usefixtures("cache_kind")
@pytest.mark.parametrize("with_kv", [False, True])
def test_stopped_in_an_image_continues_identically(drawing: LoadedCheckpoint, with_kv: bool) -> None:
    loaded = with_weights(drawing, drawing.config.transformer, 3, favour=3.0)
    request = a_request(loaded, random.Random(3), seed=9)
    request = replace(
        request,
        resumed=[loaded.vocab.boi_id],
        params=SamplingParams(temperature=1.0, top_p=0.95, seed=9, max_new_tokens=100),
    )
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template)
    (whole,) = run(engine, [request])
    (sequence,) = engine.add_request(request.prompt, request.params, request_id="a", resumed=request.resumed)
    while sequence.state.codes_done < 20:
        engine.step()
    assert sequence.state.legal is Legal.CODE
    kv = engine.cache.export(sequence.slot, sequence.position) if with_kv else None
    engine.abort("a")
    (resumed,) = engine.add_request(
        request.prompt,
        request.params,
        request_id="a",
        resumed=sequence.response,
        num_draws=sequence.draws.count,
        kv=kv,
    )
    while not engine.scheduler.is_idle:
        engine.step()
    assert_same(loaded, request, resumed, whole)
    assert resumed.draws.count == whole.draws.count


@pytest.mark.usefixtures("cache_kind")
def test_nan_within_a_window_ends_only_its_sequence(drawing: LoadedCheckpoint) -> None:
    loaded = with_weights(drawing, drawing.config.transformer, 4, favour=3.0)
    vocab, params = loaded.vocab, SamplingParams(temperature=1.0, seed=2, max_new_tokens=80)
    prompt = [vocab.bos_id, vocab.boi_id, *[vocab.code_to_id(0)] * COUNT, vocab.eoi_id]
    rows = [Request(prompt, replace(params, seed=seed), [vocab.boi_id]) for seed in range(4)]
    whole = run(Engine(loaded.transformer, vocab, loaded.template), rows)
    poison = next(
        c for c in whole[0].response[5:60] if any(c not in [*prompt, *s.response] for s in whole)
    )  # NaN follows it
    loaded.transformer.model.embed_tokens.weight[poison] = float("nan")
    drawn = [run(Engine(loaded.transformer, vocab, loaded.template, speculation=window), rows) for window in (0, 2, 32)]
    assert {len(s.response) < len(w.response) for s, w in zip(drawn[0], whole, strict=True)} == {True, False}
    for one, *others in zip(*drawn, strict=True):
        assert poison not in one.response[:-1]
        assert [other.response for other in others] == [one.response] * 2


@pytest.mark.usefixtures("cache_kind")
def test_negative_window_is_rejected(drawing: LoadedCheckpoint) -> None:
    with pytest.raises(ValueError, match="negative"):
        Engine(drawing.transformer, drawing.vocab, drawing.template, speculation=-1)
