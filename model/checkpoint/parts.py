"""What a checkpoint is made of: one folder, or LoRA adapters in PEFT's layout and the base that they change.

Finds the base of an adapter and compares the two, from JSON and headers alone, without torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.checkpoint.shards import (
    ADAPTER,
    FLOATS,
    HUB_ID,
    INDEX,
    SINGLE,
    CheckpointError,
    TensorEntry,
    fetch,
    find_local,
    header_entries,
)
from model.config import ConfigError, read_json
from model.low_rank import TARGETS, LoRASettings

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
NOTED = "base_folder"  # in a manifest's lineage: where the base lies, relative to the adapter
_MOST = 8  # adapters on adapters
_NAME = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
_PROJECTION = re.compile(rf"^model\.layers\.\d+\.\w+\.(?:{'|'.join(TARGETS)})$")
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


@dataclass(frozen=True)
class Parts:
    """The folders of a checkpoint.

    Attributes:
        weights: holds config, tokenizer and tensors.
        adapters: are merged into these tensors, in this order; empty for a checkpoint of one folder.
    """

    weights: Path
    adapters: tuple[Path, ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.weights, *self.adapters)


@dataclass(frozen=True)
class PairEntry:
    """The matrices of one projection: their names in the file, and their shapes [R, D] and [F, R]."""

    a: str
    b: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA adapter, perhaps with a copy of its base's config, but no weights of a base."""
    whole = (folder / "config.json").is_file() and any((folder / name).is_file() for name in (INDEX, SINGLE))
    return (folder / ADAPTER).is_file() and not whole


def parts_of(folder: str | Path, *, base: Path | None = None) -> Parts:
    """The parts of the checkpoint in a folder; ``base`` is that of an adapter if it is known.

    Raises:
        CheckpointError: ``unsupported`` for an adapter whose base is not found, ``broken_file`` for a broken config.
    """
    folder, adapters = Path(folder), list[Path]()
    while is_adapter(folder):
        if folder.resolve() in {one.resolve() for one in adapters} or len(adapters) == _MOST:
            raise CheckpointError("unsupported", f"{folder} is a LoRA adapter of an adapter of itself")
        adapters.insert(0, folder)
        folder = base or base_folder(folder)
        base = None
    return Parts(folder, tuple(adapters))


def weights_of(folder: str | Path) -> Path:
    """The folder with config, tokenizer and tensors of a checkpoint: the given one, or that of an adapter's base.

    Raises:
        CheckpointError: see :func:`parts_of`.
    """
    return parts_of(folder).weights


def base_folder(adapter: Path) -> Path:
    """The folder of an adapter's base: the one that its manifest notes, or what its config names.

    A name may be a path, a checkpoint next to the adapter or in a folder `checkpoints` above it, a shipped one, or a
    hub id whose files are in the hub's cache.

    Raises:
        CheckpointError: ``unsupported`` if there is none, naming the base; ``broken_file``.
    """
    noted = _noted(adapter)
    found = noted if noted is not None else _find(adapter, named_base(adapter))
    if found is None or not found.is_dir() or found.resolve() == adapter.resolve():
        raise CheckpointError(
            "unsupported",
            f"{adapter} is a LoRA adapter of {named_base(adapter) or 'a base that it does not name'}, without the "
            "weights of that base: `omni-r1 convert --adapter ADAPTER --base BASE OUT` merges the two",
        )
    return found


def fetch_base(adapter: Path) -> Path:
    """As :func:`base_folder`, but a base that only the hub has is downloaded.

    Raises:
        CheckpointError: also ``download_failed`` and ``hub_silent``.
    """
    try:
        return base_folder(adapter)
    except CheckpointError:
        named = named_base(adapter)
        if named is None or HUB_ID.fullmatch(named) is None:
            raise
        return fetch(named)


def named_base(adapter: Path) -> str | None:
    """What the config of an adapter calls its base; None if it names none.

    Raises:
        CheckpointError: ``broken_file``.
    """
    try:
        named = read_json(adapter / ADAPTER).get("base_model_name_or_path")
    except ConfigError as error:
        raise CheckpointError("broken_file", str(error)) from error
    return named if isinstance(named, str) and named else None


def _noted(adapter: Path) -> Path | None:
    try:
        lineage = read_json(adapter / "manifest.json").get("lineage")
    except ConfigError:
        return None  # there is none, or its reader says what is wrong
    noted = lineage.get(NOTED) if isinstance(lineage, dict) else None
    return (adapter / noted).resolve() if isinstance(noted, str) and noted else None


def _find(adapter: Path, name: str | None) -> Path | None:
    if name is None:
        return None
    above = adapter.resolve().parents
    try:
        found = find_local(name, roots=(adapter.resolve().parent, *(folder / "checkpoints" for folder in above)))
    except CheckpointError:
        return None
    return found or _in_hub_cache(name)


def _in_hub_cache(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # takes a moment, and is needed for few folders

    for file in ("config.json", ADAPTER):
        found = try_to_load_from_cache(hub_id, file)
        if isinstance(found, str):
            return Path(found).parent
    return None


def read_settings(folder: str | Path) -> LoRASettings:
    """The settings of an adapter; `targets` are all projections, since only the tensors say which ones have pairs.

    Raises:
        CheckpointError: ``missing_file``, ``broken_file``, or ``unsupported`` for more than plain LoRA.
    """
    path = Path(folder) / ADAPTER
    if not path.is_file():
        raise CheckpointError("missing_file", f"{folder} has no {ADAPTER}: it is no LoRA adapter")
    try:
        config = read_json(path)
    except ConfigError as error:
        raise CheckpointError("broken_file", str(error)) from error
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


def read_pairs(folder: str | Path, base: Mapping[str, tuple[int, ...]]) -> tuple[LoRASettings, dict[str, PairEntry]]:
    """The settings and pairs of an adapter, by projection, compared with the shapes of its base's tensors.

    Raises:
        CheckpointError: see :func:`read_settings`; ``pickle_only``; ``unexpected_tensor``, ``missing_tensor`` or
            ``unexpected_shape`` if it belongs to another base or has another rank.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    pairs = _pairs(folder)
    targets = tuple(target for target in TARGETS if any(name.endswith(target) for name in pairs))
    places = {name for name in _projections(base) if name.endswith(targets)}
    if strange := sorted({*pairs} - places):
        raise CheckpointError("unexpected_tensor", f"{folder}: the base has no projection {strange[0]}")
    if missing := sorted(places - {*pairs}):
        raise CheckpointError("missing_tensor", f"{folder}: no matrices for {missing[0]}")
    for name, pair in pairs.items():
        outputs, inputs = base[f"{name}.weight"]
        needed = ((settings.rank, inputs), (outputs, settings.rank))
        for shape, fits in zip((pair.a_shape, pair.b_shape), needed, strict=True):
            if shape != fits:
                shapes = f"{shape}, but the base and rank {settings.rank} need {fits}"
                raise CheckpointError("unexpected_shape", f"{folder}: {name} has the shape {shapes}")
    return replace(settings, targets=targets), pairs


def check_adapters(parts: Parts, entries: Mapping[str, TensorEntry]) -> None:
    """Compare every adapter with the tensors of the base; raises as :func:`read_pairs`."""
    shapes = {name: entry.shape for name, entry in entries.items()}
    for adapter in parts.adapters:
        read_pairs(adapter, shapes)


def _projections(base: Mapping[str, tuple[int, ...]]) -> set[str]:
    matrices = (name for name, shape in base.items() if name.endswith(".weight") and len(shape) == 2)
    return {name for name in (matrix.removesuffix(".weight") for matrix in matrices) if _PROJECTION.match(name)}


def _pairs(folder: Path) -> dict[str, PairEntry]:
    path = folder / WEIGHTS
    if not path.is_file() and (folder / PICKLED).is_file():
        raise CheckpointError("pickle_only", f"{folder} contains {PICKLED} but no {WEIGHTS}: pickles are not loaded")
    if not path.is_file():
        raise CheckpointError("missing_file", f"{folder} has no {WEIGHTS}")
    sides: dict[str, dict[str, tuple[str, TensorEntry]]] = {}
    for name, entry in header_entries(path).items():
        found = _NAME.match(name)
        if found is None or entry.dtype not in FLOATS:
            raise CheckpointError("unsupported", f"{path}: {name} ({entry.dtype}) is no LoRA matrix of a projection")
        sides.setdefault(found["module"], {})[found["side"]] = name, entry
    halves = sorted(module for module, both in sides.items() if len(both) < 2)
    if halves or not sides:
        what = f"{halves[0]} has only one of its two matrices" if halves else "it holds no tensors"
        raise CheckpointError("broken_file", f"{path}: {what}")
    return {
        module: PairEntry(both["A"][0], both["B"][0], both["A"][1].shape, both["B"][1].shape)
        for module, both in sides.items()
    }
