"""Data sets as zip archives: unpacked below a folder, within bounds on entries, bytes and names.

An archive is untrusted: its directory is bounded before it is read, sizes are counted while unpacking (headers may
lie), and every name must stay inside the folder.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from training.data.rows import DataError

MAX_ENTRIES = 10_000
MAX_UNPACKED_BYTES = 1_000_000_000
_MAX_ENTRY_BYTES = 600  # of the directory, on average: the fixed part and a name
_MAX_NAME_BYTES = 255  # of each part of a path
_END, _END_64 = b"PK\5\6", b"PK\6\7"
_COMMENT_BYTES = 65_535
_PIECE = 1 << 20
_MACHINERY = ("__MACOSX",)


def is_zip(head: bytes) -> bool:
    """Whether a file with these first bytes is a zip archive."""
    return head.startswith((b"PK\3\4", b"PK\5\6"))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the files of a zip into an existing folder; hidden files and macOS metadata are left out.

    Raises:
        DataError: no zip, encrypted, too large, or with a name that is unsafe, a link or a duplicate.
        OSError: the folder cannot be written.
    """
    with archive.open("rb") as file:
        _check_directory(file)
    try:
        with zipfile.ZipFile(archive) as opened:
            _unpack_all(opened, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"the zip cannot be read: {error}") from None


def _check_directory(file: BinaryIO) -> None:
    """Bound the number of entries before `zipfile` reads all of them into memory."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _COMMENT_BYTES - 22 - 20)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or at + 22 > len(tail):
        raise DataError("the zip cannot be read: it has no end")
    entries, directory_bytes = struct.unpack("<HI", tail[at + 10 : at + 16])
    many = tail[max(0, at - 20) :].startswith(_END_64) or entries == 0xFFFF
    if many or entries > MAX_ENTRIES or directory_bytes > MAX_ENTRIES * _MAX_ENTRY_BYTES:
        raise DataError(f"the zip has more than {MAX_ENTRIES:,} entries; put the images into a parquet file")


def _unpack_all(opened: zipfile.ZipFile, folder: Path) -> None:
    entries = opened.infolist()
    if len(entries) > MAX_ENTRIES:
        raise DataError(f"the zip has more than {MAX_ENTRIES:,} entries; put the images into a parquet file")
    left = MAX_UNPACKED_BYTES
    for entry in entries:
        parts = _parts(entry)
        if entry.is_dir() or entry.filename.endswith("\\") or any(p.startswith(".") or p in _MACHINERY for p in parts):
            continue
        if entry.flag_bits & 1:
            raise DataError("the zip is encrypted")
        path = folder.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(entry) as source, path.open("xb") as target:
                while piece := source.read(_PIECE):
                    left -= len(piece)
                    if left < 0:
                        raise DataError(f"the zip unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
                    target.write(piece)
                target.flush()
                os.fsync(target.fileno())
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise DataError(f"the zip has {entry.filename[:80]!r} twice") from None


def _parts(entry: zipfile.ZipInfo) -> list[str]:
    """The parts of an entry's path, checked: it must stay inside the folder."""
    name = entry.filename.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    unsafe = name.startswith("/") or ".." in parts or "\0" in name or (parts and parts[0].endswith(":"))
    if unsafe or not parts:
        raise DataError(f"the zip has the path {entry.filename[:80]!r}, which leaves its folder")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"the zip has a link: {entry.filename[:80]!r}")
    if len(parts) > 20 or any(len(part.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES for part in parts):
        raise DataError(f"the zip has a path that is too long: {entry.filename[:80]!r}")
    return parts
