"""The command line against a small canned server on a real port: output, files, exit codes, one line on errors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.cli_terminal import clean, table

STORED = {"image_id": "img-q", "url": "/v1/images/img-q", "width": 64, "height": 64}
TASK = {
    "task_id": "natural-1000000123",
    "slice": "natural",
    "family": "find",
    "seed": 1000000123,
    "question": "Which colour has the star?",
    "image_id": "img-q",
    "image": STORED,
}
REVEALED = TASK | {
    "answer": "red",
    "steps": [{"index": 1, "text": "I box it.", "skill": "box", "action": "BBOX(0,0,1,1)", "image": STORED}],
}
EVENTS: list[tuple[str, dict[str, Any]]] = [
    ("trace.queued", {"position": 2}),
    ("trace.started", {"seed": 5}),
    ("step.started", {"step": 1}),
    ("text.delta", {"step": 1, "text": " I box"}),
    ("text.delta", {"step": 1, "text": " it.\x1b[31m"}),
    ("image.completed", {"step": 1, "image_id": "img-1", "url": "/v1/images/img-1"}),
    ("step.completed", {"step": 1}),
    ("answer.delta", {"text": " red"}),
    ("trace.completed", {"answer": "red"}),
]


def finished(status: str = "completed") -> dict[str, Any]:
    return {
        "id": "t1",
        "status": status,
        "answer": "red" if status == "completed" else None,
        "checkpoint": "nano-omni-r1",
        "sampling": {"seed": 5},
        "timings": {"total_ms": 1234},
        "verdict": {"answer": "right", "drawings_right": 1, "drawings_total": 1},
        "error": None if status == "completed" else {"code": "engine_died", "detail": "the engine died; ask again"},
    }


class Canned(ThreadingHTTPServer):
    """Answers like the studio, from `answers`; keeps what was asked in `calls`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[tuple[str, str, bytes]] = []
        self.cancelled = threading.Event()
        self.hang = False
        self.answers: dict[str, tuple[int, Any]] = {
            "POST /v1/images": (201, STORED),
            "POST /v1/traces": (201, {"id": "t1", "status": "queued"}),
            "GET /v1/traces/t1": (200, finished()),
            "POST /v1/traces/t1/cancel": (200, finished("cancelled")),
            "GET /v1/images/img-1": (200, b"PNG of step 1"),
            "GET /v1/images/img-q": (200, b"PNG of the question"),
            "GET /v1/tasks": (200, TASK),
            "GET /v1/checkpoints": (
                200,
                {
                    "data": [
                        {
                            "id": "nano-omni-r1",
                            "active": True,
                            "loaded": True,
                            "size_bytes": 12_300_000,
                            "licence": "MIT",
                            "base": "nano-base",
                        },
                        {"id": "broken", "active": False, "loaded": False, "size_bytes": 0, "problem": "no tokenizer"},
                    ]
                },
            ),
            "GET /v1/checkpoints/nano-omni-r1": (200, {"id": "nano-omni-r1"}),
            "POST /v1/checkpoints": (201, {"id": "mine"}),
            "POST /v1/checkpoints/mine/activate": (200, {"id": "mine", "active": True, "weight_version": 7}),
            "DELETE /v1/checkpoints/mine": (204, b""),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def body_of(self, call: str) -> dict[str, Any]:
        return next(json.loads(body) for method, path, body in self.calls if f"{method} {path}" == call)


class Handler(BaseHTTPRequestHandler):
    server: Canned
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.split("?")[0]
        self.server.calls.append((self.command, self.path, body))
        if path.endswith("/events"):
            self.stream()
            return
        missing = (404, {"code": "not_found", "detail": f"nothing at {path}", "status": 404, "title": "Not found"})
        status, content = self.server.answers.get(f"{self.command} {path}", missing)
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
        if path.endswith("/cancel"):
            self.server.cancelled.set()

    do_GET = do_POST = do_DELETE = answer

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for seq, (kind, data) in enumerate(EVENTS, start=1):
            if self.server.hang and kind == "answer.delta":
                self.server.cancelled.wait(60)
                break
            self.wfile.write(f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode())
            self.wfile.flush()
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Canned]:
    canned = Canned()
    thread = threading.Thread(target=canned.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OMNI_R1_URL", canned.url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"picture")
    yield canned
    canned.cancelled.set()
    canned.shutdown()
    canned.server_close()
    thread.join()


def test_ask_streams_the_text_and_saves_the_pictures(
    server: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", "picture.png", "Which colour?"]) == 0
    out, err = capsys.readouterr()
    assert out == "1  I box it.[31m [trace-t1/step-1.png]\nAnswer: red\n"  # the escape character is gone
    assert "waiting (2 before you)" in err
    assert "nano-omni-r1, seed 5 in 1.2 s; pictures in trace-t1/" in err
    assert (tmp_path / "trace-t1" / "step-1.png").read_bytes() == b"PNG of step 1"
    assert json.loads((tmp_path / "trace-t1" / "trace.json").read_text())["answer"] == "red"


def test_ask_passes_on_what_was_asked_for(server: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--fit", "pad", "--temperature", "0", "--top-p", "0.5", "--seed", "7", "--max-images", "2"]
    assert main(["ask", "picture.png", "Why?", "--checkpoint", "c", "--out", "there", "--quiet", *options]) == 0
    assert capsys.readouterr().out == "red\n"
    assert (tmp_path / "there" / "step-1.png").exists()
    assert server.body_of("POST /v1/traces") == {
        "question": "Why?",
        "images": [{"image_id": "img-q", "fit": "pad"}],
        "mode": "auto",
        "partial_images": 0,
        "checkpoint": "c",
        "sampling": {"temperature": 0.0, "top_p": 0.5, "seed": 7, "max_images": 2},
        "background": True,
    }


def test_ask_prints_the_whole_trace_as_json(server: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "picture.png", "Why?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "completed"


def test_a_failed_trace_is_exit_code_1_and_one_line(server: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["GET /v1/traces/t1"] = (200, finished("failed"))
    assert main(["ask", "picture.png", "Why?"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "omni-r1: the trace is failed: the engine died; ask again"


def test_a_refusal_is_exit_code_2_and_one_line(server: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"code": "unsupported_image", "detail": "not a picture:\nsend PNG", "status": 415, "title": "x"}
    server.answers["POST /v1/images"] = (415, problem)
    assert main(["ask", "picture.png", "Why?"]) == 2
    assert capsys.readouterr().err == "omni-r1: not a picture: send PNG\n"


def test_a_full_queue_is_exit_code_1(server: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["POST /v1/traces"] = (429, {"code": "queue_full", "detail": "64 traces wait", "status": 429})
    assert main(["ask", "picture.png", "Why?"]) == 1
    assert capsys.readouterr().err == "omni-r1: 64 traces wait\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["ask", "missing.png", "Why?"],
        ["ask", ".", "Why?"],
        ["ask", "picture.png"],
        ["ask", "picture.png", "Why?", "--temperature", "nan"],
        ["ask", "picture.png", "Why?", "--seed", "x"],
        ["ask", "picture.png", "Why?", "--unknown"],
        ["ask", "picture.png", "Why?", "--url", "nonsense"],
        ["task", "natural"],
        ["task", "--slice", "other"],
        ["checkpoints", "show"],
        ["checkpoints", "show", "unknown"],
        ["nothing"],
        [],
    ],
)
def test_bad_input_is_exit_code_2_and_one_line(
    server: Canned, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("omni-r1: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "no-such-checkpoint"],
        ["evaluate", "empty"],
        ["evaluate", "--tasks", "0"],
        ["train", "nano", "--stage", "base", "--out", "empty"],
        ["train", "nano", "--stage", "vq", "--preset", "no-such-preset"],
        ["train", "nano", "--stage", "rl"],
        ["train", "nano", "--stage", "pesft", "--perception-weight", "inf"],
        ["train"],
        ["convert", "empty", "out"],
        ["serve", "--port", "70000"],
        ["serve", "--host", "0.0.0.0"],
    ],
)
def test_bad_input_to_what_runs_by_itself_is_exit_code_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNI_R1_HOME", str(tmp_path / "home"))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("omni-r1: ")
    assert err.count("\n") == 1


def test_doctor_finds_a_home_that_cannot_be_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("OMNI_R1_HOME", str(tmp_path / "file" / "home"))
    assert main(["doctor", "--json", "--port", "0"]) == 1
    found = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert set(found) >= {"python", "packages", "device", "memory", "threads", "checkpoint", "home", "disk", "port"}
    assert found["home"]["state"] == "bad"
    assert "OMNI_R1_HOME" in found["home"]["detail"]
    assert found["python"]["state"] == found["packages"]["state"] == found["port"]["state"] == "ok"


def test_doctor_names_a_setting_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMNI_R1_PORT", "http")
    assert main(["doctor"]) == 1
    assert "OMNI_R1_PORT" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["task"], ["checkpoints"]])
def test_no_server_is_exit_code_3_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    monkeypatch.setenv("OMNI_R1_URL", "http://127.0.0.1:1")
    assert main(argv) == 3
    err = capsys.readouterr().err
    assert "omni-r1 serve" in err
    assert "OMNI_R1_URL" in err
    assert err.count("\n") == 1


def test_another_program_on_the_port_is_exit_code_3(server: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers["GET /v1/tasks"] = (200, b"<html>")
    assert main(["task"]) == 3
    assert "another program" in capsys.readouterr().err


def test_ctrl_c_cancels_the_trace_and_is_exit_code_130(server: Canned, tmp_path: Path) -> None:
    server.hang = True
    command = [sys.executable, "-m", "app.cli", "ask", str(tmp_path / "picture.png"), "Why?"]
    # Started in the background of a script, the tests ignore Ctrl-C, and a child would inherit that.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.read(8) == "1  I box"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert server.cancelled.is_set()
    assert err.splitlines()[-1] == "omni-r1: interrupted"


def test_task_shows_the_question_and_hides_the_answer(server: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "natural-1000000123"]) == 0
    out = capsys.readouterr().out
    assert "Which colour has the star?" in out
    assert "red" not in out
    assert "/v1/tasks?slice=natural&seed=1000000123" in [path for _, path, _ in server.calls]


def test_task_reveals_and_saves_its_solution(
    server: Canned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers["GET /v1/tasks"] = (200, REVEALED)
    assert main(["task", "--slice", "natural", "--seed", "1000000123", "--reveal", "--out", "there"]) == 0
    out = capsys.readouterr().out
    assert "  1  I box it.  BBOX(0,0,1,1)\n" in out
    assert out.endswith("Answer: red\n")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["picture.png", "step-1.png", "task.json"]


def test_task_asks_the_model_and_tells_the_verdict(server: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task", "--ask"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("Answer: red\n")
    assert "the answer is right, 1 of 1 drawings right" in err
    assert server.body_of("POST /v1/traces")["task_id"] == "natural-1000000123"


def test_checkpoints_are_listed_and_shown(server: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["nano-omni-r1", "active,", "loaded", "12.3", "MB", "MIT", "nano-base"]
    assert "unusable: no tokenizer" in lines[2]
    assert main(["checkpoints", "show", "nano-omni-r1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "nano-omni-r1"}


def test_a_checkpoint_is_registered_put_to_work_and_deleted(
    server: Canned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert main(["checkpoints", "register", "folder", "--name", "mine"]) == 0
    assert capsys.readouterr().out == "mine\n"
    assert server.body_of("POST /v1/checkpoints") == {"source": str(tmp_path / "folder"), "name": "mine"}
    assert main(["checkpoints", "activate", "mine", "--drain", "wait"]) == 0
    out, err = capsys.readouterr()
    assert out == "mine answers, version 7\n"
    assert "checkpoints activate nano-omni-r1" in err, "the way back"
    assert server.body_of("POST /v1/checkpoints/mine/activate") == {"drain": "wait"}
    assert main(["checkpoints", "delete", "mine", "--unload"]) == 0
    assert server.calls[-1][1].endswith("/v1/checkpoints/mine?unload=true")
    assert main(["checkpoints", "register", "owner/name"]) == 0
    assert json.loads(server.calls[-1][2]) == {"source": "owner/name"}


def test_help_and_version_end_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("serve", "ask", "task", "checkpoints", "evaluate", "train", "convert", "doctor"):
        assert command in out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("omni-r1 ")


def test_help_loads_nothing_but_the_parser() -> None:
    script = (
        "import sys; from app.cli import main; main(['--help'])\n"
        "sys.exit([m for m in ('torch', 'gradio', 'httpx', 'pydantic', 'rich') if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_control_characters_never_reach_the_terminal() -> None:
    assert clean("a\x1b[2J\x07b\x9bc\rd\n\te\ud800é🎨") == "a[2Jbcd\n\teé🎨"


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    assert table(["a", "b"], [["long", "x"], ["s", "y\nz"]]) == "a     b\nlong  x\ns     y z\n"
