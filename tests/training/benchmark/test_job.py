"""The benchmark job: judged answers, sums with intervals, paired comparisons, stop and resume."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.checkpoint.checkpoint import load_checkpoint
from tests.tiny import make_drawing_checkpoint, make_tiny_checkpoint
from tests.training.contexts import StopAfter, events_of, job
from training.benchmark import job as benchmark_job
from training.benchmark.evaluate import evaluate, evaluation_tasks
from training.benchmark.report import Answer, Verdicts, compare, flat_metrics, summarize_answers
from training.jobs.context import JobError, JobStopped
from training.scoring.judge import Verdict

WORLD = {"source": "unitasks", "num_samples": 10}
HYPER: dict[str, Any] = {"batch_size": 2, "max_new_tokens": 24, "show_samples": 2}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints with different weights and templates."""
    root = tmp_path_factory.mktemp("bases")
    first = make_tiny_checkpoint(root / "tiny")
    return {"tiny": first, "other": make_tiny_checkpoint(root / "other", seed=1, template="tagged")}


def answer(item: str, slice_: str, right: bool, *, judge: bool | None = None, **more: Any) -> Answer:
    given = {
        "item_id": item,
        "slice": slice_,
        "group": None,
        "question": "q",
        "reference": "a",
        "answer": "a",
        "texts": (),
        "rules": Verdicts(right, float(right), "text"),
        "judge": None if judge is None else Verdict(judge),
        "malformed": False,
        "pictures": 2,
        "blank": 0,
        "drawings_right": None,
        "drawings_total": None,
        "tokens": 10,
        "finish_reason": "stop",
    }
    return Answer(**{**given, **more})


def bench(folder: Path, bases: dict[str, Path], *, data: Any = None, **more: Any) -> Any:
    hyper = {**HYPER, **more.pop("hyperparameters", {})}
    spec = {"method": "benchmark", "data": data or WORLD, "hyperparameters": hyper}
    return job(folder, spec, bases["tiny"], checkpoints=bases, **more)


def predictions(ctx: Any, name: str = "tiny") -> list[dict[str, Any]]:
    path = ctx.folder / "benchmark" / name / "predictions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_overall_average_is_weighted_by_samples() -> None:
    # 1 of 1 and 1 of 3: by samples 2/4, not the mean of the slices' shares (2/3)
    given = [answer("1", "natural", True), answer("2", "operational", True)]
    given += [answer(str(i), "operational", False) for i in (3, 4)]
    summary = summarize_answers(given)
    assert summary["all"]["accuracy"] == 0.5
    assert summary["natural"]["accuracy"] == 1.0
    assert summary["operational"]["accuracy"] == pytest.approx(1 / 3, abs=1e-4)
    assert summary["all"]["accuracy_ci95"] == [0.15, 0.85]  # Wilson's interval for 2 of 4
    metrics = flat_metrics(summary)
    assert (metrics["accuracy/all"], metrics["accuracy/natural"], metrics["malformed/share"]) == (0.5, 1.0, 0.0)


def test_questions_without_slice_count_overall() -> None:
    answers = [answer("a", "all", True), answer("b", "charts", False), answer("c", "charts", False)]
    summary = summarize_answers(answers)
    assert (summary["all"]["tasks"], summary["all"]["right"]) == (3, 1)
    assert list(summary) == ["all", "charts"]


def test_judge_verdict_has_precedence() -> None:
    given = [answer("1", "s", False, judge=True), answer("2", "s", True, judge=True), answer("3", "s", True)]
    given.append(answer("4", "s", True, judge=None).judged(Verdict(None, "timeout")))
    assert [a.right for a in given] == [True, True, True, True]
    row = summarize_answers(given)["all"]
    assert row["accuracy"] == 1.0
    assert row["judge"] == {"judged": 2, "failed": 1, "accuracy": 1.0, "agrees_with_rules": 0.5}
    back = Answer.from_json(json.loads(json.dumps(given[0].to_json())))
    assert back == given[0]


def test_drawings_and_blanks_are_shares_of_images() -> None:
    given = [
        answer("1", "s", True, drawings_right=1, drawings_total=3, pictures=3, blank=1),
        answer("2", "s", True, drawings_right=1, drawings_total=1, pictures=1),
    ]
    row = summarize_answers(given)["all"]
    assert (row["drawings_right"], row["blank"], row["pictures"]) == (0.5, 0.25, 2.0)


def test_comparison_needs_the_same_questions() -> None:
    first = [answer("1", "a", True), answer("2", "b", False)]
    table = compare("x", first, "y", [answer("1", "a", True), answer("2", "b", True)])
    assert table["results"]["all"]["difference"] == 0.5
    assert table["results"]["b"]["only_second"] == 1
    with pytest.raises(ValueError, match="same questions"):
        compare("x", first, "y", [answer("1", "a", True), answer("3", "b", True)])


def test_job_answers_like_the_evaluation(tmp_path: Path, bases: dict[str, Path]) -> None:
    ctx = bench(tmp_path / "job", bases, hyperparameters={"max_new_tokens": None})
    result = benchmark_job.run(ctx)
    rows = predictions(ctx)
    expected = evaluate(load_checkpoint(bases["tiny"]), evaluation_tasks(10))
    assert [r["item_id"] for r in rows] == [p.task_id for p in expected]
    for row, other in zip(rows, expected, strict=True):
        assert (row["answer"], row["right"], row["pictures"]) == (other.answer, other.right, other.pictures)
        assert (row["drawings_right"], row["drawings_total"]) == (other.drawings_right, other.drawings_total)
        assert (row["malformed"], row["blank"], row["tokens"]) == (other.malformed, other.blank, other.tokens)
    (metrics,) = events_of(ctx, "metrics")
    assert set(metrics["values"]) >= {"accuracy/all", "accuracy/natural", "drawings/right", "malformed/share"}
    assert result["metrics"]["accuracy/all"] == metrics["values"]["accuracy/all"]
    assert [p["step"] for p in events_of(ctx, "progress")] == [8, 10]
    assert len(events_of(ctx, "sample")) == 2
    summary = json.loads((ctx.folder / "benchmark" / "tiny" / "summary.json").read_text())
    assert summary["summary"]["all"]["tasks"] == 10


def test_stopped_job_resumes_with_its_answers(tmp_path: Path, bases: dict[str, Path]) -> None:
    whole = bench(tmp_path / "whole", bases)
    benchmark_job.run(whole)
    with pytest.raises(JobStopped):
        benchmark_job.run(bench(tmp_path / "parts", bases, stop=StopAfter(10 + 1)))  # ten to read, one chunk to answer
    parts = bench(tmp_path / "parts", bases, resume=True)
    assert len(predictions(parts)) == 8
    kept = predictions(parts)
    benchmark_job.run(parts)
    assert predictions(parts) == predictions(whole)
    assert predictions(parts)[:8] == kept
    assert [p["step"] for p in events_of(parts, "progress")] == [8, 10]  # the first eight are not repeated


def test_two_checkpoints_are_compared_in_pairs(tmp_path: Path, bases: dict[str, Path]) -> None:
    ctx = bench(tmp_path / "job", bases, hyperparameters={"compare_with": "other"})
    result = benchmark_job.run(ctx)
    comparison = result["comparison"]
    assert (comparison["first"], comparison["second"]) == ("other", "tiny")
    assert comparison["results"]["all"]["tasks"] == 10
    assert set(comparison["results"]) == {"all", "natural", "structured", "diagrammatic", "operational"}
    assert [r["item_id"] for r in predictions(ctx)] == [r["item_id"] for r in predictions(ctx, "other")]
    assert [p["total"] for p in events_of(ctx, "progress")] == [20] * 4
    assert {r["kind"] for r in events_of(ctx, "report")} == {"benchmark", "comparison"}
    assert [m["stage"] for m in events_of(ctx, "metrics")] == ["benchmark"]  # of the measured run itself
    assert events_of(ctx, "metrics")[0]["values"] == result["metrics"] == result["checkpoints"]["tiny"]["metrics"]
    reports = [r for r in events_of(ctx, "report") if r["kind"] == "benchmark"]
    assert [r["checkpoint"] for r in reports] == ["tiny", "other"]


@pytest.mark.parametrize(("name", "code"), [("nobody", "unknown_checkpoint"), ("tiny", "same_checkpoint")])
def test_invalid_comparison_is_rejected(tmp_path: Path, bases: dict[str, Path], name: str, code: str) -> None:
    with pytest.raises(JobError) as caught:
        benchmark_job.run(bench(tmp_path / "job", bases, hyperparameters={"compare_with": name}))
    assert caught.value.code == code


def omni_bench(folder: Path) -> Path:
    """Two files of the official schema, with one broken row."""
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    folder.mkdir()
    rows = [{"image": image, "question": f"Where? {i}", "answer": "left"} for i in range(3)]
    pq.write_table(
        pa.Table.from_pylist([*rows, {"image": image, "question": "q", "answer": ""}]), folder / "vstar.parquet"
    )
    long = {"image": "<TLTS>", "question": "word " * 2_000, "answer": "1"}
    pq.write_table(pa.Table.from_pylist([long]), folder / "geometry3k.parquet")
    return folder


def test_omni_bench_reports_every_slice_and_rejection(tmp_path: Path, bases: dict[str, Path]) -> None:
    data = {"source": "omni_bench", "path": str(omni_bench(tmp_path / "bench"))}
    ctx = bench(tmp_path / "job", bases, data=data)
    result = benchmark_job.run(ctx)
    summary = result["checkpoints"]["tiny"]["summary"]
    assert {name: row["tasks"] for name, row in summary.items()} == {
        "all": 4,
        "natural": 3,
        "natural/vstar": 3,
        "diagrammatic": 1,
        "diagrammatic/geometry3k": 1,
    }
    (warning,) = events_of(ctx, "warning")
    assert (warning["code"], "vstar.parquet:4" in warning["detail"]) == ("samples_rejected", True)
    (long,) = [r for r in predictions(ctx) if r["error"]]
    assert "leaves no room" in long["error"]
    assert not long["right"]  # counted as wrong, with the reason
    assert summary["diagrammatic"]["errors"] == 1


@contextmanager
def endpoint(replies: dict[str, str], status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A judge on its own port: its verdict per reference answer, and the received requests."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            shown = json.loads(body["messages"][1]["content"])
            received.append(shown)
            text = json.dumps({"choices": [{"message": {"content": replies.get(shown["reference_answer"], "hm")}}]})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            """Log nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_verifier_chooses_among_candidates(tmp_path: Path) -> None:
    drawing = make_drawing_checkpoint(tmp_path / "tiny", verifier="What was done?")
    bases = {"tiny": drawing, "other": make_tiny_checkpoint(tmp_path / "other", seed=1, verifier="What was done?")}
    found = {}
    for count in (1, 4):
        hyper = {"candidates": count, "max_new_tokens": 60, "temperature": 1.0}
        ctx = bench(tmp_path / str(count), bases, hyperparameters=hyper)
        benchmark_job.run(ctx)
        found[count] = predictions(ctx)
    assert [r["tokens"] for r in found[4]] == [r["tokens"] for r in found[1]] == [60] * 10
    assert sum(r["pictures"] for r in found[1]) > 5
    assert [r["texts"] for r in found[4]] != [r["texts"] for r in found[1]]
    ctx = bench(tmp_path / "other-vq", bases, hyperparameters={"candidates": 4, "verifier": "other"})
    with pytest.raises(JobError, match="codebooks differ"):
        benchmark_job.run(ctx)


def test_judge_and_rules_verdicts_are_both_kept(
    tmp_path: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_job, "read_response", _answering("on the left"))
    data = {"source": "omni_bench", "path": str(omni_bench(tmp_path / "bench")), "num_samples": 4}
    with endpoint({"left": '{"correct": true}'}) as (url, received):
        judge = {"url": url, "model": "m", "retries": 0, "concurrency": 1}
        ctx = bench(tmp_path / "job", bases, data=data, hyperparameters={"judge": judge})
        result = benchmark_job.run(ctx)
    assert [case["candidate_answer"] for case in received] == ["on the left"] * 3
    rows = [r for r in predictions(ctx) if not r["error"]]
    assert all(r["right"] and r["judge"]["right"] and not r["rules"]["right"] for r in rows)
    assert result["checkpoints"]["tiny"]["summary"]["natural"]["judge"]["agrees_with_rules"] == 0.0
    assert result["metrics"]["accuracy/natural"] == 1.0


def test_candidates_without_a_verifier_fail(tmp_path: Path, bases: dict[str, Path]) -> None:
    with pytest.raises(JobError, match="can judge") as failure:
        benchmark_job.run(bench(tmp_path, bases, hyperparameters={"candidates": 2}))
    assert failure.value.code == "no_verifier"


def test_failing_judge_leaves_rules_and_warns(
    tmp_path: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_job, "read_response", _answering("left"))
    data = {"source": "omni_bench", "path": str(omni_bench(tmp_path / "bench")), "num_samples": 4}
    with endpoint({}, status=500) as (url, _):
        judge = {"url": url, "model": "m", "retries": 0, "concurrency": 1}
        ctx = bench(tmp_path / "job", bases, data=data, hyperparameters={"judge": judge})
        benchmark_job.run(ctx)
    rows = [r for r in predictions(ctx) if not r["error"]]
    assert all(r["right"] and r["rules"]["right"] and r["judge"]["right"] is None for r in rows)
    assert "judge_silent" in [w["code"] for w in events_of(ctx, "warning")]


def test_judge_rejecting_the_key_fails_the_job(tmp_path: Path, bases: dict[str, Path]) -> None:
    with endpoint({}, status=401) as (url, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_job, "read_response", _answering("left"))
        ctx = bench(tmp_path / "job", bases, hyperparameters={"judge": {"url": url, "model": "m"}})
        with pytest.raises(JobError, match="401") as caught:
            benchmark_job.run(ctx)
    assert caught.value.code == "judge_refused"


def _answering(text: str) -> Any:
    """Patch response reading to return a fixed answer, since random weights never answer."""
    from training.benchmark.evaluate import Response

    return lambda *_: Response(text, (), True, 0, 0, 0)


def test_missing_data_fails_the_job(tmp_path: Path, bases: dict[str, Path]) -> None:
    with pytest.raises(JobError) as caught:
        benchmark_job.run(bench(tmp_path / "job", bases, data={"source": "omni_bench", "path": str(tmp_path / "none")}))
    assert caught.value.code == "bad_data"


def test_checkpoint_without_decoder_answers_in_text(tmp_path: Path, bases: dict[str, Path]) -> None:
    blind = make_tiny_checkpoint(tmp_path / "blind", decoder=False)
    ctx = bench(tmp_path / "job", {"tiny": blind})
    benchmark_job.run(ctx)
    assert {r["pictures"] for r in predictions(ctx)} == {0}
