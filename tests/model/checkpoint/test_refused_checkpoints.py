"""Invalid checkpoints: each fault is rejected with its code and names the culprit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint.checkpoint import validate_checkpoint
from model.checkpoint.manifest import Manifest
from model.checkpoint.shards import CheckpointError
from model.config import ModelConfig
from tests.model.spoil import LM, assert_rejected, change_json, change_lm
from tests.tiny import make_tiny_checkpoint, tiny_config


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", LM, "model-vq.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert_rejected(folder, "missing_file", name)


def test_folder_without_checkpoint_is_rejected(tmp_path: Path) -> None:
    assert_rejected(tmp_path / "nowhere", "not_found", "nowhere")


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.q_norm.bias",
        "model.layers.1.mlp.up_proj.weight",
    ],
)
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    change_lm(folder, lambda state: state.__delitem__(name))
    assert_rejected(folder, "missing_tensor", name)


@pytest.mark.parametrize(
    "name", ["encoder.conv_in.weight", "quantize.embedding.weight", "decoder.up.0.block.1.conv2.bias"]
)
def test_a_missing_vq_tensor_is_named(folder: Path, name: str) -> None:
    path = folder / "model-vq.safetensors"
    state = load_file(path)
    del state["model.vqmodel." + name]
    save_file(state, path)
    (folder / "model.safetensors.index.json").unlink()
    save_file(state | load_file(folder / LM), folder / "model.safetensors")
    (folder / "manifest.json").unlink()
    assert_rejected(folder, "missing_tensor", name)


def test_tensor_missing_from_its_shard_is_named(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-vq.safetensors"
    path.write_text(json.dumps(index))
    assert_rejected(folder, "missing_tensor", "model.norm.weight")


def test_manifest_must_not_promise_missing_decoder(tmp_path: Path) -> None:
    folder = make_tiny_checkpoint(tmp_path / "blind", decoder=False)
    change_json(folder, "manifest.json", capabilities={"images_in_answer": True})
    assert_rejected(folder, "missing_tensor", "decoder.conv_in", loads=True)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.0.self_attn.k_proj.weight", (64, 64)),
        ("model.layers.0.self_attn.q_norm.weight", (2, 16)),
        ("model.norm.weight", (65,)),
        ("lm_head.weight", (523, 32)),
    ],
)
def test_an_unexpected_shape_is_named(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    change_lm(folder, lambda state: state.update({name: torch.zeros(shape)}))
    assert_rejected(folder, "unexpected_shape", name)


def test_extra_layer_is_rejected(folder: Path) -> None:
    """A config with fewer layers than stored would answer with half a model."""
    change_json(folder, "config.json", num_hidden_layers=1)
    assert_rejected(folder, "unexpected_tensor", "model.layers.1.")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_non_finite_value_is_named(folder: Path, value: float, dtype: torch.dtype) -> None:
    name = "model.layers.1.mlp.down_proj.weight"

    def spoil(state: dict[str, torch.Tensor]) -> None:
        state[name] = state[name].to(dtype)
        state[name][3, 5] = value

    change_lm(folder, spoil)
    assert_rejected(folder, "not_finite", name, loads=True)


def test_embedding_rows_must_match_vocabulary(folder: Path) -> None:
    rows = ModelConfig.read(folder).transformer.vocab_size - 3
    change_lm(folder, lambda state: state.update({"model.embed_tokens.weight": torch.zeros(rows, 64)}))
    assert_rejected(folder, "wrong_vocabulary", "model.embed_tokens.weight")


def test_config_and_tokenizer_must_agree(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    change_json(folder, "config.json", vocabulary_map=config["vocabulary_map"] | {"<eoss>": 3})
    assert_rejected(folder, "wrong_vocabulary", "'<eoss>'")


def test_tokenizer_of_another_model_is_rejected(folder: Path) -> None:
    _, other = tiny_config(num_codes=32)
    (folder / "tokenizer.json").write_text(json.dumps(other))
    Manifest.read(folder).write(folder)
    assert_rejected(folder, "wrong_vocabulary", "tokenizer.json")


def test_codebook_larger_than_map_is_rejected(folder: Path) -> None:
    vq = json.loads((folder / "config.json").read_text())["vq_config"]
    change_json(folder, "config.json", vq_config=vq | {"num_embeddings": 65})
    assert_rejected(folder, "wrong_vocabulary", "code 64 has no token")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_folder_of_pickles_is_rejected(folder: Path, name: str) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save({"a": torch.zeros(1)}, folder / name)
    (folder / "manifest.json").unlink()
    assert_rejected(folder, "pickle_only", name)


def test_changed_file_fails_its_hash(folder: Path) -> None:
    change_lm(folder, lambda state: state["model.norm.weight"].mul_(1.5), rehash=False)
    assert_rejected(folder, "hash_mismatch", LM, loads=True)


@pytest.mark.parametrize("damage", ["truncated", "not safetensors", "empty", "absurd header", "deep header"])
def test_a_damaged_weight_file_is_named(folder: Path, damage: str) -> None:
    path = folder / LM
    whole = path.read_bytes()
    broken = {
        "truncated": whole[:-7],
        "not safetensors": b"x" * 500,
        "empty": b"",
        "absurd header": b"\xff" * 8 + whole[8:],
        "deep header": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    }
    path.write_bytes(broken[damage])
    assert_rejected(folder, "broken_file", LM)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "manifest.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("text", ["{", "[" * 100_000], ids=["cut", "deep"])
def test_broken_json_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(CheckpointError) as error:
        validate_checkpoint(folder)
    assert error.value.code in ("broken_file", "unsupported")
    assert name in error.value.detail


def test_index_must_not_leave_the_folder(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "../other/model.safetensors"
    path.write_text(json.dumps(index))
    assert_rejected(folder, "broken_file", "points outside")


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "llama"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"vocabulary_map": None},
    ],
)
def test_unsupported_architecture_is_rejected(folder: Path, values: dict[str, Any]) -> None:
    change_json(folder, "config.json", **values)
    assert_rejected(folder, "unsupported", "")


def test_error_survives_pickling() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(CheckpointError("not_finite", "lm_head.weight")))
    assert (error.code, error.detail, str(error)) == ("not_finite", "lm_head.weight", "not_finite: lm_head.weight")
