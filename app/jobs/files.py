"""A job's folder from the server's side: public files, saved state, deletion.

Blocking; knows no database and no HTTP. Public files of an ended job may be in the object store only.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from app.storage.mirror import Mirror
from model.build import provenance as build_provenance

PUBLIC_SUFFIXES = frozenset({".png", ".json", ".jsonl", ".txt", ".csv"})
PRIVATE_FOLDERS = frozenset({"checkpoints", "runs", "data"})
# State from which a worker can resume, by method: weights, drawn chains, completed stages, given answers.
SAVED_STATE = (
    "checkpoints/*/manifest.json",
    "runs/**/state.pt",
    "runs/**/drawn.jsonl",
    "runs/**/result.json",
    "runs/pipeline.json",
    "benchmark/*/predictions.jsonl",
)
_RELATIVE = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*\.[a-z]+")


def public_file(jobs: Path, job_id: str, name: str, mirror: Mirror | None = None) -> Path | None:
    """A public file of the job, fetched through `mirror` if the home lacks it; None for other and missing files."""
    folder = jobs.resolve() / job_id
    if "\0" in name or "\0" in job_id or folder.parent != jobs.resolve():
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder) or path == folder:
        return None
    parts = path.relative_to(folder).parts
    if parts[0] in PRIVATE_FOLDERS or any(part.startswith(".") for part in parts):
        return None
    if path.suffix not in PUBLIC_SUFFIXES:
        return None
    if os.path.isfile(path):  # False for impossible names, where Path.is_file raises
        return path
    in_home = jobs / job_id
    if mirror is None or os.path.isfile(in_home / "job.json"):  # all of its files are here
        return None
    return path if mirror.fetch_of(in_home, "/".join(parts)) else None


def with_addresses(value: Any, folder: Path, prefix: str) -> Any:
    """A worker's data with paths of public files replaced by their URLs."""
    if isinstance(value, str):
        short = len(value) < 300 and _RELATIVE.fullmatch(value) is not None
        return prefix + value if short and public_file(folder.parent, folder.name, value) is not None else value
    if isinstance(value, dict):
        return {key: with_addresses(item, folder, prefix) for key, item in value.items()}
    if isinstance(value, list):
        return [with_addresses(item, folder, prefix) for item in value]
    return value


def has_saved_state(folder: Path) -> bool:
    """Whether the folder has state to resume from: more than an empty list."""
    return any(_size(path) > len("{}") for pattern in SAVED_STATE for path in folder.glob(pattern))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # being deleted
        return 0


def remove_all_but_checkpoints(folder: Path) -> None:
    """Delete logs, samples and states; keep checkpoints, and the folder while it holds any."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name == "checkpoints" and any(path.iterdir()):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


@functools.cache
def provenance() -> dict[str, str]:
    """What made the results: commit, Python, machine and the packages whose versions matter."""
    found = build_provenance()
    for package in ("omni-r1-studio", "torch", "numpy", "tokenizers", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
