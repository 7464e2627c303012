"""Spans: one tree from the request to the last token, one span per job, and nothing at all unless asked for."""

from __future__ import annotations

import asyncio
import http.server
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from app.common import otel
from app.common.collector import SpansError, make_spans
from app.common.otel import OtelSpans, exporting
from app.common.settings import Settings
from app.common.spans import Spans
from app.main import serve as serve_studio
from tests.app.conftest import Serve
from tests.app.job_helpers import FakeCheckpoints, events, post, worker
from tests.e2e.real_server import ROOT
from tests.fakes import Crash, FakeGeneration, held
from tests.patience import PATIENCE_S

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
CALLER, CALLER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Recorder(SpanProcessor):
    """Spans that began and have not ended; the ended ones are in `done`."""

    def __init__(self) -> None:
        self.open: dict[int, str] = {}
        self.done = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(self)
        self.provider.add_span_processor(SimpleSpanProcessor(self.done))

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        assert span.context is not None
        self.open[span.context.span_id] = span.name

    def on_end(self, span: ReadableSpan) -> None:
        assert span.context is not None
        del self.open[span.context.span_id]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.done.get_finished_spans() if span.name == name]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def about(span: ReadableSpan) -> dict[str, Any]:
    return {name.removeprefix("omni_r1."): value for name, value in (span.attributes or {}).items()}


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def own_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


async def test_trace_is_one_tree_under_the_caller_s_span(serve: Serve, recorder: Recorder) -> None:
    async with serve(spans=OtelSpans(recorder.provider)) as server:
        headers = {"traceparent": f"00-{CALLER}-{CALLER_SPAN}-01", "X-Request-ID": "of-the-caller"}
        answer = await server.client.post("/v1/traces", json=await server.body(), headers=headers)
        trace = await server.finished(answer.json()["id"])
        (request,) = recorder.named("POST /v1/traces")
        (whole,) = recorder.named("trace")
        assert request.context is not None
        assert f"{request.context.trace_id:032x}" == CALLER
        assert f"{parent(request):016x}" == CALLER_SPAN
        assert about(request)["request_id"] == "of-the-caller"
        assert parent(whole) == own_id(request)
        parts = [span for span in recorder.done.get_finished_spans() if parent(span) == own_id(whole)]
        assert [span.name for span in parts] == ["queue", "first text", "image", "image"]
        moments = [moment for span in parts for moment in (span.start_time, span.end_time)]
        assert moments == sorted(moments)  # type: ignore[type-var]
        assert [about(span)["step"] for span in parts[2:]] == [1, 2]
        told = about(whole)
        assert (told["trace_id"], told["checkpoint"]) == (trace["id"], trace["checkpoint"])
        usage = trace["usage"]
        assert told["images"] == usage["images"] == 2
        assert told["prompt_tokens"] == usage["prompt_tokens"]
        assert told["completion_tokens"] == usage["completion_tokens"]
        assert told["status"] == "completed"
        assert not recorder.named("GET /readyz"), "probes are no news"
        exported = "".join(span.to_json() for span in recorder.done.get_finished_spans())
        assert trace["id"] in exported
        assert not [word for word in (trace["question"], "I look for") if word in exported]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "paused", "interrupted"])
async def test_every_span_ends_with_its_trace(
    serve: Serve, recorder: Recorder, engine: FakeGeneration, end: str
) -> None:
    if end == "failed":
        engine.script = lambda _request: [Crash(RuntimeError("broken"))]
    elif end in ("cancelled", "interrupted"):
        engine.script = held
    async with serve(spans=OtelSpans(recorder.provider)) as server:
        trace = await server.create(**({"mode": "step"} if end == "paused" else {}))
        if end in ("cancelled", "interrupted"):
            await server.stream(trace["id"], until=lambda event: event.type == "trace.started")
        if end == "cancelled":
            await server.client.post(f"/v1/traces/{trace['id']}/cancel")
        elif end == "paused":
            await server.stream(trace["id"], until=lambda event: event.type == "trace.paused")
        elif end != "interrupted":
            await server.stream(trace["id"])
    assert recorder.open == {}
    (whole,) = recorder.named("trace")
    assert about(whole)["status"] == end
    assert (whole.status.status_code is StatusCode.ERROR) is (end == "failed")


async def test_resumed_trace_gets_another_span(serve: Serve, recorder: Recorder) -> None:
    async with serve(spans=OtelSpans(recorder.provider)) as server:
        trace_id = (await server.create(mode="step"))["id"]
        await server.stream(trace_id, until=lambda event: event.type == "trace.paused")
        answer = await server.client.post(f"/v1/traces/{trace_id}/continue", json={"mode": "auto"})
        assert answer.status_code == 200, answer.text
        await server.stream(trace_id)
    assert [about(span)["status"] for span in recorder.named("trace")] == ["paused", "completed"]
    assert {about(span)["trace_id"] for span in recorder.named("trace")} == {trace_id}
    assert recorder.open == {}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "end"), [("succeed", "succeeded"), ("crash", "failed")])
async def test_job_is_one_span_with_its_stages(serve: Serve, recorder: Recorder, what: str, end: str) -> None:
    async with serve(spans=OtelSpans(recorder.provider), job_command=worker(what)) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        await events(server, job["id"])
    (span,) = recorder.named("job")
    told = about(span)
    assert (told["job_id"], told["method"], told["status"]) == (job["id"], "pesft", end)
    assert span.parent is None
    stages = [dict(event.attributes or {})["omni_r1.stage"] for event in span.events if event.name == "stage"]
    assert stages == ["pesft"]
    assert ("checkpoint" in [event.name for event in span.events]) is (end == "succeeded")
    assert recorder.open == {}


# ---- the collector


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest], list[int]]]:
    """A collector: its address, what it got, and the statuses with which it answers (the last one for ever)."""
    got: list[ExportTraceServiceRequest] = []
    statuses = [200]

    class Collect(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            if status == 200:
                assert self.path == "/v1/traces"
                got.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collect) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", got, statuses
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of OpenTelemetry, and its loggers as they were."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    loggers = [logging.getLogger(name) for name in ("opentelemetry.exporter", "opentelemetry.sdk")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


async def test_spans_reach_the_collector_that_the_environment_names(
    serve: Serve, collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, got, _ = collector
    monkeypatch.setenv(ENDPOINT, place)
    async with serve(spans=make_spans()) as server:
        await server.finished((await server.create())["id"])
    sent = [resource for request in got for resource in request.resource_spans]
    names = {one.key: one.value.string_value for one in sent[0].resource.attributes}
    assert names["service.name"] == "omni-r1-studio"
    assert {"trace", "queue", "image"} <= {span.name for one in sent for s in one.scope_spans for span in s.spans}
    assert OtelSpans(exporting(place)).fastapi["tracer_provider"].resource.attributes["service.name"] == (
        "omni-r1-studio"
    )
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    assert exporting(place).resource.attributes["service.name"] == "mine"


async def test_missing_collector_costs_one_warning(
    serve: Serve, collector: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place, got, statuses = collector
    monkeypatch.setattr(otel, "EXPORT_S", 0.2)
    monkeypatch.setenv(ENDPOINT, place)
    statuses[:] = [400]  # refused, which is not tried again
    provider = exporting(place)
    caplog.set_level(logging.INFO)
    async with serve(spans=OtelSpans(provider)) as server:
        for _ in range(3):
            await server.finished((await server.create())["id"])
            await asyncio.to_thread(provider.force_flush)
        statuses[:] = [200]
        await server.finished((await server.create())["id"])
        await asyncio.to_thread(provider.force_flush)
    said = [record.getMessage() for record in caplog.records if "spans" in record.name or "telemetry" in record.name]
    assert said == [f"spans do not reach {place}; they are dropped until it answers", f"spans reach {place} again"]
    assert got


async def test_silent_collector_delays_neither_traces_nor_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and never answers; the exporter would wait for an hour."""
    monkeypatch.setattr(otel, "EXPORT_S", 3600.0)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(ENDPOINT, place)
        async with serve(spans=OtelSpans(exporting(place))) as server:
            await server.finished((await server.create())["id"])
            connection, _ = await asyncio.to_thread(silent.accept)  # the exporter waits for an answer now
            for _ in range(3):
                await server.finished((await server.create())["id"])
        connection.close()


# ---- off, or impossible


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://x", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINT: "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_off_by_default_and_on_request(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert type(make_spans()) is Spans


def test_off_imports_nothing_of_it() -> None:
    """FastAPI imports OpenTelemetry's interface by itself, but no implementation."""
    code = (
        "import sys, app.main; "
        "print([n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exp', 'app.common.otel'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("endpoint", "protocol"),
    [("garbage", ""), ("ftp://collector", ""), ("http://", ""), ("localhost:4318", ""), ("http://localhost", "grpc")],
)
def test_impossible_exporters_are_refused(monkeypatch: pytest.MonkeyPatch, endpoint: str, protocol: str) -> None:
    monkeypatch.setenv(ENDPOINT, endpoint)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with pytest.raises(SpansError, match=protocol or endpoint) as refusal:
        make_spans()
    assert "\n" not in str(refusal.value)


def test_server_without_the_extra_exits_with_2(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:4318")
    monkeypatch.delitem(sys.modules, "app.common.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SpansError, match=r"pip install 'omni-r1-studio\[otel\]'") as refusal:
        make_spans()
    assert "\n" not in str(refusal.value)
    monkeypatch.setattr("app.main.logs.configure", lambda *_: None)
    assert serve_studio(Settings(home=tmp_path / "home"), generation=FakeGeneration(), build_ui=None) == 2
    assert ENDPOINT in capsys.readouterr().err
    assert not (tmp_path / "home").exists()
