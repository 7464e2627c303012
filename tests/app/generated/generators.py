"""The generators of clients, with pinned versions: installed on first use, else the test is skipped with the reason."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from tests.patience import PATIENCE_S

HERE = Path(__file__).resolve().parent
STATIC = HERE.parents[1] / "static"  # its package.json pins every npm package of the project


def node_modules() -> Path:
    """The npm packages, with openapi-typescript, openapi-fetch and typescript."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            _missing(f"{program} is not installed")
    _install("the installation of npm packages", ["sh", str(STATIC / "npm.sh"), "--version"])
    return STATIC / "node_modules"


def python(cache: Path) -> Path:
    """A Python with openapi-python-client, in an environment below `cache`."""
    wanted = (HERE / "requirements.txt").read_text()
    folder = cache / f"python-{hashlib.sha256((sys.version + wanted).encode()).hexdigest()[:12]}"
    done, found = folder / "done", folder / "bin" / "python"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _install("the creation of a virtual environment", [sys.executable, "-m", "venv", str(folder)])
        pip = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _install("the installation of openapi-python-client", [*pip, "-r", str(HERE / "requirements.txt")])
        done.touch()
    return found


def _install(what: str, command: list[str]) -> None:
    tried = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if tried.returncode != 0:
        last = (tried.stderr or tried.stdout).strip().splitlines()[-1:] or [f"exit code {tried.returncode}"]
        _missing(f"{what} failed: {last[0]}")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("OMNI_R1_REQUIRE_GENERATORS") == "1":
        pytest.fail(f"OMNI_R1_REQUIRE_GENERATORS=1, but {reason}")
    pytest.skip(reason)
