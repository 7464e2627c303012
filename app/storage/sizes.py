"""How much a home holds, by kind. Blocking; changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from app.storage.database import Database

Kind = Literal["images", "checkpoints", "jobs", "datasets", "other", "database"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Files of other kinds than their folder; the rest of the home is "other".
_FOLDERS: dict[str, Kind] = {
    "images": "images",
    "partials": "images",
    "checkpoints": "checkpoints",
    "jobs": "jobs",
    "uploads": "datasets",
}


def measure(home: Path, db: Database) -> dict[Kind, int]:
    """Bytes by kind. A file with several names counts once: a checkpoint shares the training state with its job."""
    found: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    seen: set[tuple[int, int]] = set()
    for kind, entry in _files(home):
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:  # deleted meanwhile
            continue
        if status.st_nlink > 1:
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
        found[kind] += status.st_size
    found["database"] = db.size().bytes
    return found


def _files(home: Path) -> Iterator[tuple[Kind, os.DirEntry[str]]]:
    for entry in _entries(home):
        kind = _FOLDERS.get(entry.name, "other")
        if not entry.is_dir(follow_symlinks=False):
            if not entry.name.startswith("omni-r1.db"):
                yield "other", entry
        elif kind == "jobs":
            for job in _entries(Path(entry)):
                for inner in _below(job):
                    is_weights = Path(inner).relative_to(job).parts[:1] == ("checkpoints",)
                    yield "checkpoints" if is_weights else "jobs", inner
        else:
            for inner in _below(entry):
                yield kind, inner


def _below(entry: os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    """The files in a folder, however deep, or the file itself; links are files."""
    if not entry.is_dir(follow_symlinks=False):
        yield entry
        return
    for inner in _entries(Path(entry)):
        yield from _below(inner)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:  # missing, or deleted meanwhile
        return []
