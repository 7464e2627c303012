"""A LoRA adapter as a checkpoint: its base is found, merged as it is loaded, and compared by names and shapes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.checkpoints.folder import read_folder
from model.checkpoint.adapter import load_adapter, merge_adapter
from model.checkpoint.checkpoint import load_checkpoint, validate_checkpoint
from model.checkpoint.manifest import Manifest
from model.checkpoint.parts import WEIGHTS, parts_of
from model.checkpoint.report import folder_report
from model.checkpoint.shards import ADAPTER, CheckpointError, read_entries
from model.nets.lora import MergedState
from tests.model.live import Live
from tests.model.spoil import assert_rejected
from tests.tiny import make_adapter, make_tiny_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("base") / "tiny", dtype=torch.bfloat16)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "mine", base)


def merged_at_once(adapter: Path, base: Path) -> dict[str, Tensor]:
    """The weights in fp32 with every pair attached, then merged."""
    transformer = load_checkpoint(base).transformer
    load_adapter(transformer, adapter)
    return dict(MergedState(transformer))


def assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_loaded_merged_and_rounded_once(base: Path, adapter: Path, dtype: torch.dtype) -> None:
    validate_checkpoint(adapter)
    loaded = load_checkpoint(adapter, dtype=dtype)
    assert_equal(loaded.transformer.state_dict(), merged_at_once(adapter, base))
    plain = load_checkpoint(base, dtype=dtype).transformer.state_dict()
    assert not torch.equal(loaded.transformer.state_dict()["model.layers.0.mlp.down_proj.weight"], plain[f"{DOWN}"])
    assert loaded.vq is not None
    assert (loaded.name, loaded.manifest.base, loaded.folder) == ("mine", "tiny", base)


DOWN = "model.layers.0.mlp.down_proj.weight"


def test_an_adapter_is_quantised_after_the_merge(base: Path, adapter: Path) -> None:
    whole = merge_adapter(adapter, base, adapter.parent / "whole")
    mine, theirs = (load_checkpoint(folder, quant="int8").transformer.state_dict() for folder in (adapter, whole))
    name = DOWN.replace("weight", "scale")
    assert mine[name].shape == theirs[name].shape
    torch.testing.assert_close(mine[name], theirs[name], rtol=0.02, atol=0)  # one of them was rounded to bf16 before


def test_merging_an_adapter_keeps_precision_and_files(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder = merge_adapter(adapter, base, tmp_path / "merged", name="whole")
    assert read_entries(folder) == read_entries(base)
    assert_equal(load_file(folder / "model-lm.safetensors"), merged_at_once(adapter, base))
    manifest = validate_checkpoint(folder)
    assert (manifest.name, manifest.base, manifest.lineage["adapter"]) == ("whole", "tiny", "mine")


def test_merging_holds_a_few_matrices_at_once(base: Path, adapter: Path, tmp_path: Path) -> None:
    sizes = [4 * math.prod(entry.shape) for entry in read_entries(base).values()]
    matrices = sum(tensor.nbytes for tensor in load_file(adapter / WEIGHTS).values())
    with Live() as live:
        merge_adapter(adapter, base, tmp_path / "merged")
    assert matrices < live.peak < 3 * max(sizes) + matrices < sum(sizes) / 2


def test_loading_an_adapter_holds_one_copy_of_the_weights(base: Path, adapter: Path) -> None:
    with Live() as plain:
        load_checkpoint(base, dtype=torch.bfloat16)
    with Live() as merging:
        load_checkpoint(adapter, dtype=torch.bfloat16)
    matrices = sum(tensor.nbytes for tensor in load_file(adapter / WEIGHTS).values())
    largest = 4 * max(load_file(base / "model-lm.safetensors")[DOWN].numel(), 64 * 96)
    assert merging.peak <= plain.peak + matrices + 3 * largest


def test_an_adapter_of_an_adapter_has_both(base: Path, adapter: Path, tmp_path: Path) -> None:
    second = make_adapter(tmp_path / "second", adapter, seed=5)
    assert parts_of(second).adapters == (adapter.resolve(), second)
    whole = merge_adapter(adapter, base, tmp_path / "whole")
    found = load_checkpoint(second).transformer.state_dict()
    expected = merged_at_once(second, whole)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0.01, atol=0.01)  # `whole` was rounded to bf16
    assert Manifest.read(second).base == "mine"


def in_the_hub_s_cache(base: Path, adapter: Path, patch: pytest.MonkeyPatch) -> str:
    def cached(hub_id: str, file: str) -> str | None:
        return str(base / file) if hub_id == "owner/tiny" else None

    patch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    return "owner/tiny"


def beside_it(base: Path, adapter: Path, patch: pytest.MonkeyPatch) -> str:
    shutil.copytree(base, adapter.parent / "neighbour")
    return "neighbour"


def in_checkpoints_above(base: Path, adapter: Path, patch: pytest.MonkeyPatch) -> str:
    shutil.copytree(base, adapter.parent.parent / "checkpoints" / "above")
    return "above"


@pytest.mark.parametrize("place", [in_the_hub_s_cache, beside_it, in_checkpoints_above])
def test_a_base_is_found_by_its_name(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Callable[[Path, Path, pytest.MonkeyPatch], str]
) -> None:
    folder = tmp_path / "jobs" / "job" / "adapter"
    make_adapter(folder, base, named=place(base, folder, monkeypatch))
    assert validate_checkpoint(folder).base == "tiny"
    assert read_folder(folder).problem is None


def test_a_base_that_is_not_found_is_named(base: Path, adapter: Path) -> None:
    for name in ("owner/nowhere", "nowhere", "mine", str(adapter), "/no/such/folder", "x" * 5_000, "\0", "../"):
        make_adapter(adapter, base, named=name)
        assert_rejected(adapter, "unsupported", "is a LoRA adapter of ")
        assert "without the weights of that base" in (read_folder(adapter).problem or "")


def test_adapters_of_each_other_are_refused(base: Path, tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        make_adapter(tmp_path / name, base, named=other)
    assert_rejected(tmp_path / "one", "unsupported", "adapter of itself")


def test_another_base_or_rank_is_refused_with_names_and_shapes(base: Path, adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    wider = {name: t.repeat(1, 2) if "lora_A" in name else t for name, t in tensors.items()}
    save_file(wider, adapter / WEIGHTS)
    words = "layers.0.mlp.down_proj has the shape (3, 192), but the base and rank 3 need (3, 96)"
    assert_rejected(adapter, "unexpected_shape", words)
    assert words in (read_folder(adapter).problem or "")
    report = folder_report(adapter, device="cpu", dtype="fp32", memory=1 << 34)
    assert (report["kind"], report["problem"]["code"]) == ("adapter", "unexpected_shape")
    with pytest.raises(CheckpointError, match="the base and rank 3 need"):
        merge_adapter(adapter, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite_are_refused(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, adapter / WEIGHTS)
    assert_rejected(adapter, "not_finite", str(adapter), loads=True)


def test_the_identity_of_an_adapter_covers_its_files_and_its_base(base: Path, tmp_path: Path) -> None:
    own = shutil.copytree(base, tmp_path / "own")
    adapter = make_adapter(tmp_path / "mine", own)
    Manifest.read(adapter).write(adapter)
    assert {*Manifest.read(adapter).files} == {ADAPTER, WEIGHTS}
    digests = [read_folder(adapter).digest]

    def changed() -> None:
        digests.append(read_folder(adapter).digest)

    config = json.loads((adapter / ADAPTER).read_text())
    (adapter / ADAPTER).write_text(json.dumps(config | {"lora_alpha": 1.0}))
    assert_rejected(adapter, "hash_mismatch", ADAPTER, loads=True)
    Manifest.read(adapter).write(adapter)
    changed()
    make_adapter(adapter, own, seed=9)
    Manifest.read(adapter).write(adapter)
    changed()
    make_tiny_checkpoint(tmp_path / "other", seed=3)
    shutil.rmtree(own)
    (tmp_path / "other").rename(own)
    changed()
    assert len({*digests, ""}) == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 139\n", "is a Git LFS pointer"),
        (b"<!DOCTYPE html>\n<html><head>", "is a web page"),
        (b"", "is empty"),
        (b"PK\x03\x04archive/data.pkl" + b"x" * 5000, "is a pickle"),
    ],
    ids=["lfs", "page", "empty", "pickle"],
)
@pytest.mark.parametrize("file", [WEIGHTS, ADAPTER])
def test_what_an_adapter_s_file_really_is_gets_said(
    base: Path, adapter: Path, tmp_path: Path, file: str, content: bytes, words: str
) -> None:
    (adapter / file).write_bytes(content)
    for read in (validate_checkpoint, load_checkpoint, lambda one: merge_adapter(one, base, tmp_path / "out")):
        with pytest.raises(CheckpointError) as error:
            read(adapter)
        assert (error.value.code, words in error.value.detail) == ("broken_file", True), error.value
    assert f"{file} {words}" in (read_folder(adapter).problem or "")


def test_an_adapter_with_a_config_but_no_weights_is_an_adapter(base: Path, adapter: Path) -> None:
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        shutil.copy(base / name, adapter / name)
    assert read_folder(adapter).problem is None
    make_adapter(adapter, base, named="nowhere")
    shutil.copy(base / "config.json", adapter / "config.json")
    assert_rejected(adapter, "unsupported", "is a LoRA adapter of nowhere")
    assert folder_report(adapter, device="cpu", dtype="fp32", memory=1 << 34)["kind"] == "adapter"


def test_a_pickled_adapter_is_refused(adapter: Path) -> None:
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert_rejected(adapter, "pickle_only", "adapter_model.bin")
