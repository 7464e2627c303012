"""Evaluation of a quantised checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from training.benchmark.evaluate import evaluate, evaluation_tasks, run


@pytest.mark.parametrize("quant", [None, "int8"])
def test_summary_says_how_the_matrices_were_stored(tiny_checkpoint: Path, tmp_path: Path, quant: str | None) -> None:
    run(tiny_checkpoint, tasks=2, quant=quant, text_only=True, out=tmp_path)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "summary.json").read_text()).get("quant") == quant
    loaded = load_checkpoint(tiny_checkpoint, quant=quant)  # type: ignore[arg-type]
    expected = evaluate(loaded, evaluation_tasks(2), max_images=0)
    found = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert found == [asdict(prediction) for prediction in expected]
