"""LoRA adapters on disk, in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT opens what :func:`save_adapter` writes, and :func:`load_adapter` opens what PEFT writes, as far as an adapter is
plain LoRA on projections of the language model. What would change the answers and is not supported is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.checkpoint.atomic import replace_folder, staging_folder, sync_tree
from model.checkpoint.checkpoint import VQ_FILE, load_checkpoint, save_checkpoint
from model.checkpoint.manifest import Manifest
from model.checkpoint.shards import ADAPTER, CheckpointError
from model.config import ConfigError, read_json
from model.nets.lora import TARGETS, LoRASettings, MergedState, attach, pairs
from model.nets.transformer import Transformer

WEIGHTS = "adapter_model.safetensors"
_NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
# Settings of PEFT that would change the answers, and the values under which they do nothing.
_INERT: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "use_dora": (None, False),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "lora_bias": (None, False),
}


def save_adapter(folder: Path, transformer: Transformer, settings: LoRASettings, *, base: str) -> None:
    """Write the pairs of a transformer; ``base`` names the checkpoint that they belong to. The folder is replaced."""
    tensors: dict[str, Tensor] = {}
    for name, pair in pairs(transformer):
        for side, value in (("A", pair.a), ("B", pair.b)):
            tensors[f"base_model.model.{name}.lora_{side}.weight"] = value.detach().float().cpu().contiguous()
    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": list(settings.targets),
        "task_type": "CAUSAL_LM",
        "use_rslora": settings.rslora,
    }
    with staging_folder(folder) as staging:
        save_file(tensors, staging / WEIGHTS, metadata={"format": "pt"})
        (staging / ADAPTER).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        sync_tree(staging)
        replace_folder(staging, folder)


def read_settings(folder: str | Path) -> LoRASettings:
    """The settings of an adapter.

    Raises:
        CheckpointError: ``missing_file``, ``broken_file``, or ``unsupported`` for more than plain LoRA.
    """
    path = Path(folder) / ADAPTER
    if not path.is_file():
        raise CheckpointError("missing_file", f"{folder} has no {ADAPTER}: it is no LoRA adapter")
    try:
        config = read_json(path)
    except ConfigError as error:
        raise CheckpointError("broken_file", f"{path}: {error}") from error
    for key, values in _INERT.items():
        if config.get(key) not in values:
            raise CheckpointError("unsupported", f"{path}: {key} {config.get(key)!r} is not supported")
    rank, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout", 0.0)
    try:
        return LoRASettings(_whole(rank), _number(alpha), _share(dropout), rslora=config.get("use_rslora") is True)
    except ValueError:
        found = f"r {rank!r}, lora_alpha {alpha!r}, lora_dropout {dropout!r}"
        raise CheckpointError("broken_file", f"{path}: {found}") from None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise ValueError(value)
    return float(value)


def _whole(value: object) -> int:
    if not isinstance(value, int) or _number(value) < 1:
        raise ValueError(value)
    return value


def _share(value: object) -> float:
    if not 0.0 <= _number(value) < 1.0:
        raise ValueError(value)
    return _number(value)


def base_of(folder: str | Path) -> str:
    """The name, folder or hub id of the base that an adapter's config names.

    Raises:
        CheckpointError: ``missing_file`` or ``broken_file``.
    """
    read_settings(folder)
    base = read_json(Path(folder) / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError("broken_file", f"{folder} does not name its base: give it with --base")
    return base


def another_base(folder: str | Path, given: str) -> str | None:
    """The base that an adapter's config names if it is not called like the given one; None if it is, or names none."""
    named = read_json(Path(folder) / ADAPTER).get("base_model_name_or_path")
    return str(named) if named and Path(str(named)).name != Path(given).name else None


def load_adapter(transformer: Transformer, folder: str | Path) -> LoRASettings:
    """Attach the pairs of an adapter to a transformer, and return the settings.

    Raises:
        CheckpointError: see :func:`read_settings`; ``unexpected_tensor``, ``missing_tensor`` or ``unexpected_shape`` if
            it belongs to another base or has another rank.
    """
    settings = read_settings(folder)
    state = _read_pairs(Path(folder) / WEIGHTS)
    targets = tuple(target for target in TARGETS if any(name.endswith(target) for name in state))
    settings = replace(settings, targets=targets)  # the tensors say, whatever pattern the config has
    try:
        attach(transformer, settings)
    except ValueError as error:
        raise CheckpointError("unsupported", f"{folder}: {error}") from error
    places = dict(pairs(transformer))
    if strange := sorted({*state} - {*places}):
        raise CheckpointError("unexpected_tensor", f"{folder}: the base has no projection {strange[0]}")
    if missing := sorted({*places} - {*state}):
        raise CheckpointError("missing_tensor", f"{folder}: no matrices for {missing[0]}")
    with torch.no_grad():
        for name, pair in places.items():
            for own, given in zip((pair.a, pair.b), state[name], strict=True):
                if own.shape != given.shape:
                    shapes = f"{tuple(given.shape)}, but the base and rank {settings.rank} need {tuple(own.shape)}"
                    raise CheckpointError("unexpected_shape", f"{folder}: {name} has the shape {shapes}")
                own.copy_(given)
    return settings


def merge_adapter(
    adapter: str | Path,
    base: str | Path,
    target: str | Path,
    *,
    name: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write a plain checkpoint, the base with the adapter merged in; ``dtype`` is the transformer's in the file.

    Raises:
        CheckpointError: base or adapter cannot be used, they do not fit each other, or the target exists.
    """
    base, target = Path(base), Path(target)
    if target.exists():
        raise CheckpointError("exists", f"{target} exists already")
    stored = load_checkpoint(base)
    load_adapter(stored.transformer, adapter)
    manifest = _merged_manifest(stored.manifest, name or target.name, Path(adapter))
    vq_file = base / VQ_FILE
    return save_checkpoint(
        target,
        config=stored.config,
        transformer_state=MergedState(stored.transformer),
        tokenizer=base / "tokenizer.json",
        manifest=manifest,
        vq_state=None if vq_file.exists() or stored.vq is None else stored.vq.state_dict(),
        vq_file=vq_file if vq_file.exists() else None,
        generation=stored.generation,
        dtype=dtype,
    )


def _merged_manifest(base: Manifest, name: str, adapter: Path) -> Manifest:
    lineage = {"stage": "merged", "adapter": adapter.name, "start": base.name}
    return replace(base, name=name, base=base.name, lineage=lineage, files={}, derived=False, verifier="")


def _read_pairs(path: Path) -> Mapping[str, tuple[Tensor, Tensor]]:
    """A and B by projection."""
    if not path.is_file():
        raise CheckpointError("missing_file", f"{path.parent} has no {path.name}")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError("broken_file", f"{path}: {error}") from error
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _NAME.match(name)
        if found is None:
            raise CheckpointError("unsupported", f"{path}: {name} is no LoRA matrix of a projection")
        sides.setdefault(found["module"], {})[found["side"]] = tensor
    halves = sorted(module for module, both in sides.items() if len(both) < 2)
    if halves or not sides:
        what = f"{halves[0]} has only one of its two matrices" if halves else "it holds no tensors"
        raise CheckpointError("broken_file", f"{path}: {what}")
    return {module: (both["A"], both["B"]) for module, both in sides.items()}
