"""Two checkpoints on the same tasks: measures, pairing, and the command's output."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import SHIPPED
from tests.tiny import make_drawing_checkpoint
from training.benchmark.evaluate import evaluation_tasks
from training.data.token_sets import EncodedTask, ImageCoder, encode_tasks
from training.studies import compare_images as compare_images
from training.studies.compare_images import Look, look_at_drawings, main, table
from training.studies.side_by_side import Row, side_by_side
from training.world.world import make_task


@pytest.fixture(scope="module")
def shipped() -> LoadedCheckpoint:
    return load_checkpoint(SHIPPED / "nano-base")


def answered_with(monkeypatch: pytest.MonkeyPatch, traces: list[EncodedTask], loaded: LoadedCheckpoint) -> None:
    """Patch the checkpoint to answer with these traces."""
    given = []
    for trace in traces:
        rendered = trace.render(loaded.template)
        start = rendered.loss_mask.index(1)
        given.append((trace.image, SimpleNamespace(token_ids=rendered.ids[start:])))
    monkeypatch.setattr(compare_images, "ask", lambda *_: given)


def test_redrawn_reference_has_equal_measures(shipped: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = evaluation_tasks(4)
    assert shipped.vq is not None
    known = encode_tasks(tasks, ImageCoder(shipped.vq))
    answered_with(monkeypatch, known, shipped)
    look, reference = look_at_drawings(shipped, tasks, known)
    assert look.images == reference.images
    for name in ("energy", "changed", "distinct", "drawings_right"):  # of codes, and verdicts
        assert look.parts[name] == reference.parts[name]
    for (mine, count), (theirs, same) in zip(look.parts["outside_ink"], reference.parts["outside_ink"], strict=True):
        assert (mine, count) == (pytest.approx(theirs, abs=count), same)  # of pixels: a level each
    assert all(total <= count for total, count in look.parts["from_reference"])
    assert [total for total, _ in look.parts["accuracy"]] == [1.0] * 4
    assert sum(total for total, _ in look.parts["malformed"]) == 0.0
    assert all(row.right for row in look.rows)


def test_copy_changes_no_code(shipped: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [make_task("operational", 1_000_000_003, family="rotate")]
    assert shipped.vq is not None
    known = encode_tasks(tasks, ImageCoder(shipped.vq))
    copied = EncodedTask(
        known[0].question, known[0].image, tuple((t, s, known[0].image) for t, s, _ in known[0].steps), "nothing"
    )
    answered_with(monkeypatch, [copied], shipped)
    look, reference = look_at_drawings(shipped, tasks, known)
    assert look.values["changed"] == [0.0] * len(tasks[0].steps)
    assert min(reference.values["changed"]) > 0.0
    assert min(look.values["from_reference"]) > 1.0
    assert look.parts["drawings_right"] == [(0.0, float(len(tasks[0].steps)))]
    assert look.parts["accuracy"] == [(0.0, 1.0)]


def test_command_writes_numbers_plots_and_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make_drawing_checkpoint(tmp_path / "one")
    two = make_drawing_checkpoint(tmp_path / "two", seed=1)
    out = tmp_path / "out"
    torch.manual_seed(0)
    argv = [str(one), str(two), "--tasks", "4", "--fit-tasks", "4", "--names", "a", "b", "--out", str(out)]
    assert main(argv) == 0
    result = json.loads((out / "pictures.json").read_text())
    assert result["tasks"] == 4
    assert result["accuracy"]["tasks"] == 4
    assert result["measures"]["ce_image"]["first"] != result["measures"]["ce_image"]["second"]
    assert result["measures"]["pe_own"]["first"] is None  # no W was saved
    low, high = result["measures"]["energy"]["difference"][1:]
    assert low <= result["measures"]["energy"]["difference"][0] <= high
    printed = capsys.readouterr().out
    assert printed.startswith("| | reference | a | b | difference |")
    assert "L_Pe under the checkpoint's own W | – | – | – | – |" in printed
    for name in ("pictures.png", "sheet.png"):
        assert (out / name).stat().st_size > 1_000
    assert table(result, ("a", "b")) in printed


def test_sheet_shows_one_task_per_family() -> None:
    tasks = [make_task("natural", 5, family="find"), make_task("natural", 6, family="find")]
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    rows = [Row(task, grey, [(grey, True), (grey, False)], "red", True) for task in tasks]
    sheet = side_by_side({"a": rows, "b": rows})
    assert sheet.size == side_by_side({"a": rows[:1], "b": rows[:1]}).size  # one family, one block
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(0, 140, 60), (205, 40, 40), (128, 128, 128)} <= colours


def test_look_keeps_measures_per_task() -> None:
    look = Look()
    look.add({"energy": (1.0, 2.0)})
    look.add({"energy": (3.0, 1.0)})
    assert look.parts == {"energy": [(1.0, 2.0), (3.0, 1.0)]}
