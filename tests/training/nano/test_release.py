"""A release has a job's exact weights, with its own name, lineage and results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import LM_FILE, VQ_FILE, validate_checkpoint
from model.checkpoint.manifest import Manifest
from training.nano.release import main, release

NUMBERS = {
    "tasks": 40,
    "accuracy": 0.825,
    "accuracy_ci95": [0.68, 0.913],
    "drawings_right": 0.75,
    "malformed": 0.0,
    "blank": 0.0,
    "pictures": 2.0,
    "tokens": 170.0,
}
EVALUATION = {
    "level": "normal",
    "first_seed": 1_000_000_000,
    "results": {"all": NUMBERS, "natural": NUMBERS, "natural/find": NUMBERS},
}


def test_release_drops_only_the_training_state(pesft_job: Path, tmp_path: Path) -> None:
    source = _last(pesft_job)
    assert (source / "train").is_dir()
    release(source, tmp_path / "handed-out", evaluation=EVALUATION)
    manifest = validate_checkpoint(tmp_path / "handed-out")
    assert manifest.name == "handed-out"
    assert not (tmp_path / "handed-out" / "train").exists()
    for file in (LM_FILE, VQ_FILE, "tokenizer.json"):
        assert (tmp_path / "handed-out" / file).read_bytes() == (source / file).read_bytes()
    assert manifest.lineage["spec"]["hyperparameters"] == Manifest.read(source).lineage["spec"]["hyperparameters"]
    assert str(pesft_job.parent) not in (tmp_path / "handed-out" / "manifest.json").read_text()
    assert manifest.lineage["evaluation"]["results"].keys() == {"all", "natural"}
    reached = manifest.extra["metrics"]
    assert (reached["accuracy/all"], reached["accuracy/natural"], reached["drawings/right"]) == (0.825, 0.825, 0.75)
    assert "accuracy/natural/find" not in reached


def test_card_states_results_and_training(pesft_job: Path, tmp_path: Path) -> None:
    manifest = release(_last(pesft_job), tmp_path / "a", name="nano-x", evaluation=EVALUATION, notes="Fails on maps.")
    text = (tmp_path / "a" / "README.md").read_text()
    assert text.startswith("# nano-x\n")
    assert "accuracy 0.825 (95 % interval 0.680 - 0.913; natural 0.825)" in text
    assert f"stage `pesft`, {manifest.lineage['step']} steps" in text
    assert "Fails on maps." in text


def test_intermediate_stages_join_the_lineage(pesft_job: Path, tmp_path: Path) -> None:
    source = _last(pesft_job)
    first = release(source, tmp_path / "first")
    second = release(source, tmp_path / "second", before=[tmp_path / "first"])
    assert second.lineage["before"] == [first.lineage]
    assert second.base == first.base
    assert (tmp_path / "second" / "README.md").read_text().count("- stage `pesft`") == 2


def test_release_replaces_the_old_one_atomically(
    pesft_job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = _last(pesft_job), tmp_path / "out"
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps(EVALUATION))
    assert main([str(source), str(target), "--name", "one"]) == 0
    assert main([str(source), str(target), "--name", "two", "--evaluation", str(summary)]) == 0
    assert Manifest.read(target).name == "two"
    assert main([str(tmp_path), str(target)]) == 2
    assert "config.json" in capsys.readouterr().err
    assert Manifest.read(target).name == "two"


def _last(job: Path) -> Path:
    result = json.loads((job / "result.json").read_text())
    return Path(result["folder"])
