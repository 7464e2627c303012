"""Reads what a checkpoint folder declares and decides whether it may be read. Knows no server, no engine, no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from model.checkpoint.manifest import FILE, GenerationDefaults, Manifest, adapter_manifest
from model.checkpoint.parts import Parts, check_adapters, parts_of
from model.checkpoint.shards import (
    CheckpointError,
    check_storage,
    read_entries,
    require_data,
    require_plain_files,
)
from model.config import ConfigError, ModelConfig
from model.text.questions import is_familiar

# package: shipped in model/nano · home: found in OMNI_R1_HOME/checkpoints · setting: OMNI_R1_CHECKPOINT ·
# job, local, hub: rows of the table `checkpoints`
Source = Literal["package", "home", "setting", "job", "local", "hub"]


IN_STORE = "in_store"  # the reason of a checkpoint whose folder is in the object store only


@dataclass(frozen=True)
class Record:
    """A checkpoint's row in the database: what its folder does not contain."""

    name: str
    folder: str  # relative to the home if inside it
    base: str | None
    job_id: str | None
    stage: str | None
    step: int | None
    metrics: dict[str, Any]
    source: Source
    created_at: str


@dataclass(frozen=True)
class CheckpointInfo:
    """One folder as far as it is readable; `problem` says why it is unusable."""

    name: str
    folder: Path
    digest: str
    size_bytes: int
    manifest: Manifest | None = None
    config: ModelConfig | None = None
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)
    problem: str | None = None
    reason: str | None = None  # the problem's code (docs/checkpoints.md)
    source: Source = "home"
    record: Record | None = None
    served_context: int | None = None  # while it is loaded
    parts: Parts | None = None  # None for an unusable one

    @property
    def weights(self) -> Path:
        """The folder with config, tokenizer and tensors: its own, or that of its base if it is an adapter."""
        return self.parts.weights if self.parts else self.folder

    @property
    def others(self) -> tuple[Path, ...]:
        """The folders of its base, if it is an adapter."""
        return tuple(folder for folder in self.parts.folders if folder != self.folder) if self.parts else ()

    @property
    def context_len(self) -> int:
        """Tokens of the longest sequence: as it is served, else its own; 0 without a readable config."""
        if self.served_context is not None:
            return self.served_context
        return self.config.transformer.context_len if self.config else 0

    @property
    def tokens_per_image(self) -> int:
        """Codes plus the two image marks."""
        return self.config.vq.codes_per_image + 2 if self.config else 0

    @property
    def resolution(self) -> int:
        """Width and height of the model's images in pixels."""
        return self.config.vq.resolution if self.config else 0

    def knows(self, question: str) -> bool | None:
        """Whether the question is like those of its training; None if its card does not say."""
        return is_familiar(question, self.manifest.extra) if self.manifest else None


def read_folder(folder: Path, *, context: int | None = None, base: Path | None = None) -> CheckpointInfo:
    """Read a checkpoint folder; never raises for a bad one.

    `context` replaces its own longest context, `base` the base that an adapter names.
    """
    name, size = folder.name, 0
    try:
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        require_plain_files(folder)
        require_data(folder)
        parts = parts_of(folder, base=base)
        for part in parts.folders:
            require_plain_files(part)
            require_data(part)
        config = ModelConfig.read(parts.weights)
        config = config if context is None else config.with_context(context)
        entries = read_entries(parts.weights)
        check_storage(entries)
        check_adapters(parts, entries)
        return CheckpointInfo(
            name,
            folder,
            _digest(parts),
            size,
            Manifest.read(folder) if base is None else adapter_manifest(folder, base),
            config,
            GenerationDefaults.read(parts.weights),
            parts=parts,
        )
    except CheckpointError as error:
        reason, problem = error.code, error.detail
    except FileNotFoundError:
        reason, problem = "not_found", f"{folder} no longer exists"
    except (ConfigError, OSError, ValueError, KeyError, TypeError) as error:
        reason = "unsupported" if (folder / "config.json").is_file() else "missing_file"
        problem = str(error)
    return CheckpointInfo(name, folder, "", size, problem=problem, reason=reason)


def read_within(folder: Path, roots: Iterable[Path], *, context: int | None = None) -> CheckpointInfo:
    """As `read_folder`, unless the folder or a file in it resolves outside `roots`."""
    target = outside(folder, roots)
    return read_folder(folder, context=context) if target is None else refused(folder, target)


def refused(folder: Path, target: Path) -> CheckpointInfo:
    """The entry of a folder that leads to a path that may not be read."""
    problem = f"{target} is outside OMNI_R1_HOME and OMNI_R1_ALLOWED_ROOTS"
    return CheckpointInfo(folder.name, folder, "", 0, problem=problem, reason="path_not_allowed")


def in_store(folder: Path) -> CheckpointInfo:
    """The entry of a folder that is in the object store only."""
    problem = "its files are in the object store and must be fetched first"
    return CheckpointInfo(folder.name, folder, "", 0, problem=problem, reason=IN_STORE)


def outside(folder: Path, roots: Iterable[Path]) -> Path | None:
    """The target of the first path in the folder that resolves outside `roots`, or None."""
    allowed = [root.resolve() for root in roots]
    real = folder.resolve()
    if not any(real.is_relative_to(root) for root in allowed):
        return real
    if os.path.isdir(real):
        for path in real.iterdir():
            target = path.resolve()
            if not any(target.is_relative_to(root) for root in allowed):
                return target
    return None


def hub_root(folder: Path) -> Path:
    """The part of the hub's cache that holds a downloaded checkpoint: its files link to `blobs` next to it."""
    return next((parent for parent in folder.parents if parent.name.startswith("models--")), folder)


def changed(folder: Path) -> object:
    """A value that changes when a file of the folder or a link to one is replaced; None when gone."""
    try:
        files = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
        links = [(path.name, os.readlink(path)) for path, _ in files if path.is_symlink()]
        return folder.resolve(), sorted((path.name, s.st_mtime_ns, s.st_size) for path, s in files), sorted(links)
    except OSError:
        return None


def _digest(parts: Parts) -> str:
    """Identity of the weights: that of the only folder, or of all."""
    facts = [_facts(part) for part in parts.folders]
    return hashlib.sha256(json.dumps(facts if parts.adapters else facts[0], sort_keys=True).encode()).hexdigest()


def _facts(folder: Path) -> Any:
    """The manifest's hashes, else names, sizes and times."""
    if (folder / FILE).is_file() and (files := Manifest.read(folder).files):
        return files
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
