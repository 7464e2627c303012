"""Meta's release layout (Chameleon, Anole) -> the layout of :mod:`model.checkpoint.checkpoint`.

    models/7b/consolidated.pth, params.json (where present)      tokenizer/{text_tokenizer.json, vqgan.ckpt, vqgan.yaml}

The two layouts differ in names, in the rotary order of q and k (Meta interleaves the two halves of a head, HF splits
them; their norm vectors move along) and in one token (``<reserved08707>`` becomes ``<image>``). Pickles are read with
``weights_only=True``, and only here.

Run it as ``convert_meta(source, target)``.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint.checkpoint import save_checkpoint
from model.checkpoint.manifest import CHAMELEON_LICENCE, Capabilities, ImageCount, Manifest, Perception
from model.checkpoint.shards import PICKLES, CheckpointError
from model.config import ConfigError, ModelConfig, TransformerConfig, VQConfig, read_json
from model.foreign import foreign_content
from model.text.vocab import IMAGE, tokenizer_tokens

_META_IMAGE = "<reserved08707>"
_LAYER_NAMES = {
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_OUTER_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_VQ_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")


def convert_meta(
    source: str | Path,
    target: str | Path,
    *,
    name: str | None = None,
    template: str = "plain",
    size: str = "7b",
    dtype: torch.dtype | None = None,
) -> Path:
    """Convert a Meta-layout folder into a checkpoint; ``dtype`` None keeps the stored precision.

    Raises:
        CheckpointError: a file is missing or broken, or the model is split over several files (30B).
    """
    source = Path(source)
    weights = _load_pickle(_weights_file(source / "models" / size))
    params = _read_params(source / "models" / size)
    tokenizer = _image_token_renamed(read_json(_existing(source / "tokenizer" / "text_tokenizer.json")))
    vq_config = _read_vq_config(_existing(source / "tokenizer" / "vqgan.yaml"))
    stored = _load_pickle(_existing(source / "tokenizer" / "vqgan.ckpt"))
    vq_state = {k: v for k, v in stored.get("state_dict", stored).items() if k.startswith(_VQ_PARTS)}
    try:
        config = ModelConfig(_transformer_config(weights, params), vq_config, tokenizer_tokens(tokenizer))
    except (ConfigError, KeyError) as error:
        raise CheckpointError("unsupported", f"{source}: {error}") from error
    draws = any(key.startswith("decoder.") for key in vq_state)
    target = Path(target)
    manifest = Manifest(
        name=name or target.name,
        template=template,
        licence=CHAMELEON_LICENCE,
        description=f"Converted from Meta's layout ({source.resolve().name}).",
        capabilities=Capabilities(images_in_answer=draws),
        images=ImageCount(0, 4),
        perception=Perception(tau=3.0),
    )
    return save_checkpoint(
        target,
        config=config,
        transformer_state=convert_state(weights, config.transformer),
        vq_state=vq_state,
        tokenizer=tokenizer,
        manifest=manifest,
        generation={"do_sample": True, "temperature": 1.0, "top_p": 0.95},
        dtype=dtype,
    )


def convert_state(weights: Mapping[str, Tensor], config: TransformerConfig) -> dict[str, Tensor]:
    """Rename Meta's tensors to HF's names, with q and k in half-split rotary order.

    Raises:
        CheckpointError: a tensor is missing or has no counterpart.
    """
    state: dict[str, Tensor] = {}
    heads = {"q": config.num_heads, "k": config.num_kv_heads}
    for key, tensor in weights.items():
        if key in _OUTER_NAMES:
            state[_OUTER_NAMES[key]] = tensor
            continue
        if key.startswith("rope."):
            continue
        layer, _, rest = key.removeprefix("layers.").partition(".")
        ours = f"model.layers.{layer}."
        if rest in _LAYER_NAMES:
            state[ours + _LAYER_NAMES[rest]] = tensor
        elif rest in ("attention.wq.weight", "attention.wk.weight"):
            which = rest[len("attention.w")]
            state[f"{ours}self_attn.{which}_proj.weight"] = split_halves(tensor, config.head_dim)
        elif rest.startswith(("attention.q_normalization.", "attention.k_normalization.")):
            which, part = rest[len("attention.")], rest.rpartition(".")[2]
            vector = split_halves(tensor.reshape(-1), config.head_dim)
            repeats = heads[which] * config.head_dim // vector.numel()
            state[f"{ours}self_attn.{which}_norm.{part}"] = vector.view(-1, config.head_dim).repeat_interleave(
                repeats, 0
            )
        else:
            raise CheckpointError("unexpected_tensor", f"{key} has no counterpart in the HF layout")
    return state


def split_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of each head from Meta's rotary order (x0 y0 x1 y1 ...) to HF's (x0 x1 ... y0 y1 ...)."""
    heads = weight.shape[0] // head_dim
    pairs = weight.reshape(heads, head_dim // 2, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape).contiguous()


def _transformer_config(weights: Mapping[str, Tensor], params: Mapping[str, Any]) -> TransformerConfig:
    """Read widths from the tensors, the rest from ``params.json`` or else as in Chameleon 7B."""
    vocab_size, hidden = weights["tok_embeddings.weight"].shape
    layers = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("layers."))
    heads = int(params.get("n_heads") or hidden // weights["layers.0.attention.q_normalization.weight"].shape[-1])
    head_dim = hidden // heads
    return TransformerConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=weights["layers.0.feed_forward.w1.weight"].shape[0],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=weights["layers.0.attention.wk.weight"].shape[0] // head_dim,
        head_dim=head_dim,
        max_position_embeddings=int(params.get("max_seq_len") or 4096),
        rope_theta=float(params.get("rope_theta") or 10000.0),
        rms_norm_eps=float(params.get("norm_eps") or 1e-5),
        swin_norm=bool(params.get("swin_norm", False)),
    )


def _read_params(folder: Path) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for name in ("params.json", "consolidate_params.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            params |= found.get("model", found)
    return params


def _read_vq_config(path: Path) -> VQConfig:
    import yaml  # comes with huggingface_hub; needed by nothing else

    try:
        params = yaml.safe_load(path.read_text("utf-8"))["model"]["params"]
        return VQConfig.from_json({**params, **params["ddconfig"]})
    except (yaml.YAMLError, ConfigError, KeyError, TypeError) as error:
        raise CheckpointError("broken_file", f"{path} does not describe a VQ: {error}") from error


def _image_token_renamed(tokenizer: dict[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Any] = json.loads(json.dumps(tokenizer))
    vocab = renamed["model"]["vocab"]
    if IMAGE not in vocab:
        if _META_IMAGE not in vocab:
            raise CheckpointError("wrong_vocabulary", f"text_tokenizer.json has neither {IMAGE} nor {_META_IMAGE}")
        vocab[IMAGE] = vocab.pop(_META_IMAGE)
        for added in renamed.get("added_tokens") or ():
            if added["content"] == _META_IMAGE:
                added["content"] = IMAGE
    return renamed


def _weights_file(folder: Path) -> Path:
    single = folder / "consolidated.pth"
    if not single.is_file() and (folder / "consolidated.00.pth").is_file():
        if (folder / "consolidated.01.pth").is_file():
            raise CheckpointError(
                "unsupported", f"{folder} is split over several files; only one-file models can be converted"
            )
        return _existing(folder / "consolidated.00.pth")
    return _existing(single)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError("missing_file", f"{path} does not exist")
    if what := foreign_content(path, pickle=path.suffix in PICKLES):
        raise CheckpointError("broken_file", f"{path} {what}")
    return path


def _load_pickle(path: Path) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError("broken_file", f"{path} contains more than tensors, or is damaged: {error}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError("broken_file", f"{path} contains no named tensors")
    return loaded
