"""The cards of the shipped checkpoints say which questions they were trained on; nothing else changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from model.text.questions import KEY, card
from training.nano import questions

NANO = Path(__file__).parents[3] / "model" / "nano"


def test_shipped_cards_are_what_the_world_asks() -> None:
    """No pair of words is new after a few hundred questions of each family."""
    for name in ("nano-omni-r1", "nano-omni-r1-zero"):
        manifest = json.loads((NANO / name / "manifest.json").read_text())
        assert manifest[KEY] == card(questions.task_questions(600))


def test_writing_changes_the_manifest_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "task_questions", lambda: iter(["How many red things are there?"]))
    folder = tmp_path / "nano-omni-r1"
    shutil.copytree(NANO / "nano-omni-r1", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert questions.main([str(folder)]) == 0
    changed = {path.name for path in folder.iterdir() if before[path.name] != path.read_bytes()}
    assert changed == {"manifest.json"}
    old, new = (json.loads(text) for text in (before["manifest.json"], (folder / "manifest.json").read_text()))
    assert old.pop(KEY) != new.pop(KEY)
    assert old == new


def test_missing_checkpoint_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert questions.main([str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
