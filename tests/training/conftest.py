"""The family's recipe after a few steps, built once for all tests of this folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock  # a dependency of torch

from tests.training.job_helpers import make_context, pesft_spec
from training.nano.stages import run
from training.pesft.job import run as run_pesft


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``vq``, ``nano-base`` and ``nano-omni-r1`` of the smoke preset, trained once for all workers."""
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-family"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            trained = tmp_path_factory.mktemp("training")
            for stage in ("vq", "base", "pesft"):
                run(stage, preset="smoke", out=trained, threads=1)
            trained.rename(made)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("family") / "own"))


@pytest.fixture(scope="session")
def pesft_job(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The folder of an uninterrupted PeSFT job."""
    folder = tmp_path_factory.mktemp("jobs") / "whole"
    result = run_pesft(make_context(folder, pesft_spec(), tiny_checkpoint))
    (folder / "result.json").write_text(json.dumps(result))
    return folder
