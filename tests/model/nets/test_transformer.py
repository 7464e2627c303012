"""The forward against transformers' and itself: cached, packed, dense."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import load_checkpoint
from model.config import TransformerConfig
from model.nets.attention import CausalAttention, PackedAttention, PackedLayout, causal_sdpa
from model.nets.decode_step import DecodeStep
from model.nets.kv_cache import DecodeAttention, KVCache, PrefillAttention
from model.nets.page_cache import PageCache
from model.nets.transformer import Transformer
from model.nets.window_attention import WindowAttention
from tests.tiny import make_tiny_checkpoint

CONFIG = TransformerConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=512,
)


def a_transformer(config: TransformerConfig = CONFIG, *, scale: float = 4.0) -> Transformer:
    transformer = Transformer(config)
    transformer.init_weights(3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.mul_(scale).add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return transformer


def some_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def random_config(rng: random.Random) -> TransformerConfig:
    heads, dim = rng.choice((2, 4, 8)), rng.choice((4, 8, 16))
    kv_heads = rng.choice([count for count in (1, 2, 4, 8) if heads % count == 0])
    swin_norm, per_head = rng.random() < 0.3, rng.random() < 0.5
    return TransformerConfig(
        300,
        heads * dim,
        48,
        rng.randint(1, 3),
        heads,
        kv_heads,
        dim,
        256,
        swin_norm=swin_norm,
        qk_norm_per_head=per_head,
    )


@pytest.mark.parametrize(("swin_norm", "as_on_a_gpu"), [(False, False), (False, True), (True, False)])
def test_invariant_1_cached_forward_equals_uncached(swin_norm: bool, as_on_a_gpu: bool) -> None:
    transformer = a_transformer(dataclasses.replace(CONFIG, swin_norm=swin_norm)).requires_grad_(False).double()
    ids, prompt = some_ids(300), 40
    whole = transformer(ids[None], torch.arange(300)[None], CausalAttention())[0]
    cache = KVCache(CONFIG, 6, 512, dtype=torch.float64)
    if as_on_a_gpu:
        cache.keys, cache.keys_turned = torch.zeros_like(cache.values), False
    decode = DecodeAttention(cache, groups=2)
    transformer(ids[:prompt], torch.arange(prompt), PrefillAttention(cache, 2))
    cache.copy(2, 0, prompt)
    cache.write_rows(1, cache.export(0, prompt))
    for slot in range(3):
        decode.open(slot, prompt)
    for position in range(prompt, 300):
        decode.begin(torch.full((3,), position), position + 1)
        hidden = transformer(ids[position].expand(3), torch.full((3,), position), decode)
        for row in hidden:
            torch.testing.assert_close(row, whole[position], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("swin_norm", [False, True])
@pytest.mark.parametrize("as_on_a_gpu", [False, True])
def test_invariant_1_windows_equal_the_uncached_forward(num_kv_heads: int, swin_norm: bool, as_on_a_gpu: bool) -> None:
    config = dataclasses.replace(CONFIG, num_kv_heads=num_kv_heads, swin_norm=swin_norm)
    transformer = a_transformer(config).requires_grad_(False).double()
    groups, total, rng = config.num_heads // num_kv_heads, 200, random.Random(num_kv_heads)
    cache = KVCache(config, 5, total, dtype=torch.float64)
    if as_on_a_gpu:
        cache.keys, cache.keys_turned = torch.zeros_like(cache.values), False
    windows, decode = WindowAttention(cache, groups=groups), DecodeAttention(cache, groups=groups)
    ids = [some_ids(total, row) for row in range(4)]
    whole = [transformer(one[None], torch.arange(total)[None], CausalAttention())[0] for one in ids]
    done = [1, 20, 63, 64]
    for row, count in enumerate(done):
        transformer(ids[row][:count], torch.arange(count), PrefillAttention(cache, row))
        decode.open(row, count)
    for _ in range(12):
        widths = [rng.randint(1, 9) for _ in done]
        kept = [rng.randint(1, width) for width in widths]
        fed = [ids[row][done[row] : done[row] + width].clone() for row, width in enumerate(widths)]
        for one, keep in zip(fed, kept, strict=True):
            one[keep:] = rng.randrange(config.vocab_size)  # wrong guesses, whose rows are overwritten later
        positions = windows.begin(done, widths)
        hidden = transformer(torch.cat(fed), positions, windows).split(widths)
        for row, keep in enumerate(kept):
            expected = whole[row][done[row] : done[row] + keep]
            torch.testing.assert_close(hidden[row][:keep], expected, atol=1e-5, rtol=1e-5)
            decode.open_more(row, done[row], done[row] + keep)
            done[row] += keep
        decode.begin(torch.tensor(done), max(done) + 1)  # a step of one token a row in between
        now = torch.stack([ids[row][position] for row, position in enumerate(done)])
        hidden_rows = transformer(now, torch.tensor(done), decode)
        for row, position in enumerate(done):
            torch.testing.assert_close(hidden_rows[row], whole[row][position], atol=1e-5, rtol=1e-5)
        done = [position + 1 for position in done]


@pytest.mark.parametrize("seed", range(40))
def test_invariant_1_pages_equal_the_uncached_forward(seed: int) -> None:
    """Random shapes: prefills that share a beginning, windows with wrong guesses, and a row that ends in between."""
    rng = random.Random(seed)
    config, page = random_config(rng), rng.choice((1, 3, 8, 16))
    transformer, total, rows = a_transformer(config).requires_grad_(False).double(), 120, 4
    cache = PageCache(config, rows, total, num_pages=rows * 120 // page + rows, page=page, dtype=torch.float64)
    head = some_ids(total, seed)
    ids = [torch.cat([head[: rng.randint(0, 80)], some_ids(total, 100 + row)])[:total] for row in range(rows)]
    whole = [transformer(one[None], torch.arange(total)[None], CausalAttention())[0] for one in ids]
    done = [rng.randint(1, 70) for _ in ids]
    for row, count in enumerate(done):
        cache.prefill(row, ids[row][:count].tolist(), transformer)
    for number in range(8):
        widths = [rng.randint(1, 6) if number % 3 else 1 for _ in done]
        kept = [rng.randint(1, width) for width in widths]
        fed = [ids[row][done[row] : done[row] + width].tolist() for row, width in enumerate(widths)]
        guessed = [one[:keep] + [rng.randrange(300)] * (len(one) - keep) for one, keep in zip(fed, kept, strict=True)]
        assert all(cache.reserve(row, done[row] + width) for row, width in enumerate(widths))
        hidden = transformer(*cache.windows([token for one in guessed for token in one], done, widths)).split(widths)
        for row, keep in enumerate(kept):
            expected = whole[row][done[row] : done[row] + keep]
            torch.testing.assert_close(hidden[row][:keep], expected, atol=1e-5, rtol=1e-5)
            done[row] += keep
        if number == 4:  # the last row moves into the place of the first
            cache.move(len(done) - 1, 0, done[-1])
            for several in (ids, whole, done):
                several[0] = several.pop()  # type: ignore[attr-defined, index]


@pytest.mark.parametrize(("num_kv_heads", "per_head"), [(1, True), (2, False), (4, True)])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_decode_step_equals_the_forward(num_kv_heads: int, per_head: bool, rows: int) -> None:
    config = dataclasses.replace(CONFIG, num_kv_heads=num_kv_heads, qk_norm_per_head=per_head, rms_norm_eps=0.3)
    transformer = a_transformer(config, scale=2.0).requires_grad_(False)  # larger weights amplify fp32 rounding
    cache = KVCache(config, 5, 512)
    attention = DecodeAttention(cache, groups=config.num_heads // num_kv_heads)
    step, scale = DecodeStep(transformer), config.hidden_size**0.5
    folded = [
        dataclasses.replace(
            w,
            qkv=w.qkv * (w.input_norm * scale)[:, None],
            gate_up=w.gate_up * (w.post_norm * scale)[:, None],
            input_norm=None,
            post_norm=None,
        )
        for w in transformer.layer_weights()
        if w.input_norm is not None and w.post_norm is not None
    ]
    for length in (1, 70, 300):
        prefix = [length + 3 * row for row in range(rows)]
        for row, count in enumerate(prefix):
            transformer(some_ids(count, row), torch.arange(count), PrefillAttention(cache, row))
            attention.open(row, count)
        ids, positions = some_ids(rows, 9), torch.tensor(prefix)
        attention.begin(positions, max(prefix) + 1)
        seen = step(ids, positions, attention, folded, transformer.model.norm.weight * scale).clone()
        expected = transformer(ids, positions, attention)
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            transformer(ids, positions, attention, weights=folded), expected, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("seed", range(40))
def test_invariant_2_forward_of_random_shapes_equals_transformers(seed: int) -> None:
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    rng = random.Random(seed)
    config = random_config(rng)
    ours = a_transformer(config, scale=2.0).requires_grad_(False)
    shape = ChameleonConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_position_embeddings,
        swin_norm=config.swin_norm,
        vocabulary_map={"<image>": 9, "IMGIMGAZ": 7},
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "resolution": 8},
        attn_implementation="eager",
    )
    theirs = ChameleonForConditionalGeneration(shape).eval()
    state = theirs.state_dict()
    # theirs has a norm for each head, even where ours has one for all
    given = {name: value.expand(state[name].shape) for name, value in ours.state_dict().items()}
    report = theirs.load_state_dict(given, strict=False)
    assert report.unexpected_keys == []
    assert all(key.startswith("model.vqmodel.") for key in report.missing_keys)
    ids = some_ids(rng.randint(20, 90), seed)[None]
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
    logits = ours.logits(ours(ids, torch.arange(ids.shape[1])[None], CausalAttention()))
    seen = expected > -1e30  # transformers masks the logits of image codes
    assert seen.sum(-1).unique().tolist() == [config.vocab_size - 1]
    torch.testing.assert_close(logits[seen], expected[seen], atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.1, "weights large enough to expose mistakes"


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_packed_documents_equal_single_documents(num_kv_heads: int) -> None:
    transformer = a_transformer(dataclasses.replace(CONFIG, num_kv_heads=num_kv_heads)).double()
    lengths = [5, 70, 1, 33, 130, 70, 64]
    layout = PackedLayout.from_lengths(lengths)
    ids = some_ids(sum(lengths), 2)
    weights = torch.randn(sum(lengths), CONFIG.hidden_size, generator=torch.Generator().manual_seed(1)).double()
    packed = transformer(ids, layout.positions, PackedAttention(layout))
    (packed * weights).sum().backward()
    grads = {name: p.grad.clone() for name, p in transformer.named_parameters() if p.grad is not None}
    transformer.zero_grad()
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = transformer(ids[None, part], torch.arange(length)[None], CausalAttention())[0]
        torch.testing.assert_close(packed[part], alone, atol=3e-5, rtol=1e-4)
        (alone * weights[part]).sum().backward()
        start += length
    for name, parameter in transformer.named_parameters():
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(grads[name], parameter.grad, atol=1e-4 * scale, rtol=1e-3, msg=name)


def test_attention_backward_equals_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 150, 4, 8), (2, 150, 2, 8), (2, 150, 2, 8))
    q, k, v = (torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes)
    weights = torch.randn(shapes[0], dtype=torch.float64, generator=generator)
    ours = torch.autograd.grad((causal_sdpa(q, k, v) * weights).sum(), (q, k, v))
    scores = torch.einsum("bthk,bshk->bhts", q, k.repeat_interleave(2, 2)) * 8**-0.5
    scores = scores.masked_fill(torch.ones(150, 150).triu(1).bool(), float("-inf"))
    out = torch.einsum("bhts,bshk->bthk", scores.softmax(-1), v.repeat_interleave(2, 2))
    for a, b in zip(ours, torch.autograd.grad((out * weights).sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_parameter_names_match_hf_checkpoints(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "tiny")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    names = {name for name in index if not name.startswith("model.vqmodel.")}
    assert set(load_checkpoint(folder).transformer.state_dict()) == names


def test_seed_fixes_the_initial_weights() -> None:
    one, two = Transformer(CONFIG), Transformer(CONFIG)
    one.init_weights(5)
    two.init_weights(5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    two.init_weights(6)
    assert not torch.equal(one.lm_head.weight, two.lm_head.weight)
