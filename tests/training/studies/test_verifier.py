"""The study of the verifier: pairs within steps, best of n, and a run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from training.nano.more_drills import main as more_drills
from training.studies.verifier import Step, draw, main, summarise


def step(right: tuple[bool, ...], values: tuple[float, ...], family: str = "find", chain: str = "1") -> Step:
    other = dict.fromkeys(("perception", "likelihood", "share"), tuple(0.0 for _ in right))
    return Step(chain, family, right, {"verifier": values, **other})


def test_pairs_are_counted_within_steps() -> None:
    one = step((True, False, False, True), (0.0, -1.0, 0.0, -2.0))
    assert one.pairs == 4
    assert one.won("verifier") == 1 + 0.5  # 0 beats -1 and ties with 0; -2 beats nothing
    assert one.won("share") == 2.0, "ties count half"
    assert step((True, True), (0.0, 1.0)).pairs == 0


def test_score_chooses_among_the_candidates_of_a_step() -> None:
    steps = [step((False, True), (-2.0, -1.0)), step((True, False), (-2.0, -1.0)), step((True, True), (0.0, 0.0))]
    found = summarise(steps)["all"]
    assert found["first_right"][0] == pytest.approx(2 / 3)
    assert found["any_right"][0] == 1.0
    assert found["verifier"]["best_right"][0] == pytest.approx(2 / 3)
    assert found["share"]["best_right"] == found["first_right"], "equal scores: the first"
    assert found["verifier"]["auc"][0] == 0.5


def test_steps_of_a_chain_are_not_independent() -> None:
    def width(chains: int) -> float:
        steps = [step((n % 2 == 0, False), (0.0, 0.0), chain=str(n % chains)) for n in range(40)]
        value, low, high = summarise(steps)["all"]["first_right"]
        assert value == 0.5
        return high - low

    assert width(2) > 2 * width(40)


def test_families_do_not_mix() -> None:
    found = summarise([step((True, False), (5.0, 4.0)), step((True, False), (1.0, 2.0), "tilt")])
    assert found["find"]["verifier"]["auc"][0] == 1.0
    assert found["tilt"]["verifier"]["auc"][0] == 0.0


def test_study_runs_on_a_base_with_inverse_drills(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--first-seed", "500000", "--drills", "16", "--steps", "1"]
    assert more_drills([str(family / "nano-base"), str(tmp_path / "more"), *given]) == 0
    small = ["--chains", "4", "--candidates", "2", "--out", str(tmp_path / "study")]
    assert main([str(tmp_path / "more" / "checkpoint"), *small]) == 0
    found = json.loads((tmp_path / "study" / "verifier.json").read_text())
    assert found["all"]["steps"] == sum(row["steps"] for name, row in found.items() if name != "all")
    drawer = ["--drawer", str(family / "nano-base"), "--level", "2", "--out", str(tmp_path / "other")]
    assert main([str(tmp_path / "more" / "checkpoint"), *small, *drawer]) == 0
    assert json.loads((tmp_path / "other" / "verifier.json").read_text())["all"]["steps"] > 0
    loaded = load_checkpoint(family / "nano-base")
    orders, traces = (draw(loaded, 2, 2, 29_000_000, own=own) for own in (False, True))
    assert [one.texts for one in orders] == [one.texts for one in traces]
    assert [one.steps for one in orders] != [one.steps for one in traces], "the images before are shown"
    capsys.readouterr()
    assert main([str(family / "nano-base"), *small]) == 2
    assert "no verifier" in capsys.readouterr().err
