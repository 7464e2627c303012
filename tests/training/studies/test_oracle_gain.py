"""The study of the model's own images: branches, corrections, other tasks, and the numbers by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.engine.engine import Engine
from tests.near_ties import NEAR
from tests.tiny import make_drawing_checkpoint
from training.benchmark.evaluate import evaluation_tasks
from training.benchmark.interventions import Codes, continue_all, drawn_images, edited
from training.studies.oracle_gain import ITSELF, KINDS, Branch, Oracle, Own, main, own_responses, reliance, run_study
from training.studies.oracle_report import summarize, tables
from training.world.world import EVAL_SEED_MIN, make_task, other_task


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """The study of the shipped checkpoint on a task of each slice."""
    return run_study(load_checkpoint(SHIPPED / "nano-omni-r1"), evaluation_tasks(4))


@pytest.fixture
def drawing(tmp_path: Path) -> LoadedCheckpoint:
    return load_checkpoint(make_drawing_checkpoint(tmp_path / "draws"))


def engine_of(loaded: LoadedCheckpoint) -> Engine:
    return Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=4)


def test_image_replaced_by_itself_changes_nothing(result: dict[str, Any]) -> None:
    check = result["kept_steps"]
    near = {found["task"] for found in check["differing"]}
    assert all(found["margin"] <= NEAR for found in check["differing"])
    assert check["reproduced"] + len(near) == check["traces"] == 4
    kept = [row for row in result["rows"]["branches"] if row["kind"] == ITSELF and row["task"] not in near]
    assert kept
    assert all(row["replaced"] == 0.0 and not row["changed"] for row in kept)
    own = result["rows"]["own"]
    assert all(row["answer"] == own[row["task"]]["answer"] for row in kept)


def test_every_image_is_replaced_by_every_kind(result: dict[str, Any]) -> None:
    rows = result["rows"]["branches"]
    kinds = [row["kind"] for row in rows]
    assert set(kinds) == {ITSELF, *KINDS}
    assert kinds.count("blank") == kinds.count("previous") == kinds.count(ITSELF) == result["kept_steps"]["branches"]
    assert all(row["replaced"] > 0.5 for row in rows if row["kind"] == "blank")
    assert [row["last"] for row in rows if row["kind"] == ITSELF].count(True) == 4
    assert all(0.0 <= row["replaced"] <= 1.0 for row in rows)


def test_numbers_are_shares_within_their_intervals(result: dict[str, Any]) -> None:
    groups = list(result["groups"])
    assert groups[:5] == ["all", "natural", "structured", "diagrammatic", "operational"]
    assert [name.partition("/")[0] for name in groups[5:]] == sorted(groups[1:5])
    for group in result["groups"].values():
        shares = [group["as_it_is"], group["with_reference"]]
        gain = group["oracle_gain"]
        assert gain["difference_ci95"][0] <= gain["difference"] <= gain["difference_ci95"][1]
        for scope in ("replaced", "replaced_last"):
            for found in group[scope].values():
                shares += [found[name] for name in ("changed", "accuracy", "as_it_is", "codes_replaced")]
                value, low, high = found["difference"]
                assert -1.0 <= low <= value <= high <= 1.0
        assert all(0.0 <= low <= value <= high <= 1.0 for value, low, high in shares)
    assert sum(row["tasks"] for row in result["by_drawings"].values()) == 4
    assert "4 of 4 traces reproduced" in tables(result) or result["kept_steps"]["differing"]


def test_kept_tokens_are_the_responses_own(drawing: LoadedCheckpoint) -> None:
    tasks = evaluation_tasks(4)
    own = own_responses(drawing, tasks)
    assert sum(len(one.images) for one in own) > 4
    for one in own:
        for image in one.images:
            assert edited(drawing, one.tokens, image, image.codes) == one.tokens[: image.end]
            other = edited(drawing, one.tokens, image, (0, 1, 2, 3))
            assert drawn_images(drawing, other)[-1].codes == (0, 1, 2, 3)
            assert drawn_images(drawing, other)[:-1] == [i for i in one.images if i.end < image.end]
            assert len(other) == image.end


def test_corrected_response_has_the_given_images_only(drawing: LoadedCheckpoint) -> None:
    own = own_responses(drawing, evaluation_tasks(4))
    begun: list[tuple[Sequence[int], Sequence[int]]] = [(one.prompt, ()) for one in own]
    codes = (5, 6, 7, 8)
    calls = []

    def correct(number: int, tokens: Sequence[int]) -> Codes | None:
        calls.append((number, len(tokens)))
        return codes if number else None

    corrected = continue_all(drawing, engine_of(drawing), begun, correct=correct)
    assert corrected[0] == own[0].tokens, "not corrected"
    for number, tokens in enumerate(corrected[1:], 1):
        found = drawn_images(drawing, tokens)
        assert found
        assert {image.codes for image in found} == {codes}
        assert found[0].end == own[number].images[0].end, "the model decides when to draw"
        assert [length for n, length in calls if n == number] == [image.end - 5 for image in found]


def test_reliance_is_measured_on_every_image(result: dict[str, Any]) -> None:
    rows = [row for row in result["rows"]["branches"] if row["kind"] == ITSELF]
    assert all(row["reliance"] is not None for row in rows)
    assert max(row["reliance"] for row in rows) > 1.0
    assert result["groups"]["all"]["replaced"][ITSELF]["reliance"]["correlation"] is None  # nothing changes
    assert "mean reliance (nats)" in tables(result)


def test_response_without_an_answer_has_no_reliance(drawing: LoadedCheckpoint) -> None:
    (own,) = own_responses(drawing, evaluation_tasks(1))
    found = reliance(drawing, engine_of(drawing), own)
    assert list(found) == [image.step for image in own.images]
    assert {answer for answer, _ in found.values()} == {None}
    assert any(later != 0.0 for _, later in found.values())


@pytest.mark.parametrize("seed", range(EVAL_SEED_MIN, EVAL_SEED_MIN + 6))
@pytest.mark.parametrize("slice_", ["natural", "operational"])
def test_other_task_has_another_answer_of_the_same_choices(slice_: str, seed: int) -> None:
    task = make_task(slice_, seed)
    other = other_task(task, len(task.steps))
    assert other is not None
    assert other.family == task.family
    assert len(other.steps) >= len(task.steps)
    assert other.seed >= EVAL_SEED_MIN
    if (task.family, task.answer) != ("count", "4"):
        assert other.answer != task.answer
        assert other.choices == task.choices


def test_step_that_no_task_has_finds_no_other_task() -> None:
    task = make_task("natural", EVAL_SEED_MIN, family="count")
    assert other_task(task, 4) is not None
    assert other_task(task, 5) is None


def one(right: bool, drawings_right: bool = True) -> Own:
    return Own([], [], (), [], "red" if right else "blue", right, drawings_right)


def test_shares_count_branches_and_compare_with_their_own_tasks() -> None:
    def blank(task: int, *, last: bool, right: bool, changed: bool, kind: str = "blank") -> Branch:
        return Branch(task, 1, last, kind, 1.0, None, right, changed, 3.0 if changed else 0.5, 4.0)

    branches = [
        blank(0, last=False, right=True, changed=False),
        blank(0, last=True, right=False, changed=True),
        blank(1, last=True, right=False, changed=True),
    ]
    oracles = [Oracle("red", True, 2, 0), Oracle("red", True, 1, 0), Oracle("blue", False, 0, 1)]
    own = [one(True), one(False, False), one(True)]
    summary = summarize(["natural/find", "operational/tilt", "operational/tilt"], own, branches, oracles)
    found = summary["groups"]["all"]["replaced"]["blank"]
    assert (found["branches"], found["changed"][0], found["accuracy"][0]) == (3, 0.6667, 0.3333)
    assert found["as_it_is"][0] == 0.6667  # both branches of task 0, not the task without an image
    assert found["difference"][0] == -0.3333
    assert found["follows"] is None
    assert found["reliance"]["correlation"][0] == 1.0
    assert (found["reliance"]["changed"][0], found["reliance"]["same"][0]) == (3.0, 0.5)
    last = summary["groups"]["all"]["replaced_last"]["blank"]
    assert (last["branches"], last["changed"][0], last["accuracy"][0]) == (2, 1.0, 0.0)
    assert summary["groups"]["operational"] == summary["groups"]["operational/tilt"]
    gain = summary["groups"]["operational"]["oracle_gain"]
    assert (gain["only_first"], gain["only_second"], gain["difference"]) == (1, 1, 0.0)
    assert summary["by_drawings"]["not all right"]["oracle_gain"]["difference"] == 1.0
    assert summary["kept_images"] == 1


def test_command_writes_numbers_and_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, out = make_drawing_checkpoint(tmp_path / "draws"), tmp_path / "out" / "oracle.json"
    assert main(["--checkpoint", str(checkpoint), "--tasks", "1", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["tasks"] == len(result["rows"]["oracle"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("| tasks | n | as it is | with reference images | oracle gain |")
    assert tables(result) in printed
