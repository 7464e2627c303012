"""Shapes of a checkpoint (transformer, VQ, image-code map), read from and written to ``config.json``.

Reads what the HF Chameleon family writes (both spellings of ``vq_config``, ``rope_theta`` at the top or inside
``rope_parameters``) and writes what transformers' ``ChameleonConfig`` accepts. It knows no token ids (that is
:mod:`model.text.vocab`) and no tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.foreign import foreign_content

CHAMELEON_CONTEXT = 4_096  # tokens
LONGEST_CONTEXT = 16_384  # tokens; Chameleon's rotary embedding is unscaled, and the authors generate up to 12,000
ARCHITECTURE = "ChameleonForConditionalGeneration"
# Meta's spelling -> HF's spelling of the same field.
_VQ_SPELLINGS = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "out_ch": "out_channels",
    "n_embed": "num_embeddings",
    "double_z": "double_latent",
    "z_channels": "latent_channels",
}


class ConfigError(ValueError):
    """``config.json`` is missing, broken, or describes something this code cannot run."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ConfigError: the file is missing, invalid, or not an object.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        with suppress(OSError):
            if what := foreign_content(path):
                raise ConfigError(f"{path} {what}") from error
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return data


@dataclass(frozen=True)
class TransformerConfig:
    """Widths and switches of the transformer; lengths in tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    swin_norm: bool = False
    qk_norm_per_head: bool = True
    qk_norm_shards: int = 1  # rows of a q/k norm shared by the heads of each shard
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position_embeddings",
            "qk_norm_shards",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key heads")
        if self.head_dim * self.num_heads != self.hidden_size:
            raise ConfigError(f"{self.num_heads} heads of {self.head_dim} do not make a width of {self.hidden_size}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for the rotary embedding, got {self.head_dim}")

    @property
    def context_len(self) -> int:
        """Maximum sequence length in tokens, prompt included."""
        return self.max_position_embeddings


@dataclass(frozen=True)
class VQConfig:
    """Shape of the image tokenizer; ``resolution`` in pixels, halved by every level but the last."""

    resolution: int
    base_channels: int
    channel_multiplier: tuple[int, ...]
    num_res_blocks: int
    embed_dim: int
    latent_channels: int
    num_embeddings: int
    in_channels: int = 3
    out_channels: int = 3
    attn_resolutions: tuple[int, ...] = ()
    attn_type: str = "vanilla"
    double_latent: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.channel_multiplier or self.resolution % self.factor:
            raise ConfigError(
                f"a resolution of {self.resolution} cannot be halved {len(self.channel_multiplier) - 1} times"
            )

    @property
    def factor(self) -> int:
        """Pixels per code along one edge."""
        return int(2 ** (len(self.channel_multiplier) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of codes in an image."""
        side = self.resolution // self.factor
        return side, side

    @property
    def codes_per_image(self) -> int:
        """N, the codes of one image, row-major."""
        rows, columns = self.grid
        return rows * columns

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VQConfig:
        """Read ``vq_config`` in either spelling; unknown keys are ignored, missing ones take the 7B's values.

        Raises:
            ConfigError: a value has the wrong type or the shape is impossible.
        """
        values = {_VQ_SPELLINGS.get(key, key): value for key, value in data.items() if value is not None}
        try:
            return cls(
                resolution=int(values.get("resolution", 512)),
                base_channels=int(values.get("base_channels", 128)),
                channel_multiplier=tuple(int(m) for m in values.get("channel_multiplier", (1, 1, 2, 2, 4))),
                num_res_blocks=int(values.get("num_res_blocks", 2)),
                embed_dim=int(values.get("embed_dim", 256)),
                latent_channels=int(values.get("latent_channels", 256)),
                num_embeddings=int(values.get("num_embeddings", 8192)),
                in_channels=int(values.get("in_channels", 3)),
                out_channels=int(values.get("out_channels", 3)),
                attn_resolutions=tuple(int(r) for r in values.get("attn_resolutions", ())),
                attn_type=str(values.get("attn_type", "vanilla")),
                double_latent=bool(values.get("double_latent", False)),
                dropout=float(values.get("dropout", 0.0)),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"vq_config: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Convert to HF's spelling for ``config.json``."""
        return {
            "model_type": "chameleon_vqgan",
            "resolution": self.resolution,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "base_channels": self.base_channels,
            "channel_multiplier": list(self.channel_multiplier),
            "num_res_blocks": self.num_res_blocks,
            "attn_resolutions": list(self.attn_resolutions) or None,
            "attn_type": self.attn_type,
            "embed_dim": self.embed_dim,
            "latent_channels": self.latent_channels,
            "num_embeddings": self.num_embeddings,
            "double_latent": self.double_latent,
            "dropout": self.dropout,
        }


@dataclass(frozen=True)
class ModelConfig:
    """One checkpoint's ``config.json``: transformer, VQ and the token map; ``raw`` keeps unused keys."""

    transformer: TransformerConfig
    vq: VQConfig
    vocabulary_map: dict[str, int]
    raw: dict[str, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read an HF ``ChameleonConfig`` JSON object.

        Raises:
            ConfigError: not a Chameleon config, or one with parts we do not implement (biases, scaled rope).
        """
        if data.get("model_type") != "chameleon":
            raise ConfigError(f"model_type is {data.get('model_type')!r}, not 'chameleon'")
        if quantised := data.get("quantization_config"):
            method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
            raise ConfigError(
                f"its weights are quantised ({method or 'quantization_config'} in config.json), "
                "and only bf16, fp16 and fp32 weights are loaded"
            )
        for name in ("attention_bias", "mlp_bias"):
            if data.get(name):
                raise ConfigError(f"{name} is not supported")
        if data.get("hidden_act", "silu") != "silu":
            raise ConfigError(f"hidden_act {data['hidden_act']!r} is not supported")
        vocabulary_map = data.get("vocabulary_map")
        if not isinstance(vocabulary_map, Mapping) or not vocabulary_map:
            raise ConfigError("vocabulary_map is missing: image codes cannot be identified")
        try:
            heads = int(data.get("num_attention_heads", 32))
            hidden = int(data.get("hidden_size", 4096))
            transformer = TransformerConfig(
                vocab_size=int(data.get("vocab_size", 65536)),
                hidden_size=hidden,
                intermediate_size=int(data.get("intermediate_size", 11008)),
                num_layers=int(data.get("num_hidden_layers", 32)),
                num_heads=heads,
                num_kv_heads=int(data.get("num_key_value_heads") or heads),
                head_dim=hidden // heads,
                max_position_embeddings=int(data.get("max_position_embeddings", 4096)),
                rope_theta=_rope_theta(data),
                rms_norm_eps=float(data.get("rms_norm_eps", 1e-5)),
                swin_norm=bool(data.get("swin_norm", False)),
                qk_norm_shards=int(data.get("model_parallel_size") or 1),
                tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
            )
            tokens = {str(token): int(token_id) for token, token_id in vocabulary_map.items()}
        except ConfigError:
            raise
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(str(error)) from error
        return cls(transformer, VQConfig.from_json(data.get("vq_config") or {}), tokens, dict(data))

    def with_context(self, context_len: int) -> ModelConfig:
        """The same model with another longest context; its rotary embedding knows no limit."""
        return replace(self, transformer=replace(self.transformer, max_position_embeddings=context_len))

    @classmethod
    def read(cls, folder: str | Path) -> ModelConfig:
        """Read ``config.json`` of a checkpoint folder.

        Raises:
            ConfigError: the file is missing, is not JSON, or describes something else.
        """
        return cls.from_json(read_json(Path(folder) / "config.json"))

    def to_json(self) -> dict[str, Any]:
        """Convert to an HF ``ChameleonConfig`` object; unused keys are kept."""
        t = self.transformer
        ids = self.vocabulary_map
        kept = {
            key: value for key, value in self.raw.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")
        }
        return kept | {
            "architectures": [ARCHITECTURE],
            "model_type": "chameleon",
            "vocab_size": t.vocab_size,
            "hidden_size": t.hidden_size,
            "intermediate_size": t.intermediate_size,
            "num_hidden_layers": t.num_layers,
            "num_attention_heads": t.num_heads,
            "num_key_value_heads": t.num_kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": t.max_position_embeddings,
            "rope_parameters": {"rope_type": "default", "rope_theta": t.rope_theta},
            "rms_norm_eps": t.rms_norm_eps,
            "swin_norm": t.swin_norm,
            "tie_word_embeddings": t.tie_word_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": ids.get("<s>", self.raw.get("bos_token_id")),
            "pad_token_id": ids.get("<pad>", self.raw.get("pad_token_id")),
            "eos_token_id": ids.get("</s>", self.raw.get("eos_token_id")),
            "vq_config": self.vq.to_json(),
            "vocabulary_map": dict(ids),
        }


def _rope_theta(data: Mapping[str, Any]) -> float:
    """theta from ``rope_parameters`` (transformers 5) or the top level (4); scaled variants are not supported."""
    parameters = data.get("rope_parameters") or {}
    scaling = data.get("rope_scaling") or {}
    for kind in (parameters.get("rope_type"), scaling.get("rope_type"), scaling.get("type")):
        if kind not in (None, "default"):
            raise ConfigError(f"rope type {kind!r} is not supported")
    return float(parameters.get("rope_theta") or data.get("rope_theta") or 10000.0)
