"""Folders in a bucket: a reader sees a whole one or none.

Next to a folder's files lies `.whole.json`, written last and deleted first: names, sizes and SHA-256 of its files.
Blocking; symbolic links, temporary files and locks are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from app.store.bucket import Bucket, NoObject, StoreDown

WHOLE = ".whole.json"
_LEFT_OUT = frozenset({WHOLE, "worker.lock", "waiting.json"})


class Damaged(StoreDown):
    """What the store holds is not what was uploaded."""


@dataclass(frozen=True)
class Entry:
    """One file of a folder, by its path in it."""

    name: str
    size: int
    sha256: str


class Changed(OSError):
    """A file changed or went while its folder was uploaded."""


Belongs = Callable[[str], bool]  # whether a file belongs to a folder, by its path in it


def everything(_name: str) -> bool:
    """Every file of the folder."""
    return True


def upload_tree(bucket: Bucket, folder: Path, key: str, belongs: Belongs = everything) -> int:
    """Upload the files of a folder; returns the bytes sent.

    Files that the bucket has in the same form are not sent again, and those that the folder no longer has are deleted
    there. Raises StoreError, FileNotFoundError if the folder is missing, Changed.
    """
    before = {entry.name: entry for entry in _known(bucket, key)}
    try:
        stamps = {path: _stamp(path) for path in _files(folder, belongs)}
        entries, sent = [_entry(folder, path) for path in stamps], 0
    except FileNotFoundError as error:
        if folder.is_dir():
            raise Changed(str(error)) from None
        raise
    changed = [entry for entry in entries if before.get(entry.name) != entry]
    if before and (changed or len(before) != len(entries)):
        bucket.delete([f"{key}/{WHOLE}"])
    for entry in changed:
        path = folder / entry.name
        try:
            bucket.upload(path, f"{key}/{entry.name}")
            if _stamp(path) != stamps[path]:
                raise Changed(f"{path} changed while it was uploaded")
        except FileNotFoundError:
            raise Changed(f"{path} went while its folder was uploaded") from None
        sent += entry.size
    if changed or len(before) != len(entries):
        described = {entry.name: {"size": entry.size, "sha256": entry.sha256} for entry in entries}
        bucket.write(f"{key}/{WHOLE}", json.dumps({"files": described}).encode())
    gone = before.keys() - {entry.name for entry in entries}
    if gone:
        bucket.delete([f"{key}/{name}" for name in sorted(gone)])
    return sent


def tree_entries(bucket: Bucket, key: str) -> list[Entry]:
    """The files of a whole folder; raises NoObject, StoreError."""
    try:
        found = json.loads(bucket.read(f"{key}/{WHOLE}"))["files"]
        return [_checked(name, facts) for name, facts in found.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{key}/{WHOLE} in {bucket.url} is damaged: {error}") from None


def download_tree(bucket: Bucket, key: str, folder: Path) -> None:
    """Download a whole folder into `folder`, a new one; raises StoreError, and OSError of the disk."""
    entries = tree_entries(bucket, key)
    folder.mkdir(parents=True)
    for entry in entries:
        download(bucket, f"{key}/{entry.name}", folder / entry.name, entry)


def download(bucket: Bucket, key: str, path: Path, entry: Entry) -> None:
    """Download a file and check it; raises StoreError, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        try:
            for piece in bucket.pieces(key, entry.size):
                digest.update(piece)
                size += file.write(piece)
        except NoObject:
            raise Damaged(f"{key} is missing in {bucket.url}") from None
        file.flush()
        os.fsync(file.fileno())
    if (size, digest.hexdigest()) != (entry.size, entry.sha256):
        raise Damaged(f"{key} in {bucket.url} is not the file that was uploaded")


def delete_tree(bucket: Bucket, key: str, belongs: Belongs = everything) -> None:
    """Delete what belongs to a folder, its `.whole.json` first; raises StoreError."""
    bucket.delete([f"{key}/{WHOLE}"])
    for found in bucket.keys(key):
        going = [one for one in found if belongs(one.removeprefix(f"{key}/"))]
        if going:
            bucket.delete(going)


def _known(bucket: Bucket, key: str) -> list[Entry]:
    try:
        return tree_entries(bucket, key)
    except (NoObject, Damaged):
        return []


def _files(folder: Path, belongs: Belongs) -> Iterator[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing")
    for at, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(at) / name
            left_out = name in _LEFT_OUT or name.endswith(".tmp") or path.is_symlink() or not path.is_file()
            if not left_out and belongs(path.relative_to(folder).as_posix()):
                yield path


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _entry(folder: Path, path: Path) -> Entry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(path.relative_to(folder).as_posix(), file.tell(), digest)


def _checked(name: str, facts: dict[str, Any]) -> Entry:
    pure = PurePosixPath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts or pure.as_posix() != name:
        raise ValueError(f"{name!r} is no name of a file")
    return Entry(name, int(facts["size"]), str(facts["sha256"]))
