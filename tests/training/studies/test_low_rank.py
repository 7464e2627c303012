"""The study of LoRA: the share by hand, and a run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import make_drawing_checkpoint
from training.studies.low_rank import FULL, PAIRS, Run, main, share_of_drop


def test_share_compares_the_best_runs() -> None:
    runs = [Run(PAIRS, 1.0, 2.2, 10), Run(PAIRS, 2.0, 1.2, 10), Run(FULL, 1.0, 1.0, 99), Run(FULL, 2.0, 3.5, 99)]
    assert share_of_drop(3.0, runs) == pytest.approx(1.8 / 2.0)


def test_study_trains_both_ways_and_keeps_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out = str(make_drawing_checkpoint(tmp_path / "draws")), tmp_path / "study"
    given = [base, "--steps", "2", "--rank", "4", "--tasks", "2", "--pair-rates", "1e-2", "--full-rates", "1e-3,1e-2"]
    assert main([*given, "--out", str(out)]) == 0
    first = json.loads((out / "low-rank.json").read_text())
    assert [(run["way"], run["lr"]) for run in first["runs"]] == [(PAIRS, 1e-2), (FULL, 1e-3), (FULL, 1e-2)]
    pairs, one, other = first["runs"]
    assert pairs["trained"] < one["trained"] == other["trained"]
    assert len({first["before"], pairs["loss"], one["loss"], other["loss"]}) == 4, (
        "each run changes the loss in its way"
    )
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert main([*given, "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")} == before
    assert json.loads((out / "low-rank.json").read_text())["runs"] == first["runs"]
    assert main([str(tmp_path / "nothing"), "--out", str(out)]) == 2
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"), [("--steps=3", "other settings"), ("--rank=2", "other settings"), ("--rank=0", "at least 1")]
)
def test_runs_with_other_settings_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    base = str(make_drawing_checkpoint(tmp_path / "draws"))
    given = [base, "--steps=2", "--rank=4", "--tasks=2", "--pair-rates=1e-2", "--full-rates=1e-2"]
    out = ["--out", str(tmp_path / "study")]
    assert main([*given, *out]) == 0
    before = (tmp_path / "study" / "low-rank.json").read_bytes()
    assert main([*given, change, *out]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "study" / "low-rank.json").read_bytes() == before
