"""What a file really is when it is not what its name says: a Git LFS pointer, a web page, an empty download.

Hubs and `git clone` leave such files where weights or JSON should be. Reads the first bytes only.
"""

from __future__ import annotations

from pathlib import Path

_HEAD_BYTES = 256
_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def foreign_content(path: Path, *, pickle: bool = False) -> str | None:
    """What a file holds instead of data, with the remedy, as the end of a sentence about it; None if nothing known.

    ``pickle``: whether it should be one.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty: download it again"
    if head.startswith(_LFS):
        return "is a Git LFS pointer: run `git lfs pull` in its folder"
    if start.startswith(_PAGES):
        return "is a web page, not data: download the file itself (on the hub, by its *resolve* address)"
    if head.startswith(_PICKLES) and not pickle:
        return "is a pickle under another name: pickles can run code and are not loaded"
    return None
