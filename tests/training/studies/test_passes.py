"""The study of forward passes: the shipped checkpoint draws in a fraction of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.studies.passes import main, means
from training.world.world import FAMILIES


def test_shipped_checkpoint_draws_in_a_quarter_of_the_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nano-omni-r1", "--tasks", "1", "--windows", "32", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "passes.json").read_text())["passes"]
    families = {family for families in FAMILIES.values() for family in families}
    assert set(found["32"]) == {*families, "all"}
    assert found["32"]["all"] <= 16
    assert (tmp_path / "passes.png").stat().st_size > 1000
    assert f"| all | {found['32']['all']:.1f} |" in capsys.readouterr().out


def test_means_weigh_families_alike() -> None:
    assert means({"a": [2, 4], "b": [9], "c": []}) == {"a": 3, "b": 9, "all": 6}
    assert means({"a": []}) == {}


def test_checkpoint_that_does_not_exist_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing"), "--out", str(tmp_path)]) == 2
    assert "missing" in capsys.readouterr().err
