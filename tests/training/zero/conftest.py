"""A base checkpoint for the tests of Zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from tests.tiny import make_tiny_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("base") / "tiny", resolution=32)


@pytest.fixture(scope="module")
def tiny(base: Path) -> LoadedCheckpoint:
    return load_checkpoint(base)
