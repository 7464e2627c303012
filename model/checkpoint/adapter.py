"""LoRA adapters on disk, in PEFT's layout: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT opens what :func:`save_adapter` writes, and :func:`load_adapter` opens what PEFT writes, as far as an adapter is
plain LoRA on projections of the language model. What would change the answers and is not supported is refused by name.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint.atomic import replace_folder, staging_folder, sync_tree
from model.checkpoint.checkpoint import validate_checkpoint
from model.checkpoint.hf_files import model_card
from model.checkpoint.manifest import Manifest, without_measurements
from model.checkpoint.merge import Merge, load_pairs
from model.checkpoint.parts import WEIGHTS, named_base, parts_of, read_pairs
from model.checkpoint.shards import ADAPTER, CheckpointError, read_entries
from model.checkpoint.tensors import iterate, overwrite
from model.checkpoint.unwrap import copy_descriptions
from model.low_rank import LoRASettings
from model.nets.lora import attach, pairs
from model.nets.transformer import Transformer


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


def another_base(folder: str | Path, given: str) -> str | None:
    """The base that an adapter's config names if it is not called like the given one; None if it is, or names none."""
    named = named_base(Path(folder))
    return named if named and Path(named).name != Path(given).name else None


def load_adapter(transformer: Transformer, folder: str | Path) -> LoRASettings:
    """Attach the pairs of an adapter to a transformer, and return the settings.

    Raises:
        CheckpointError: as :func:`model.checkpoint.parts.read_pairs`.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in transformer.state_dict().items()}
    settings, _ = read_pairs(folder, shapes)
    try:
        attach(transformer, settings)
    except ValueError as error:
        raise CheckpointError("unsupported", f"{folder}: {error}") from error
    places = dict(pairs(transformer))
    with torch.no_grad():
        for name, a, b in load_pairs(Path(folder), shapes):
            places[name].a.copy_(a)
            places[name].b.copy_(b)
    return settings


def merge_adapter(adapter: str | Path, base: str | Path, target: str | Path, *, name: str | None = None) -> Path:
    """Write a plain checkpoint: the base's files, in its precision and sharding, with the adapter merged in.

    The files are copied and the changed matrices written over, one at a time: memory holds a few of them.

    Raises:
        CheckpointError: base or adapter cannot be used, they do not fit each other, or the target exists.
    """
    adapter, base, target = Path(adapter), Path(base), Path(target)
    if target.exists():
        raise CheckpointError("exists", f"{target} exists already")
    parts = parts_of(adapter, base=base)
    validate_checkpoint(base, hashes=False, values=False)
    entries = read_entries(parts.weights)
    merge = Merge(parts, entries)
    manifest = _merged_manifest(Manifest.read(base), name or target.name, adapter)
    with staging_folder(target) as staging:
        copy_descriptions(parts.weights, staging)
        (staging / "README.md").write_text(model_card(manifest), "utf-8")
        for file in sorted({entry.file for entry in entries.values()}):
            shutil.copyfile(parts.weights / file, staging / file)
            names = sorted(name for name in merge.names if entries[name].file == file)
            merged = ((name, merge(name, tensor)) for name, tensor in iterate(parts.weights, entries, names))
            overwrite(staging / file, merged)
        manifest.write(staging)
        validate_checkpoint(staging, hashes=False)
        sync_tree(staging)
        replace_folder(staging, target)
    return target


def _merged_manifest(base: Manifest, name: str, adapter: Path) -> Manifest:
    lineage = {"stage": "merged", "adapter": adapter.name, "start": base.name}
    changed = without_measurements(base)
    return replace(changed, name=name, base=base.name, lineage=lineage, files={}, derived=False)
