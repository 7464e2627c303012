"""A round of self-training: which responses are kept, and traces that PeSFT can read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.engine.phases import Legal
from model.engine.sequence import Completion
from training.data.rows import Row
from training.data.traces import parse_trace
from training.zero.own_traces import OwnTrace, main, report, select, sureness

TRACE = OwnTrace(
    task_id="a",
    slice="natural",
    kind="find",
    question="Which?",
    question_codes=(1, 2),
    steps=(("I look.", (3, 4)),),
    answer="red",
    right=True,
    well_formed=True,
    sureness=-0.5,
    drawings=(1, 1),
)


def trace(task_id: str = "a", code: int = 0, **changes: object) -> OwnTrace:
    """A response like TRACE whose image begins with `code`."""
    return replace(TRACE, task_id=task_id, steps=(("I look.", (code, 4)),), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", [{"right": False}, {"well_formed": False}, {"answer": None}])
def test_a_response_with_a_fault_is_never_kept(fault: dict[str, object]) -> None:
    good, bad = trace(code=1), trace(code=2, **fault)
    assert select([bad, good, good], each=8, keep_share=1.0) == [good]


def test_a_right_answer_in_the_minority_is_not_kept() -> None:
    lucky = trace(code=1)
    wrong = [trace(code=code, answer="blue", right=False) for code in (2, 3)]
    assert select([lucky, *wrong], each=8, keep_share=1.0) == []
    assert select([lucky, wrong[0]], each=8, keep_share=1.0) == [lucky]  # as frequent as the wrong one


def test_the_surest_different_responses_are_kept_in_the_questions_order() -> None:
    first = [trace("a", code, sureness=-float(code)) for code in (3, 1, 1, 2)]
    second = [trace("b", 5, sureness=-9.0)]
    kept = select([*first, *second], each=2, keep_share=1.0)
    assert [(one.task_id, one.sureness) for one in kept] == [("a", -1.0), ("a", -2.0), ("b", -9.0)]


def test_the_share_is_taken_within_each_kind() -> None:
    rows = [
        trace(f"{kind}-{number}", sureness=-number - offset, kind=kind)
        for kind, offset in (("find", 0.0), ("count", 100.0))
        for number in range(4)
    ]
    kept = select(rows, each=1, keep_share=0.5)
    assert [one.task_id for one in kept] == ["find-0", "find-1", "count-0", "count-1"]


def test_the_worlds_verdict_does_not_decide() -> None:
    rows = [trace("a", code, sureness=-float(code)) for code in range(4)]
    judged = [replace(one, drawings=(0, 1)) for one in rows]
    kept = [one.steps for one in select(rows, each=2, keep_share=1.0)]
    assert [one.steps for one in select(judged, each=2, keep_share=1.0)] == kept


def test_sureness_is_the_least_likely_images() -> None:
    code, text = Legal.CODE, Legal.TEXT
    mask = bytes([text, code, code, Legal.FORCED, text, code, code, Legal.FORCED])
    logprobs = [-9.0, -1.0, -3.0, 0.0, -9.0, -0.5, -0.5, 0.0]
    assert sureness(Completion([0] * 8, logprobs, mask, "eos")) == -2.0
    assert sureness(Completion([0] * 7, logprobs[:7], mask[:7], "length")) == -2.0
    assert sureness(Completion([0], [-1.0], bytes([text]), "eos")) == -math.inf


def test_the_report_counts_what_was_kept() -> None:
    rows = [trace("a", 1), trace("a", 2, right=False, drawings=(0, 2)), trace("b", 3, kind="count", drawings=(1, 2))]
    found = report(rows, select(rows, each=1, keep_share=1.0))
    assert found["all"]["answers_right"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["all"]["drawings_right"] == pytest.approx(2 / 5)
    assert found["all"]["kept"] == 2
    assert found["all"]["kept_drawings_right"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["count"]["kept_all_drawings_right"] == 0.0


def test_a_round_writes_traces_that_pesft_reads_and_continues(tmp_path: Path) -> None:
    command = ["nano-omni-r1", "--tasks", "6", "--samples", "2", "--each", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    loaded = load_checkpoint(SHIPPED / "nano-omni-r1")
    first = (tmp_path / "traces.jsonl").read_text("utf-8")
    samples = [parse_trace(Row(tmp_path, n, json.loads(line))) for n, line in enumerate(first.splitlines(), 1)]
    assert len(samples) == json.loads((tmp_path / "report.json").read_text("utf-8"))["all"]["kept"] > 0
    assert all(step.image is not None for sample in samples for step in sample.steps[:1])
    assert loaded.vq is not None
    (stored,) = (tmp_path / "responses").glob("*.jsonl")
    before = stored.stat().st_mtime_ns
    assert main(command) == 0
    assert stored.stat().st_mtime_ns == before
    assert (tmp_path / "traces.jsonl").read_text("utf-8") == first


@pytest.mark.parametrize(
    "flags", [["--tasks", "0"], ["--keep-share", "0"], ["--keep-share", "1.5"], ["--each", "0"]], ids=" ".join
)
def test_bad_flags_end_with_usage(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nano-omni-r1", "--out", str(tmp_path), *flags])
    assert ended.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_evaluation_seeds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nano-omni-r1", "--tasks", "1", "--first-seed", "1000000000", "--out", str(tmp_path)]) == 2
    assert "may not train" in capsys.readouterr().err
