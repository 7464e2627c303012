"""Evaluation on held-out tasks: quantised checkpoints, and where answers go wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from training.benchmark.evaluate import Prediction, error_modes, evaluate, evaluation_tasks, run, summarize


@pytest.mark.parametrize("quant", [None, "int8"])
def test_summary_says_how_the_matrices_were_stored(tiny_checkpoint: Path, tmp_path: Path, quant: str | None) -> None:
    run(tiny_checkpoint, tasks=2, quant=quant, text_only=True, out=tmp_path)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "summary.json").read_text()).get("quant") == quant
    loaded = load_checkpoint(tiny_checkpoint, quant=quant)  # type: ignore[arg-type]
    expected = evaluate(loaded, evaluation_tasks(2), max_images=0)
    found = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert found == [asdict(prediction) for prediction in expected]


def prediction(*, right: bool, drawings: tuple[int, int], pictures: int = 2) -> Prediction:
    return Prediction("natural-1", "natural", "find", "a", "a", right, False, *drawings, pictures, 0, 9)


def test_summary_tells_wrong_drawings_from_drawings_read_wrongly() -> None:
    seen = [
        prediction(right=True, drawings=(2, 2)),
        prediction(right=True, drawings=(1, 1)),
        prediction(right=False, drawings=(3, 3)),
        prediction(right=True, drawings=(1, 2)),
        prediction(right=True, drawings=(0, 0)),
    ]
    found = summarize(seen)["all"]
    assert found["all_drawings_right"] == pytest.approx(3 / 4), "of the traces with drawings"
    assert found["read_right"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["right_with_wrong_drawings"] == 1.0
    assert "| natural/find | 0.750 | 0.667 | 1.000 |" in error_modes(summarize(seen))


def test_summary_without_drawings_has_no_error_modes() -> None:
    found = summarize([prediction(right=True, drawings=(0, 2), pictures=0)])["all"]
    assert found["all_drawings_right"] is found["read_right"] is found["right_with_wrong_drawings"] is None
    assert "| - | - | - |" in error_modes({"all": found})
