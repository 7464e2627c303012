"""Memory counted from headers, against what the engine and autograd really hold; the reports made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.cli.main import main
from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.memory import (
    LONGEST_CONTEXT,
    RUNTIME_BYTES,
    TRAINED_TOKENS,
    WIDTHS,
    JobFigures,
    MemoryNeeds,
    image_work,
    layer_activations,
    layer_parameters,
    memory_needs,
    needs_of,
    parameters,
    spread_needs,
    training_needs,
)
from model.checkpoint.report import folder_report
from model.checkpoint.shards import read_entries
from model.config import ModelConfig, TransformerConfig
from model.engine.engine import Engine
from model.nets.attention import Attention, HidingAttention, RecordedAttention
from model.nets.transformer import CausalAttention, Transformer
from model.precision import Precision, autocast
from model.quantisation import QuantKind
from tests.model.live import Live
from tests.model.sparse import chameleon_config, sparse_checkpoint
from tests.model.spoil import change_lm
from tests.tiny import make_tiny_checkpoint

GIB = 1 << 30


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 7B's config, vocabulary and headers; its weights are a hole in a file and never read."""
    return sparse_checkpoint(tmp_path_factory.mktemp("sparse") / "7B", chameleon_config())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counted_bytes_are_those_of_the_engine(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    loaded = load_checkpoint(tiny_checkpoint, dtype=dtype)
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=3, keep_parameters=False)
    assert loaded.vq is not None
    held = engine.num_weight_bytes + sum(tensor.nbytes for tensor in loaded.vq.state_dict().values())
    needs = needs_of(tiny_checkpoint, width=dtype.itemsize, device="cpu")
    assert held <= needs.weights <= held * 1.02  # a few rows of the head are never drawn, and not kept
    assert needs.kv_per_token * 3 * engine.context_len == engine.cache.num_bytes


def test_a_7b_in_bf16_fits_24_gib_and_in_fp32_does_not(seven_b: Path) -> None:
    half = needs_of(seven_b, width=2, device="cuda")
    assert half.weights == pytest.approx(14.3e9, rel=0.01)
    assert half.loading_peak - half.weights < 2e9
    assert half.kv_per_token == 2 * 32 * 32 * 128 * 2
    assert half.max_context(24 * GIB) >= 6000
    assert half.max_context(80 * GIB) == LONGEST_CONTEXT
    assert half.max_context(14 * GIB) == 0
    full = needs_of(seven_b, width=4, device="cuda")
    assert full.loading_peak - full.weights < 2e9
    assert full.max_context(24 * GIB) == 0


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_quantised_7b_fits_12_gib(seven_b: Path, kind: QuantKind) -> None:
    """Seven billion matrix numbers of a byte, the embedding in bf16, and the VQ in fp32."""
    half, byte = (needs_of(seven_b, width=2, device="cuda", quant=quant) for quant in (None, kind))
    assert byte.weights == pytest.approx(half.weights - 6.75e9, rel=0.01)
    assert byte.loading_peak - byte.weights < 2e9
    assert byte.kv_per_token == half.kv_per_token
    assert 4096 <= byte.max_context(12 * GIB) < half.max_context(24 * GIB)
    report = folder_report(seven_b, device="cuda", dtype="bf16", memory=12 * GIB, quant=kind)
    assert report["fits"]
    assert report["train"] == folder_report(seven_b, device="cuda", dtype="bf16", memory=12 * GIB)["train"]


def test_slots_share_what_the_weights_leave(seven_b: Path) -> None:
    needs = needs_of(seven_b, width=2, device="cuda")
    for gib in (16, 24, 40, 48, 80):
        slots = needs.slots(gib * GIB, 4096, 16)
        used = gib * GIB - needs.room(gib * GIB) + 4096 * (needs.work_per_token + slots * needs.kv_per_token)
        assert used <= gib * GIB or slots == 0
        assert slots == 16 or used + 4096 * needs.kv_per_token > gib * GIB
    assert needs.slots(1 << 60, 4096, 16) == 16
    assert needs.slots(0, 4096, 16) == 0
    small, large = (memory - needs.room(memory) for memory in (24 * GIB, 32 * GIB))
    assert small < large < small + 1e9, "a large GPU decodes several images at once"


def test_memory_only_grows_with_every_size() -> None:
    """More layers, width, numbers or words never need less."""

    def of(layers: int = 2, width: int = 256, words: int = 9000, number: int = 2) -> MemoryNeeds:
        return memory_needs(chameleon_config(layers, width=width, vocab_size=words), {}, width=number)

    small = of()
    for larger in (of(layers=3), of(width=512), of(words=10_000), of(number=4)):
        assert larger.weights > small.weights
        assert larger.loading_peak > small.loading_peak
        assert larger.kv_per_token >= small.kv_per_token
        assert larger.max_context(2 * GIB) <= small.max_context(2 * GIB)


def test_entries_outside_the_models_count_for_nothing(tiny_checkpoint: Path) -> None:
    config, entries = load_checkpoint(tiny_checkpoint).config, read_entries(tiny_checkpoint)
    alone = {name: entry for name, entry in entries.items() if not name.startswith("model.vqmodel.")}
    with_vq, without = (memory_needs(config, some, width=4) for some in (entries, alone))
    vq = sum(torch.Size(e.shape).numel() * 4 for name, e in entries.items() if name not in alone)
    assert with_vq.weights - without.weights == vq


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("width", "middle", "tokens"), [(128, 256, 256), (128, 1024, 256), (256, 256, 512)])
def test_counted_activations_are_those_of_a_forward(precision: Precision, width: int, middle: int, tokens: int) -> None:
    """What autograd keeps of two layers more, against the formula: positions times activations, and the weights."""

    def kept(num_layers: int) -> int:
        config = TransformerConfig(64, width, middle, num_layers, 4, 4, width // 4, 1024)
        transformer = Transformer(config)
        parameters = {p.untyped_storage().data_ptr() for p in transformer.parameters()}
        held: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(precision):
            transformer(torch.zeros(1, tokens, dtype=torch.long), torch.arange(tokens)[None], CausalAttention())
        return sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in parameters)

    config = TransformerConfig(64, width, middle, 1, 4, 4, width // 4, 1024)
    bytes_of_one = WIDTHS[precision]
    weights = 4 * width * (3 * width + 2 * middle) if bytes_of_one == 4 else 2 * layer_parameters(config)
    expected = 2 * (tokens * layer_activations(config, width=bytes_of_one) + weights)
    assert kept(3) - kept(1) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("kind", ["causal", "hiding", "recorded"])
@pytest.mark.parametrize("tokens", [4_096, 16_384])
def test_counted_work_holds_a_pass_over_a_whole_trace(monkeypatch: pytest.MonkeyPatch, kind: str, tokens: int) -> None:
    """The 7B's layers on tensors without content; attention itself, which a kernel computes, only gives its result."""
    config = replace(chameleon_config(2).transformer, max_position_embeddings=16_384)
    attention: dict[str, Attention] = {
        "causal": CausalAttention(),
        "hiding": HidingAttention(range(100, 1_128)),
        "recorded": RecordedAttention(torch.empty(60, dtype=torch.long, device="meta"), 1),
    }
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **how: torch.empty_like(q))
    with torch.device("meta"), torch.no_grad():
        transformer = Transformer(config).to(torch.bfloat16)
        transformer._rope_table = torch.empty(16_384, 64, dtype=torch.complex64)
        weights = transformer.layer_weights()
        ids, positions = (torch.empty(1, tokens, dtype=torch.long) for _ in range(2))
        with Live() as live:
            transformer(ids, positions, attention[kind], weights=weights)
    row = memory_needs(chameleon_config(), {}, width=2, device="cuda", paged=False)
    fixed = row.work_fixed - RUNTIME_BYTES["cuda"] - image_work(chameleon_config().vq)
    counted = row.work_per_token * tokens + fixed
    assert live.peak <= counted < 1.51 * live.peak


def test_counted_recomputation_saves_what_it_saves() -> None:
    """The peaks of a step of a real transformer, with and without it, against the difference of the figures."""
    tokens, config = 512, chameleon_config(5, width=128, vocab_size=9000)
    small = TransformerConfig(64, 128, config.transformer.intermediate_size, 5, 4, 4, 32, 1024)
    figures = {again: JobFigures(tokens=tokens, recompute=again) for again in (False, True)}
    counted = {
        again: training_needs(replace(config, transformer=small), {}, width=4, device="cpu", figures=one)["full_pesft"]
        for again, one in figures.items()
    }
    peaks = {}
    for again in figures:
        transformer = Transformer(small)
        transformer.recompute_layers = again
        with Live() as live:
            ids, positions = torch.zeros(1, tokens, dtype=torch.long), torch.arange(tokens)[None]
            transformer(ids, positions, CausalAttention()).sum().backward()
        peaks[again] = live.peak
    assert counted[False] - counted[True] == pytest.approx(peaks[False] - peaks[True], rel=0.15)


def test_training_in_full_takes_sixteen_bytes_a_parameter_and_more(seven_b: Path) -> None:
    config, entries = ModelConfig.read(seven_b), read_entries(seven_b)
    needed = training_needs(config, entries, width=2, device="cuda")
    assert 16 * 7e9 < needed["full_pesft"] < 200e9
    assert needed["full_perpo"] > needed["full_pesft"] > needed["lora_perpo"] > needed["lora_pesft"]
    assert needed["lora_pesft"] < 24 * GIB
    longer = training_needs(config, entries, width=2, device="cuda", figures=JobFigures(tokens=2 * TRAINED_TOKENS))
    assert all(longer[name] > needed[name] for name in needed)


INT8: QuantKind = "int8"
CARDS = (12, 16, 24, 40, 48, 80, 141)


def test_table_of_the_guide_is_made_by_doctor(seven_b: Path) -> None:
    """docs/gpu.md: a row a card, for a 7B in bf16."""

    def row(gib: int) -> str:
        report, byte = (
            folder_report(seven_b, device="cuda", dtype="bf16", memory=gib * GIB, quant=quant) for quant in (None, INT8)
        )
        trains = ("yes" if needed <= gib * GIB else "no" for needed in report["train"].values())
        longest = report["max_context"]
        serves = [f"{longest:,}", str(report["concurrent_traces"])] if longest else ["–", "–"]
        quantised = [f"{byte['max_context']:,}", str(byte["concurrent_traces"])]
        return f"| {gib} | {' | '.join(['yes' if report['fits'] else 'no', *serves, *quantised, *trains])} |"

    text = (Path(__file__).parents[3] / "docs" / "gpu.md").read_text("utf-8")
    expected = [row(gib) for gib in CARDS]
    assert [line for line in text.splitlines() if line in expected] == expected, "\n".join(expected)
    report = folder_report(seven_b, device="cuda", dtype="bf16", memory=80 * GIB)
    each = {"1": report["train"]["full_pesft"], **report["train_full_pesft_per_device"]}
    spread = [f"| {count} | {needed / GIB:.1f} |" for count, needed in each.items()]
    assert [line for line in text.splitlines() if line in spread] == spread, "\n".join(spread)


def test_spreading_shares_what_the_optimiser_trains_and_nothing_else(seven_b: Path) -> None:
    config, entries = ModelConfig.read(seven_b), read_entries(seven_b)
    one, two, four = (spread_needs(config, entries, devices=n, width=2, device="cuda") for n in (1, 2, 4))
    assert one == training_needs(config, entries, width=2, device="cuda")["full_pesft"]
    assert two - four == pytest.approx(16 * parameters(config.transformer) / 4, abs=16)
    assert one / 2 < two < one


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda folder: None, "checkpoint"),
        (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "adapter"),
        (lambda folder: rename_tensors(folder, "module."), "wrapped"),
        (lambda folder: [path.rename(path.with_suffix(".bin")) for path in folder.glob("*.safetensors*")], "pickles"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "unknown"),
    ],
)
def test_report_says_what_a_folder_is(folder: Path, change: Callable[[Path], object], kind: str) -> None:
    change(folder)
    report = folder_report(folder, device="cpu", dtype="fp32", memory=GIB)
    assert report["kind"] == kind
    assert (report["problem"] is None) == (kind == "checkpoint")
    assert report["fits"] == (kind == "checkpoint")


def rename_tensors(folder: Path, prefix: str) -> None:
    change_lm(folder, lambda state: state.update({prefix + name: state.pop(name) for name in list(state)}))


def test_report_names_what_a_folder_lacks(tmp_path: Path) -> None:
    blind = make_tiny_checkpoint(tmp_path / "blind", decoder=False)
    (blind / "manifest.json").unlink()
    lacks = " ".join(folder_report(blind, device="cpu", dtype="fp32", memory=GIB)["missing"])
    assert "VQ decoder" in lacks
    assert "manifest.json" in lacks
    assert "VQ encoder" not in lacks


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--device", "cuda", "--memory-gb", "24"], 0, "it fits; two of its size do not"),
        (["--device", "cuda", "--memory-gb", "40"], 0, "two of its size do with OMNI_R1_KV_MB=5078"),
        (["--device", "cuda", "--memory-gb", "80"], 0, "it fits, and so do two of its size at once"),
        (["--device", "cuda", "--memory-gb", "24", "--dtype", "fp32"], 1, "it does not fit"),
        (["--device", "cuda", "--memory-gb", "0"], 2, ""),
        (["--device", "cuda", "--memory-gb", "12"], 1, "it does not fit"),
        (["--device", "cuda", "--memory-gb", "12", "--quant", "int8"], 0, "in bf16 with matrices in int8"),
    ],
)
def test_doctor_exits_by_what_it_finds(
    seven_b: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert main(["doctor", str(seven_b), *arguments]) == code
    assert words in capsys.readouterr().out


def test_doctor_of_a_folder_prints_the_report_as_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", str(folder), "--device", "cpu", "--memory-gb", "2", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == folder_report(folder, device="cpu", dtype="fp32", memory=2 * GIB)
    (folder / "config.json").unlink()
    assert main(["doctor", str(folder), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["problem"]["code"] == "missing_file"
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2
