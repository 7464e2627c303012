"""Zip archives of data sets: only plain files below the folder, within bounds."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from training.data import archives
from training.data.archives import MAX_ENTRIES, is_zip, unpack
from training.data.rows import DataError


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def unpacked(archive: Path) -> dict[str, bytes]:
    folder = archive.parent / "out"
    folder.mkdir()
    unpack(archive, folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def test_files_keep_their_folders(tmp_path: Path) -> None:
    entries = [
        ("set/a.jsonl", b"{}"),
        ("set/images/", b""),
        ("set/images/1.png", b"x"),
        ("windows\\2.png", b"y"),
        ("__MACOSX/set/._a.jsonl", b"no"),
        ("set/.DS_Store", b"no"),
    ]
    path = zipped(tmp_path / "a.zip", *entries)
    assert is_zip(path.read_bytes()[:4])
    assert unpacked(path) == {"set/a.jsonl": b"{}", "set/images/1.png": b"x", "windows/2.png": b"y"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../a.jsonl", "leaves its folder"),
        ("x/../../a.jsonl", "leaves its folder"),
        ("x/..", "leaves its folder"),
        ("..\\a.jsonl", "leaves its folder"),
        ("/etc/a.jsonl", "leaves its folder"),
        ("C:\\a.jsonl", "leaves its folder"),
        (link("a.jsonl"), "a link"),
        ("x" * 300 + ".jsonl", "too long"),
        ("x/" * 30 + "a.jsonl", "too long"),
    ],
)
def test_unsafe_names_are_rejected(name: str | zipfile.ZipInfo, words: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("good.jsonl", b"{}"), (name, b"/etc/passwd"))
    with pytest.raises(DataError, match=words):
        unpacked(path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.zip", "out"}


def test_same_name_twice_is_rejected(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = zipped(tmp_path / "a.zip", ("a.jsonl", b"{}"), ("a.jsonl", b"{}"))
    with pytest.raises(DataError, match="twice"):
        unpacked(path)


def test_too_many_entries_are_rejected_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "a.zip", *((f"{i}", b"") for i in range(100_000)), compression=zipfile.ZIP_STORED)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # reading the directory would take memory
    with pytest.raises(DataError, match=f"more than {MAX_ENTRIES:,} entries"):
        unpacked(path)


def test_understated_directory_is_rejected(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", *((f"{i}", b"") for i in range(MAX_ENTRIES + 1)))
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\5\6")
    data[at + 8 : at + 12] = struct.pack("<HH", 1, 1)
    path.write_bytes(data)
    with pytest.raises(DataError, match="more than"):
        unpacked(path)


def test_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 5_000_000)
    path = zipped(tmp_path / "a.zip", *((f"{i}.png", bytes(2_000_000)) for i in range(10)))
    assert path.stat().st_size < 50_000
    with pytest.raises(DataError, match="unpacks to more than 5,000,000 bytes"):
        unpacked(path)
    assert sum(p.stat().st_size for p in (tmp_path / "out").iterdir()) <= 5_000_000


def spoilt(data: bytes) -> bytes:
    at = data.index(b"a.jsonl") + len("a.jsonl")
    return data[:at] + b"\xff" * 6 + data[at + 6 :]


def encrypted(data: bytes) -> bytes:
    at = data.index(b"PK\1\2")
    return data[: at + 8] + b"\1" + data[at + 9 :]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[: len(data) // 2], "no end"),
        (lambda data: b"PK\3\4", "no end"),
        (spoilt, "cannot be read"),
        (encrypted, "encrypted"),
    ],
)
def test_broken_zip_is_named(spoil: Callable[[bytes], bytes], words: str, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("a.jsonl", b'{"question": "?"}\n' * 50))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=words):
        unpacked(path)


def test_directory_of_zip64_is_rejected(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jsonl", b"{}")
    data = buffer.getvalue()
    at = data.rfind(b"PK\5\6")
    path = tmp_path / "a.zip"
    path.write_bytes(data[:at] + b"PK\6\7" + bytes(16) + data[at:])
    with pytest.raises(DataError, match="more than"):
        unpacked(path)
