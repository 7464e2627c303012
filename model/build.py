"""The version of this program and the commit it was built from."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_BAKED = Path(__file__).with_name("commit.txt")  # written into a wheel by setup.py


@functools.cache
def package_version() -> str:
    """The installed package's version."""
    try:
        return version("omni-r1-studio")
    except PackageNotFoundError:
        return "0"


@functools.cache
def commit() -> str:
    """The full hash: of the build in a wheel, of HEAD in a checkout, ``unknown`` without git."""
    if _BAKED.is_file():
        return _BAKED.read_text("utf-8").strip()
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=_BAKED.parent, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def provenance() -> dict[str, str]:
    """Commit, Python and machine, to be written beside results."""
    return {"commit": commit(), "python": platform.python_version(), "machine": platform.machine()}
