"""The family's recipe after a few steps, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.nano import run


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``vq``, ``nano-base`` and ``nano-omni-r1`` of the smoke preset."""
    out = tmp_path_factory.mktemp("family")
    for stage in ("vq", "base", "pesft"):
        run(stage, preset="smoke", out=out, threads=1)
    return out
