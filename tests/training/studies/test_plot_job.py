"""Curves of jobs and runs: reading, panels, and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from training.jobs.log import JobLog
from training.studies.plot_job import main, plot, read_curves, smoothed


def job(folder: Path, rows: list[tuple[str, int, dict[str, float]]]) -> Path:
    folder.mkdir()
    with JobLog(folder, tensorboard=False) as log:
        for stage, step, values in rows:
            log.progress(stage, step, 10)
            log.metrics(stage, step, values)
    return folder


def test_later_row_of_a_step_counts(tmp_path: Path) -> None:
    rows = [("perpo", 1, {"reward/total": 0.1}), ("perpo", 2, {"reward/total": 0.2})]
    folder = job(tmp_path / "job", [*rows, ("perpo", 2, {"reward/total": 0.3}), ("perpo", 3, {"reward/total": 0.4})])
    assert read_curves(folder) == {"reward/total": {1: 0.1, 2: 0.3, 3: 0.4}}


def test_half_a_line_is_skipped(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", [("perpo", 1, {"policy/kl": 0.5})])
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"type": "metrics", "data": {"stage": "per')
    assert read_curves(folder) == {"policy/kl": {1: 0.5}}


def test_pipeline_stage_must_be_named(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", [("pesft", 1, {"loss/text": 2.0}), ("perpo", 1, {"reward/total": 0.5})])
    with pytest.raises(ValueError, match=r"--stage \(perpo, pesft\)"):
        read_curves(folder)
    assert read_curves(folder, "pesft") == {"loss/text": {1: 2.0}}
    with pytest.raises(ValueError, match="'zero'"):
        read_curves(folder, "zero")


def test_running_mean_skips_non_finite_values() -> None:
    assert smoothed([1.0, 2.0, 6.0, 3.0], 3).tolist() == pytest.approx([1.5, 3.0, 11 / 3, 4.5])
    assert smoothed([1.0, math.nan, 3.0], 3).tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert smoothed([5.0, 1.0], 1).tolist() == [5.0, 1.0]


def test_empty_panels_are_omitted(tmp_path: Path) -> None:
    curves = {"reward/total": {1: 0.1, 2: 0.2}, "policy/entropy_image": {1: 1.0, 2: math.nan}}
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert plot({"a": curves}, one) == ["reward", "entropy, nats a token"]
    assert plot({"a": curves, "b": {"policy/kl": {1: 0.0}, "policy/entropy_text": {1: 0.5}}}, two) == [
        "reward",
        "KL to the reference, nats a token",
        "entropy, nats a token",
    ]
    with Image.open(one) as first, Image.open(two) as second:
        assert first.width < second.width  # one panel more
        assert first.getcolors(1 << 20)[0][0] < first.width * first.height  # something is drawn


def test_command_draws_jobs_and_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": k, "seconds": 1.0, "loss/text": 1 / k, "loss/perception": 0.5} for k in (25, 50)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logged = job(tmp_path / "job", [("pesft", 25, {"loss/text": 0.3})])
    out = tmp_path / "plots" / "loss.png"
    assert main([str(run), str(logged), "--out", str(out)]) == 0
    assert "cross-entropy" in capsys.readouterr().out
    assert out.stat().st_size > 1_000
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(empty), "--out", str(out)]) == 2
    assert "no curves" in capsys.readouterr().err
