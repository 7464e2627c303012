"""Further drills on an existing base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint.checkpoint import VQ_FILE, validate_checkpoint
from training.nano.more_drills import main

WEIGHTS = "model-lm.safetensors"


def test_further_drills_change_the_transformer_alone(family: Path, tmp_path: Path) -> None:
    base, out = family / "nano-base", tmp_path / "more"
    given = ["--first-seed", "500000", "--drills", "32", "--steps", "3"]
    assert main([str(base), str(out), *given]) == 0
    made = out / "checkpoint"
    manifest = validate_checkpoint(made)
    assert manifest.lineage["drills"]["first_seed"] == 500_000
    assert manifest.lineage["before"][0]["recipe"]["seed"] == 0
    assert manifest.verifier
    assert (made / VQ_FILE).read_bytes() == (base / VQ_FILE).read_bytes()
    before, after = load_file(base / WEIGHTS), load_file(made / WEIGHTS)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_lineage_lists_every_earlier_run_once(family: Path, tmp_path: Path) -> None:
    given = ["--first-seed", "500000", "--drills", "16", "--steps", "1"]
    folder = family / "nano-base"
    for name in ("first", "second"):
        assert main([str(folder), str(tmp_path / name), *given]) == 0
        folder = tmp_path / name / "checkpoint"
    before = validate_checkpoint(folder).lineage["before"]
    assert [run["stage"] for run in before] == ["base", "base"]
    assert not any("before" in run for run in before)


@pytest.mark.parametrize("seed", ["1000000000", "-1"])
def test_seeds_of_the_evaluation_are_refused(
    family: Path, tmp_path: Path, seed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(family / "nano-base"), str(tmp_path / "more"), "--first-seed", seed, "--drills", "8"]) == 2
    assert seed.lstrip("-") in capsys.readouterr().err
