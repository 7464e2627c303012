"""The build this server runs, so that pages of an older build notice. Imports nothing heavy."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def build_version() -> str:
    """Package version and a hash of the page files, taken once per process, e.g. `0.1.0+3f9a2c1b`."""
    pages = (path for folder in (ROOT / "static", ROOT / "app" / "ui") for path in folder.rglob("*"))
    return f"{package_version()}+{hash_of(path for path in pages if path.suffix in ('.css', '.html', '.js', '.py'))}"


def package_version() -> str:
    """The installed package's version."""
    try:
        return version("omni-r1-studio")
    except PackageNotFoundError:
        return "0"


def hash_of(paths: Iterable[Path]) -> str:
    """Eight hex digits over the names and contents of files, independent of their order."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:8]
