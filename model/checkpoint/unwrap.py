"""A folder saved from a wrapped model (``module.``, ``_orig_mod.``, ``base_model.model.``) -> the names it should have.

Only headers and the index change: the numbers are copied byte for byte, file by file, whatever their size.
"""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.checkpoint.atomic import replace_folder, staging_folder, sync_tree
from model.checkpoint.checkpoint import validate_checkpoint
from model.checkpoint.manifest import FILE, Manifest
from model.checkpoint.shards import INDEX, CheckpointError, header_entries, read_entries, unwrapped
from model.config import read_json

_COPIED = (".json", ".md", ".txt")


def unwrap(source: str | Path, target: str | Path, *, name: str | None = None) -> Path:
    """Write a copy of a folder whose tensors have their bare names; ``name`` renames the manifest.

    Raises:
        CheckpointError: ``exists``; ``unsupported`` if nothing is wrapped; ``broken_file`` if two names become one;
            and whatever is wrong with the result.
    """
    source, target = Path(source), Path(target)
    if target.exists():
        raise CheckpointError("exists", f"{target} exists already")
    entries = read_entries(source)
    bare = {old: unwrapped(old) for old in entries}
    if all(old == new for old, new in bare.items()):
        raise CheckpointError("unsupported", f"{source} needs no conversion: no name of a tensor is wrapped")
    if len(set(bare.values())) < len(bare):
        raise CheckpointError("broken_file", f"{source}: two tensors have the same name without their wrappers")
    with staging_folder(target) as staging:
        copy_descriptions(source, staging)
        for file in sorted({entry.file for entry in entries.values()}):
            _rename(source / file, staging / file)
        if (source / INDEX).is_file():
            index = read_json(source / INDEX)
            index["weight_map"] = {bare[old]: file for old, file in index["weight_map"].items()}
            (staging / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")
        if (source / FILE).is_file():
            manifest = Manifest.read(source)
            replace(manifest, name=name or manifest.name).write(staging)
        validate_checkpoint(staging, hashes=False)
        sync_tree(staging)
        replace_folder(staging, target)
    return target


def copy_descriptions(source: Path, target: Path) -> None:
    """Copy everything but tensors and manifest."""
    for path in sorted(source.iterdir()):
        if path.is_file() and (path.suffix in _COPIED or path.name.startswith("LICENSE")) and path.name != FILE:
            shutil.copyfile(path, target / path.name)


def _rename(source: Path, target: Path) -> None:
    """Copy a safetensors file under other names of its tensors."""
    header_entries(source)  # complete and well formed
    with source.open("rb") as old, target.open("wb") as new:
        (length,) = struct.unpack("<Q", old.read(8))
        header: dict[str, Any] = json.loads(old.read(length))
        text = json.dumps({unwrapped(name): value for name, value in header.items()}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format aligns the numbers to 8 bytes
        new.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(old, new, 1 << 24)
