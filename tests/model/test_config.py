"""Shapes read from and written to config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.config import ConfigError, ModelConfig, VQConfig
from tests.tiny import tiny_config

# vq_config of the released 7B folders, in Meta's spelling and in HF's.
META_VQ = {
    "embed_dim": 256,
    "n_embed": 8192,
    "double_z": False,
    "z_channels": 256,
    "resolution": 512,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
HF_VQ = {
    "embed_dim": 256,
    "num_embeddings": 8192,
    "double_latent": False,
    "latent_channels": 256,
    "resolution": 512,
    "in_channels": 3,
    "out_channels": 3,
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": None,
    "dropout": 0.0,
    "attn_type": "vanilla",
    "beta": 0.25,
}


def test_both_vq_config_spellings_are_equivalent() -> None:
    vq = VQConfig.from_json(META_VQ)
    assert vq == VQConfig.from_json(HF_VQ) == VQConfig.from_json({})
    assert (vq.grid, vq.codes_per_image, vq.factor) == ((32, 32), 1024, 16)


def test_config_survives_json() -> None:
    config, _ = tiny_config()
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_7b_config_is_completed_with_defaults() -> None:
    """HF only writes non-default values; theta may be at the top level."""
    config = ModelConfig.from_json({"model_type": "chameleon", "vocabulary_map": {"<s>": 0}, "rope_theta": 10000.0})
    t = config.transformer
    assert (t.vocab_size, t.hidden_size, t.num_layers, t.num_heads, t.num_kv_heads) == (65536, 4096, 32, 32, 32)
    assert (t.head_dim, t.intermediate_size, t.context_len, t.swin_norm) == (128, 11008, 4096, False)


@pytest.mark.parametrize(
    ("values", "theta"),
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}, 2e4),
        ({"rope_theta": 3e4, "rope_scaling": None}, 3e4),
        ({}, 1e4),
    ],
)
def test_theta_is_found_in_both_places(values: dict[str, Any], theta: float) -> None:
    data = {key: value for key, value in tiny_config()[0].to_json().items() if key != "rope_parameters"}
    assert ModelConfig.from_json(data | values).transformer.rope_theta == theta


def test_unused_keys_are_kept() -> None:
    data = tiny_config()[0].to_json() | {"model_parallel_size": 1, "initializer_range": 0.02, "torch_dtype": "bfloat16"}
    again = ModelConfig.from_json(data).to_json()
    assert (again["model_parallel_size"], again["initializer_range"]) == (1, 0.02)
    assert "torch_dtype" not in again


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "llama"},
        {"vocabulary_map": {}},
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"hidden_size": 63},
        {"rope_scaling": {"type": "linear", "factor": 2}},
        {"mlp_bias": True},
        {"vq_config": {"resolution": 500}},
        {"vq_config": {"ch_mult": "x"}},
    ],
)
def test_unsupported_configs_are_rejected(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ModelConfig.from_json(tiny_config()[0].to_json() | values)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": "chameleon"}'])
def test_broken_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError):
        ModelConfig.read(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        ModelConfig.read(tmp_path / "nowhere")


def test_transformers_accepts_the_config() -> None:
    from transformers import ChameleonConfig

    config, _ = tiny_config()
    theirs = ChameleonConfig(**config.to_json())
    t = config.transformer
    assert (theirs.hidden_size, theirs.num_hidden_layers, theirs.vocab_size) == (
        t.hidden_size,
        t.num_layers,
        t.vocab_size,
    )
    assert theirs.vq_config.num_embeddings == config.vq.num_embeddings
    assert tuple(theirs.vq_config.channel_multiplier) == config.vq.channel_multiplier
