"""The study of the perception score: its statistics by hand, and one run on a tiny checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint import load_checkpoint
from tests.tiny import make_drawing_checkpoint
from training.score_study import auc, plot, study, tables
from training.unitasks.world import SLICES, make_task


def test_auc_counts_pairs_and_halves_of_ties() -> None:
    # of the pairs (3,1) (3,2) (2,1) (2,2): three are won, one is a tie
    assert auc([3.0, 2.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)
    assert auc([1.0], [2.0]) == 0.0
    assert auc([1.0], []) is None


def test_a_study_counts_what_was_drawn_and_its_scores_rise_with_tau(tmp_path: Path) -> None:
    loaded = load_checkpoint(make_drawing_checkpoint(tmp_path / "draws"))
    tasks = [make_task(SLICES[i % 4], 39_000_000 + i) for i in range(4)]
    result = study(loaded, tasks)
    assert result["drawings"] == result["verdict"]["all"]["drawings"] > 0
    means = [row["mean"] for row in result["sweep"]]
    assert means == sorted(means)
    assert len(set(means)) > 1
    assert "| tau |" in tables(result)
    plot(result, tmp_path)
    assert (tmp_path / "tau.png").stat().st_size > 1_000
    assert (tmp_path / "verdict.png").stat().st_size > 1_000
