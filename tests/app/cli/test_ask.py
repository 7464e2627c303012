"""`omni-r1 ask` and `task` against a small canned server: output, files, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.main import main
from tests.app.canned import REVEALED, Canned, finished
from tests.patience import PATIENCE_S


def test_ask_streams_text_and_saves_images(canned: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "picture.png", "Which colour?"]) == 0
    out, err = capsys.readouterr()
    assert out == "1  I box it.[31m [trace-t1/step-1.png]\nAnswer: red\n"  # without the escape character
    assert "queued (2 ahead)" in err
    assert "nano-omni-r1, seed 5 in 1.2 s; images in trace-t1/" in err
    assert (tmp_path / "trace-t1" / "step-1.png").read_bytes() == b"PNG of step 1"
    assert json.loads((tmp_path / "trace-t1" / "trace.json").read_text())["answer"] == "red"


def test_ask_passes_on_its_options(canned: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--fit", "pad", "--temperature", "0", "--top-p", "0.5", "--seed", "7", "--max-images", "2"]
    assert main(["ask", "picture.png", "Why?", "--checkpoint", "c", "--out", "there", "--quiet", *options]) == 0
    assert capsys.readouterr().out == "red\n"
    assert (tmp_path / "there" / "step-1.png").exists()
    assert canned.body_of("POST /v1/traces") == {
        "question": "Why?",
        "images": [{"image_id": "img-q", "fit": "pad"}],
        "mode": "auto",
        "partial_images": 0,
        "checkpoint": "c",
        "sampling": {"temperature": 0.0, "top_p": 0.5, "seed": 7, "max_images": 2},
        "background": True,
    }


def test_ask_prints_the_trace_as_json(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "picture.png", "Why?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "completed"


def test_failed_trace_exits_with_1(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers["GET /v1/traces/t1"] = (200, finished("failed"))
    assert main(["ask", "picture.png", "Why?"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "omni-r1: the trace is failed: the engine died; ask again"


def test_rejected_request_exits_with_2(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"code": "unsupported_image", "detail": "not a picture:\nsend PNG", "status": 415, "title": "x"}
    canned.answers["POST /v1/images"] = (415, problem)
    assert main(["ask", "picture.png", "Why?"]) == 2
    assert capsys.readouterr().err == "omni-r1: not a picture: send PNG\n"


@pytest.mark.parametrize(
    ("path", "name"), [("body.question", "QUESTION"), ("body.checkpoint", "--checkpoint"), ("body.n", "--n")]
)
def test_rejected_field_is_named_as_its_option(
    canned: Canned, capsys: pytest.CaptureFixture[str], path: str, name: str
) -> None:
    fields = [{"path": path, "message": "too long"}]
    canned.answers["POST /v1/traces"] = (422, {"code": "invalid", "detail": f"{path}: too long", "errors": fields})
    assert main(["ask", "picture.png", "Why?"]) == 2
    assert capsys.readouterr().err == f"omni-r1: {name}: too long\n"


def test_full_queue_exits_with_1(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers["POST /v1/traces"] = (429, {"code": "queue_full", "detail": "64 traces wait", "status": 429})
    assert main(["ask", "picture.png", "Why?"]) == 1
    assert capsys.readouterr().err == "omni-r1: 64 traces wait\n"


def test_ctrl_c_cancels_and_exits_with_130(canned: Canned, tmp_path: Path) -> None:
    canned.hang = True
    command = [sys.executable, "-m", "app.cli", "ask", str(tmp_path / "picture.png"), "Why?"]
    # When tests run in the background of a script, they ignore Ctrl-C, and a child would inherit that.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.read(8) == "1  I box"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert canned.cancelled.is_set()
    assert err.splitlines()[-1] == "omni-r1: interrupted"


def test_task_hides_the_answer(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "natural-1000000123"]) == 0
    out = capsys.readouterr().out
    assert "Which colour has the star?" in out
    assert "red" not in out
    assert "/v1/tasks?slice=natural&seed=1000000123" in [path for _, path, _ in canned.calls]


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        (["natural-5-1000000123"], "slice=natural&seed=1000000123&level=5"),
        (["natural-hard-7"], "slice=natural&seed=7&level=hard"),
        (["--slice", "natural", "--level", "8"], "slice=natural&level=8"),
    ],
)
def test_task_of_a_level_is_found(canned: Canned, arguments: list[str], query: str) -> None:
    assert main(["task", *arguments]) == 0
    assert f"/v1/tasks?{query}" in [path for _, path, _ in canned.calls]


def test_task_reveals_and_saves_its_solution(
    canned: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canned.answers["GET /v1/tasks"] = (200, REVEALED)
    assert main(["task", "--slice", "natural", "--seed", "1000000123", "--reveal", "--out", "there"]) == 0
    out = capsys.readouterr().out
    assert "  1  I box it.  BBOX(0,0,1,1)\n" in out
    assert out.endswith("Answer: red\n")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["picture.png", "step-1.png", "task.json"]


def test_task_prints_the_verdict(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "--ask"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("Answer: red\n")
    assert "the answer is right, 1 of 1 drawings right" in err
    assert canned.body_of("POST /v1/traces")["task_id"] == "natural-1000000123"
