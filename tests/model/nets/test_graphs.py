"""Passes of fixed shape: padding changes nothing, a pass depends on no data, and a graph that errs is not used."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import TransformerConfig
from model.nets import fused, graphs
from model.nets.graphs import Graphs, _stream
from model.nets.page_cache import PageCache
from model.nets.transformer import Transformer, rotate
from model.paging import GRAPH_SIZES, graph_sizes

CONFIG = TransformerConfig(
    vocab_size=64,
    hidden_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=128,
    max_position_embeddings=512,
)


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    made = Transformer(CONFIG).eval().requires_grad_(False)
    made.init_weights(0)
    return made


def cache_of(sizes: tuple[int, ...], num_pages: int = 32, **place: Any) -> PageCache:
    return PageCache(CONFIG, 5, 512, num_pages=num_pages, page=16, sizes=sizes, **place)


def passes(cache: PageCache, transformer: Transformer, windows: list[list[int]]) -> Iterator[Tensor]:
    """Hidden states of windows of these widths over three sequences, which grow by each."""
    starts = [7, 40, 21]
    for slot, length in enumerate(starts):
        cache.prefill(slot, [slot + 3 * i % 60 for i in range(length)], transformer)
    for number, widths in enumerate(windows):
        for slot, width in enumerate(widths):
            assert cache.reserve(slot, starts[slot] + width)
        ids = [(number + 7 * i) % 64 for i in range(sum(widths))]
        yield transformer(*cache.windows(ids, starts, widths))[: len(ids)]
        starts = [start + width for start, width in zip(starts, widths, strict=True)]


@torch.inference_mode()
def test_padding_changes_nothing_and_passes_keep_their_memory(transformer: Transformer) -> None:
    windows = [[1, 1, 1], [9, 1, 4], [1, 30, 1], [1, 1, 1], [2, 9, 3]]
    plain, padded = cache_of(()), cache_of((4, 16, 32))
    for one, other in zip(passes(plain, transformer, windows), passes(padded, transformer, windows), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    shapes = {len(ids): {t.data_ptr() for t in (ids, positions)} for ids, positions, _ in padded.fixed_passes()}
    again = {len(ids): {t.data_ptr() for t in (ids, positions)} for ids, positions, _ in padded.fixed_passes()}
    assert sorted(shapes) == [4, 16, 32]
    assert shapes == again
    for slot in range(3):
        padded.free(slot)
    assert padded.num_free == 32, "padding takes no page"


@torch.inference_mode()
def test_without_a_free_page_a_pass_is_not_padded(transformer: Transformer) -> None:
    cache = cache_of((4, 16))
    cache.prefill(0, list(range(60)), transformer)
    assert cache.reserve(0, 512)
    ids, _, attention = cache.windows([5, 6], [60], [2])
    assert (len(ids), attention.is_fixed) == (2, False)
    cache.free(0)
    assert cache.reserve(0, 2)
    ids, _, attention = cache.windows([5, 6], [0], [2])
    assert (len(ids), attention.is_fixed) == (4, True)


def test_sizes_cover_what_passes_need() -> None:
    assert graph_sizes(16, 512) == (1, 2, 4, 8, 16)
    assert graph_sizes(17, 512)[-1] == 24
    assert graph_sizes(10_000, 4_096) == GRAPH_SIZES
    assert graph_sizes(10_000, 100)[-1] == 96


class Calls(TorchDispatchMode):
    """Counts the operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if call.namespace != "prim" and not call.is_view:
            self.seen[str(call)] += 1
        return call(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("size", [4, 32])
def test_fixed_pass_reads_nothing_back(size: int, kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CUDA device that does not exist, where reading a number would fail: the whole forward, with the kernel."""
    monkeypatch.setattr(fused, "works", lambda *_: True)
    transformer = Transformer(CONFIG)
    with FakeTensorMode(), torch.no_grad():
        for module in transformer.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                moved = torch.empty(weight.shape, device="cuda", dtype=torch.bfloat16)
                setattr(module, name, nn.Parameter(moved, requires_grad=False))
        transformer._rope_table = torch.empty(512, 32, device="cuda", dtype=torch.complex64)
        weights = transformer.layer_weights()
        cache = cache_of((size,), device="cuda", dtype=torch.bfloat16)
        cache.reserve(0, 40)
        ids, positions, attention = cache.windows([1, 2, 3], [30], [3])
        with Calls() as calls, fused.kernels(kernels):
            hidden = transformer(ids, positions, attention, weights=weights)
    assert (hidden.shape, hidden.device.type, hidden.dtype) == ((size, 256), "cuda", torch.bfloat16)
    assert calls.seen["torch_attn._varlen_attn.default"] == CONFIG.num_layers
    moves = [name for name in calls.seen if "local_scalar" in name or "nonzero" in name]
    assert not moves
    if kernels:
        besides = 3  # embedding, rotation, and the last norm
        assert calls.seen.total() - besides == 10 * CONFIG.num_layers, calls.seen


class FakeGraph:
    """Stands in for a CUDA graph: replaying runs the pass again, into the memory of its first result."""

    def __init__(self) -> None:
        self.replays = 0

    def pool(self) -> str:
        return "pool"

    def replay(self) -> None:
        self.replays += 1
        self.hidden.copy_(self.work())


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What CUDA's calls for graphs have made."""
    state: dict[str, Any] = {"made": []}

    @contextmanager
    def capture(graph: FakeGraph, *, stream: int, **_options: Any) -> Iterator[None]:
        state["made"].append(graph)
        state.setdefault("priorities", []).append(stream)
        state["capturing"] = graph
        try:
            yield
        finally:
            state["capturing"] = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", lambda priority: priority)
    _stream.cache_clear()
    yield state
    _stream.cache_clear()


def counted(transformer: Transformer, state: dict[str, Any], spoil: str = "") -> Any:
    def run(ids: Tensor, positions: Tensor, attention: Any) -> Tensor:
        state["runs"] = state.get("runs", 0) + 1
        hidden = transformer(ids, positions, attention)
        if (graph := state.get("capturing")) is not None:
            if spoil == "raise":
                raise RuntimeError("operation not permitted when stream is capturing")
            graph.work = lambda: transformer(ids, positions, attention) + (1.0 if spoil == "differ" else 0.0)
            graph.hidden = hidden
        return hidden

    return run


@torch.inference_mode()
def test_each_shape_is_captured_once_and_replayed(transformer: Transformer, fake_cuda: dict[str, Any]) -> None:
    cache, plain = cache_of((4, 16)), cache_of(())
    run = Graphs(counted(transformer, fake_cuda), torch.device("cuda"))
    windows = [[1, 1, 1], [2, 1, 1], [5, 1, 1], [1, 1, 1], [1, 9, 1]]
    expected = list(passes(plain, transformer, windows))
    found = []
    original = cache.windows

    def through(*given: Any) -> Any:
        hidden = run(*original(*given))
        found.append(hidden[: len(given[0])].clone())
        return original(*given)

    cache.windows = through  # type: ignore[method-assign]
    list(passes(cache, transformer, windows))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected, strict=True))
    assert [graph.replays for graph in fake_cuda["made"]] == [3, 2], "one check, then a replay a pass"
    assert fake_cuda["runs"] == 4, "two a shape"
    assert set(fake_cuda["priorities"]) == {-1}, "before the images' stream"
    assert cache.reserve(0, 102)
    prompt = cache._attention.begin([1, 2], cache._tables[:1], [100], [2])
    run(*prompt, cache._attention)
    assert fake_cuda["runs"] == 5, "other shapes run plainly"


@torch.inference_mode()
@pytest.mark.parametrize("spoil", ["raise", "differ"])
def test_graph_that_errs_is_not_used(
    transformer: Transformer, fake_cuda: dict[str, Any], caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    cache = cache_of((4, 16))
    run = Graphs(counted(transformer, fake_cuda, spoil), torch.device("cuda"))
    with caplog.at_level(logging.WARNING, graphs.log.name):
        for _ in range(3):
            for one in cache.fixed_passes():
                assert torch.allclose(run(*one), transformer(*one), atol=1e-5)
    assert len(fake_cuda["made"]) == 1
    assert [record.message.split(":")[0] for record in caplog.records] == ["no CUDA graphs, so steps take longer"]


@torch.inference_mode()
@pytest.mark.parametrize("spoil", ["", "raise", "differ"])
def test_fused_kernels_are_used_in_graphs_alone_and_if_they_agree(
    transformer: Transformer,
    fake_cuda: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: str,
) -> None:
    """With a kernel that gives PyTorch's norm, fails to compile, or gives another one."""
    used = []

    def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        used.append(fake_cuda.get("capturing") is not None)
        if spoil == "raise":
            raise SyntaxError("ptxas: no such architecture")
        return nn.functional.rms_norm(x, weight.shape, weight, eps) * (1.5 if spoil == "differ" else 1.0)

    monkeypatch.setattr(fused, "works", lambda *_: True)
    monkeypatch.setattr(fused, "serves", lambda _: getattr(fused._thread, "on", False))
    monkeypatch.setattr(fused, "rms_norm", norm)
    for name, plain in (("norm_rotate", _plain_norm_rotate), ("silu_product", _plain_silu_product)):
        monkeypatch.setattr(fused, name, plain)
    monkeypatch.setattr(fused, "write_rows", _plain_write_rows)
    cache = cache_of((4, 16))
    run = Graphs(counted(transformer, fake_cuda), torch.device("cuda"))
    with caplog.at_level(logging.WARNING, graphs.log.name):
        for _ in range(3):
            for one in cache.fixed_passes():
                assert torch.allclose(run(*one), transformer(*one), atol=1e-4)
    said = [record.message.split(":")[0] for record in caplog.records]
    assert said == ([] if not spoil else ["no fused kernels, so steps take longer"])
    assert used
    assert set(run._captured) == {4, 16}, "graphs stay"
    number = len(used)
    cache.reserve(0, 60)
    transformer(*cache._attention.begin([1, 2], cache._tables[:1], [50], [2]), cache._attention)
    assert len(used) == number, "other passes use none"


def _plain_norm_rotate(qk: Tensor, weight: Tensor, bias: Tensor, rotation: Tensor, eps: float) -> Tensor:
    unit = nn.functional.layer_norm(qk, qk.shape[-1:], None, None, eps)
    return rotate(torch.addcmul(bias, unit, weight), rotation).to(qk.dtype)


def _plain_silu_product(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return nn.functional.silu(gate) * up


def _plain_write_rows(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, target: Tensor) -> None:
    keys.index_copy_(0, target, k)
    values.index_copy_(0, target, v)
