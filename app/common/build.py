"""The build this server runs, so that pages of an older build notice. Imports nothing heavy."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from app.common.locations import ROOT, STATIC
from model.build import package_version

STATIC_VERSION = "v-"  # begins the folder that names the build in an address


@functools.cache
def build_version() -> str:
    """The package's version and a hash of the pages' files as they were at the start, e.g. `0.1.0+3f9a2c1b`."""
    files = [path for path in STATIC.rglob("*") if path.is_file()]
    return f"{package_version()}+{hash_of([*files, *(ROOT / 'app' / 'ui').rglob('*.py')])}"


def static_path(name: str) -> str:
    """The address of a file in `static/`, e.g. `/static/v-3f9a2c1b/pages.css`; another build has other addresses.

    So browsers keep these files without asking again, and modules of two builds never mix.
    """
    return f"/static/{STATIC_VERSION}{build_version().rpartition('+')[2]}/{name}"


def hash_of(paths: Iterable[Path]) -> str:
    """Eight hex digits over the names and contents of files, independent of their order."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:8]
