"""Log lines: one format in all processes, an id per request, one line per response."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn

from app.client import Client
from app.server import StudioServer
from model import log_lines
from model.log_lines import LineFormatter, request_id
from tests.app.conftest import Serve, Server, running
from tests.e2e.real_server import ROOT, wait_until
from tests.fakes import FakeGeneration, held
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow

ODD = "a\x1b[31mred\nnext\r\x00\x9b\u2028\u202e\ud800 é ⏎"


def record(message: str, *arguments: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("omni_r1.x", logging.WARNING, "x.py", 1, message, arguments, more.pop("exc_info", None))
    made.__dict__.update(more)
    return made


def raised() -> Any:
    try:
        raise ValueError("broken\x1b[2J")
    except ValueError:
        return sys.exc_info()


# ---- format


def test_text_line_has_only_printable_characters() -> None:
    line = LineFormatter(as_json=False).format(record("path %s", ODD, exc_info=raised()))
    assert line.isprintable()
    assert line.encode()
    assert "\\x1b[31mred ⏎ next" in line
    assert "ValueError: broken\\x1b[2J" in line
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z WARNING omni_r1\.x: path a", line)


def test_json_line_has_traceback_and_ids() -> None:
    trace, job = "tr_" + "a1" * 10, "job_" + "b2" * 10
    line = LineFormatter(as_json=True).format(record("%s of %s: %s", trace, job, ODD, exc_info=raised()))
    assert line.isprintable()
    assert line.isascii()
    reported = json.loads(line)
    assert (reported["level"], reported["logger"], reported["trace"], reported["job"]) == (
        "warning",
        "omni_r1.x",
        trace,
        job,
    )
    assert reported["message"] == f"{trace} of {job}: {ODD}"
    assert reported["exception"].splitlines()[0].startswith("Traceback")


@pytest.mark.parametrize("as_json", [True, False])
def test_mismatched_arguments_lose_no_line(as_json: bool) -> None:
    assert "%d items" in LineFormatter(as_json=as_json).format(record("%d items", "no number"))


def test_records_go_to_the_stderr_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers)
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    log_lines.configure("text", "info")
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    logging.getLogger("omni_r1.x").warning("after a redirection")
    assert second.getvalue().endswith("omni_r1.x: after a redirection\n")


def test_request_id_is_in_both_formats() -> None:
    token = request_id.set("abc")
    try:
        assert LineFormatter(as_json=False).format(record("x")).endswith("omni_r1.x: x request=abc")
        assert json.loads(LineFormatter(as_json=True).format(record("x")))["request_id"] == "abc"
    finally:
        request_id.reset(token)


# ---- requests


class Lines(logging.Handler):
    """Records as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(as_json=True))
        self.reported: list[dict[str, Any]] = []

    def emit(self, made: logging.LogRecord) -> None:
        self.reported.append(json.loads(self.format(made)))

    def of(self, logger: str) -> list[dict[str, Any]]:
        return [line for line in self.reported if line["logger"] == logger]


@pytest.fixture
def lines() -> Iterator[Lines]:
    ours, handler = logging.getLogger("omni_r1"), Lines()
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield handler
    ours.removeHandler(handler)
    ours.setLevel(before)


async def test_every_response_has_an_id_and_a_line(lines: Lines, server: Server) -> None:
    lines.reported.clear()
    given = await server.client.get("/v1/limits?key=secret", headers={"X-Request-ID": "caller:7/a=b"})
    assert given.headers["x-request-id"] == "caller:7/a=b"
    made = []
    for path in ("/v1/traces/unknown", "/v1/nothing", "/elsewhere", "/v1/%1b%0a"):
        made.append((await server.client.get(path)).headers["x-request-id"])
    made.append(
        (await server.client.post("/v1/traces", content="{", headers={"content-type": "x/y"})).headers["x-request-id"]
    )
    made.append((await server.client.get("/v1/limits", headers={"host": "evil"})).headers["x-request-id"])
    assert len(set(made)) == len(made)
    reported = lines.of("omni_r1.access")
    assert [line["request_id"] for line in reported] == ["caller:7/a=b", *made]
    assert [line["path"] for line in reported][:5] == [
        "/v1/limits",
        "/v1/traces/unknown",
        "/v1/nothing",
        "/elsewhere",
        "/v1/\x1b\n",
    ]
    assert reported[0].items() >= {"method": "GET", "status": 422, "bytes": len(given.content)}.items()
    assert reported[0]["duration_ms"] >= 0
    assert [line["status"] for line in reported][-1] == 421
    assert "secret" not in json.dumps(reported)


@pytest.mark.parametrize("given", ["", "a b", "a\tb", "é", "x" * 129, '"', "<script>"])
async def test_odd_request_id_is_replaced(server: Server, given: str) -> None:
    answer = await server.client.get("/livez", headers=[(b"X-Request-ID", given.encode())])
    assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])


async def test_polled_paths_are_logged_at_debug(lines: Lines, server: Server) -> None:
    for level, expected in ((logging.INFO, 0), (logging.DEBUG, 4)):
        logging.getLogger("omni_r1").setLevel(level)
        lines.reported.clear()
        for path in ("/livez", "/readyz", "/metrics", "/static/styles.css"):
            assert (await server.client.get(path)).headers["x-request-id"]
        assert len(lines.of("omni_r1.access")) == expected


async def test_access_log_can_be_disabled(serve: Serve, lines: Lines) -> None:
    async with serve(access_log=False) as server:
        assert (await server.client.get("/v1/limits")).headers["x-request-id"]
        assert lines.of("omni_r1.access") == []


async def test_error_response_and_log_share_the_id(lines: Lines, server: Server) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("on purpose")

    server.services.traces.reader.get = broken  # type: ignore[method-assign,assignment]
    answer = await server.client.get("/v1/traces/x", headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine")
    (reported,) = lines.of("omni_r1.errors")
    assert reported["request_id"] == "mine"
    assert "RuntimeError: on purpose" in reported["exception"]
    assert [line["status"] for line in lines.of("omni_r1.access")][-1:] == [500]


async def test_stream_is_logged_at_its_end(engine: FakeGeneration, lines: Lines, server: Server) -> None:
    engine.script = held
    headers = {"X-Request-ID": "creator"}
    trace = (await server.client.post("/v1/traces", json=await server.body(), headers=headers)).json()
    reader = asyncio.create_task(server.stream(trace["id"]))
    await server.until(trace["id"], "step.completed")
    path = f"/v1/traces/{trace['id']}/events"

    def streams() -> list[dict[str, Any]]:
        return [line for line in lines.of("omni_r1.access") if line["path"] == path]

    while len(streams()) < 1:  # the dropped one, once the server has noticed
        await asyncio.sleep(0.01)
    engine.go("end")
    body = b"".join(event.raw for event in await reader)
    while len(streams()) < 2:
        await asyncio.sleep(0.01)
    assert streams()[-1]["bytes"] == len(body)
    (ended,) = [line for line in lines.of("omni_r1.traces") if "completed" in line["message"]]
    assert (ended["trace"], ended["request_id"]) == (trace["id"], "creator")


async def test_cors_exposes_the_request_id(tmp_path: Path, package: Path) -> None:
    async with running(tmp_path / "h", package, FakeGeneration(), cors_origins="http://a.example") as server:
        answer = await server.client.get("/v1/limits", headers={"Origin": "http://a.example"})
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]


# ---- whole processes


def environment(home: Path, **more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_R1_")}
    return plain | {"OMNI_R1_HOME": str(home), "OMNI_R1_PORT": "0", "OMNI_R1_LOG_FORMAT": "json", **more}


def all_json(text: str) -> list[dict[str, Any]]:
    assert text.strip(), "nothing was said"
    return [json.loads(line) for line in text.splitlines()]


def test_json_log_contains_only_json(tmp_path: Path) -> None:
    script = (
        "import sys, threading, warnings; sys.argv = ['x', '--port', '0', '--no-page']\n"
        "from tests import fake_server\n"
        "create = fake_server.serve\n"
        "def serve(*args, **more):\n"
        "    warnings.warn('an early warning')\n"
        "    threading.Thread(target=lambda: 1 / 0).start()\n"
        "    return create(*args, **more)\n"
        "fake_server.serve = serve\n"
        "from app.common import logs; logs.begin()\n"
        "sys.exit(fake_server.main())\n"
    )
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment(tmp_path / "home"),
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        with Client(first["url"]) as client:
            wait_until(client.alive, "the server", 60)
            list(client.traces())
    finally:
        process.terminate()
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest == ""
    reported = all_json((tmp_path / "err").read_text())
    assert any("an early warning" in line["message"] for line in reported)
    assert any("ZeroDivisionError" in line.get("exception", "") for line in reported)
    assert any(line["logger"] == "omni_r1.access" for line in reported)
    assert reported[-1]["message"] == "stopped"


@pytest.mark.parametrize("module", ["app.main", "app.cli.main"])
@pytest.mark.parametrize("what", ["unknown setting", "bad value", "port", "database", "home"])
def test_start_errors_are_json_too(tmp_path: Path, module: str, what: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        more = {
            "unknown setting": {"OMNI_R1_TYPO": "1"},
            "bad value": {"OMNI_R1_MAX_QUEUE": "none"},
            "port": {"OMNI_R1_PORT": str(taken.getsockname()[1])},
            "database": {"OMNI_R1_DATABASE_URL": "postgresql://u@127.0.0.1:1/x"},
            "home": {"OMNI_R1_HOME": "/dev/null/home"},
        }[what]
        command = [sys.executable, "-m", module, *(["serve"] if module == "app.cli.main" else [])]
        done = subprocess.run(
            command,
            env=environment(tmp_path, **more),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert all_json(done.stderr)[-1]["level"] == "critical"


def test_engine_process_logs_in_the_same_format(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "model.worker.child", "99"]  # the socket does not exist
    done = subprocess.run(
        command, env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode != 0
    assert "Traceback" in all_json(done.stderr)[-1]["exception"]


async def test_shutdown_belongs_to_no_request() -> None:
    """A signal is handled in the context of the task that it interrupts."""
    seen: list[str | None] = []
    done = asyncio.Event()

    class Stopped:
        async def stop_traces(self) -> None:
            seen.append(request_id.get())
            done.set()

    server = StudioServer(uvicorn.Config(lambda: None), cast(Any, Stopped()), cast(Any, None))
    server._loop, server.started = asyncio.get_running_loop(), True
    request_id.set("of-another")
    server.stop()
    await asyncio.wait_for(done.wait(), PATIENCE_S)
    assert seen == [None]
