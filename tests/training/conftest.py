"""The family's recipe after a few steps, made once for all tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.job_helpers import make_context, pesft_spec
from training.nano import run
from training.pesft import run as run_pesft


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``vq``, ``nano-base`` and ``nano-omni-r1`` of the smoke preset."""
    out = tmp_path_factory.mktemp("family")
    for stage in ("vq", "base", "pesft"):
        run(stage, preset="smoke", out=out, threads=1)
    return out


@pytest.fixture(scope="session")
def pesft_job(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The folder of a PeSFT job that nothing disturbed."""
    folder = tmp_path_factory.mktemp("jobs") / "whole"
    result = run_pesft(make_context(folder, pesft_spec(), tiny_checkpoint))
    (folder / "result.json").write_text(json.dumps(result))
    return folder
