"""Spans for OpenTelemetry: from a request through queue, first text and images to the end of its trace; and of jobs.

Needs the extra `otel`. FastAPI makes the spans of requests; the context of the task that starts a trace makes them the
parents of its spans.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, StatusCode

from app.common.spans import Spans
from model.build import package_version

log = logging.getLogger("omni_r1.spans")

ENDS = {
    "trace.completed": "completed",
    "trace.failed": "failed",
    "trace.cancelled": "cancelled",
    "trace.paused": "paused",
}
EXPORT_S = 5.0  # for one batch, and for those that are left at the end


class OnceExporter(SpanExporter):
    """Passes spans on, and says once that they do not arrive, and once that they do again."""

    def __init__(self, exporter: SpanExporter, place: str) -> None:
        self._exporter = exporter
        self._place = place
        self._arrives = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; one that fails is dropped."""
        result = self._exporter.export(spans)
        arrives = result is SpanExportResult.SUCCESS
        if arrives is not self._arrives:
            self._arrives = arrives
            if arrives:
                log.info("spans reach %s again", self._place)
            else:
                log.warning("spans do not reach %s; they are dropped until it answers", self._place)
        return result

    def shutdown(self) -> None:
        """Stop sending."""
        self._exporter.shutdown()


def exporting(place: str) -> TracerProvider:
    """A provider that sends spans by OTLP over HTTP as OpenTelemetry's variables say; `place` is for the log.

    Raises:
        ValueError: a variable has a value that OpenTelemetry does not know.
    """
    for name in ("opentelemetry.exporter", "opentelemetry.sdk"):  # a line for each batch that fails
        logging.getLogger(name).setLevel(logging.CRITICAL)
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    exporter = OnceExporter(OTLPSpanExporter(timeout=EXPORT_S), place)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _resource() -> Resource:
    found = Resource.create({SERVICE_VERSION: package_version()})
    if not str(found.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        return found
    return found.merge(Resource({SERVICE_NAME: "omni-r1-studio"}))


@dataclass
class _Trace:
    """The open spans of a trace: its own, and the one of what it waits for."""

    span: Span
    part: Span | None = None
    seen_text: bool = False
    images: int = 0
    more: dict[str, Any] = field(default_factory=dict)


class OtelSpans(Spans):
    """Spans of one server."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("omni_r1", package_version())
        self._traces: dict[str, _Trace] = {}
        self._jobs: dict[str, Span] = {}
        self._stages: dict[str, object] = {}
        self.fastapi: Any = {
            "tracer_provider": provider,
            "metrics": False,
            "logs": False,
            "operation_spans": False,
            "auto_configure": False,
            "exclude": lambda scope: "/v1/" not in scope["path"],
        }

    def request(self, request_id: str) -> None:
        """An attribute of the request's span."""
        trace.get_current_span().set_attribute("omni_r1.request_id", request_id)

    # ---- traces

    def trace_began(self, trace_id: str, checkpoint: str) -> None:
        """Open the spans of the trace and of its wait."""
        attributes = {"omni_r1.trace_id": trace_id, "omni_r1.checkpoint": checkpoint}
        opened = self._traces[trace_id] = _Trace(self._tracer.start_span("trace", attributes=attributes))
        self._begin(opened, "queue")

    def trace_event(self, trace_id: str, type_: str, data: Mapping[str, Any]) -> None:
        """End and begin spans; ends carry tokens and images."""
        if type_ == "trace.resumed":
            self._traces[trace_id] = _Trace(
                self._tracer.start_span("trace", attributes={"omni_r1.trace_id": trace_id, "omni_r1.resumed": True})
            )
        opened = self._traces.get(trace_id)
        if opened is None:
            return
        match type_:
            case "trace.started":
                known = {name: data[name] for name in ("checkpoint", "weight_version", "seed") if name in data}
                opened.span.set_attributes({f"omni_r1.{name}": value for name, value in known.items()})
                self._begin(opened, "first text")
            case "text.delta" | "answer.delta" if not opened.seen_text:
                opened.seen_text = True
                self._end_part(opened)
            case "image.started":
                self._begin(opened, "image", {"omni_r1.step": data["step"]})
            case "image.completed":
                passes = (data.get("stats") or {}).get("passes")
                self._end_part(opened, {} if passes is None else {"omni_r1.passes": passes})
                opened.images += 1
            case _ if type_ in ENDS:
                self._end(trace_id, ENDS[type_], data)

    def trace_left(self, trace_id: str) -> None:
        """End the spans of a trace that another server ended."""
        self._end(trace_id, "interrupted", {})

    def _begin(self, opened: _Trace, name: str, attributes: Mapping[str, Any] | None = None) -> None:
        self._end_part(opened)
        inside = trace.set_span_in_context(opened.span)
        opened.part = self._tracer.start_span(name, context=inside, attributes=dict(attributes or {}))

    def _end_part(self, opened: _Trace, attributes: Mapping[str, Any] | None = None) -> None:
        if opened.part is not None:
            opened.part.set_attributes(dict(attributes or {}))
            opened.part.end()
            opened.part = None

    def _end(self, trace_id: str, status: str, data: Mapping[str, Any]) -> None:
        opened = self._traces.pop(trace_id, None)
        if opened is None:
            return
        self._end_part(opened)
        error = data.get("error") or {}
        if error.get("code") == "interrupted":
            status = "interrupted"
        usage = data.get("usage") or {}
        found = {
            "omni_r1.status": status,
            "omni_r1.images": usage.get("images", opened.images),
            "omni_r1.prompt_tokens": usage.get("prompt_tokens"),
            "omni_r1.completion_tokens": usage.get("completion_tokens"),
            "omni_r1.finish_reason": data.get("finish_reason"),
            "error.type": error.get("code"),
        }
        opened.span.set_attributes({name: value for name, value in found.items() if value is not None})
        if status == "failed":
            opened.span.set_status(StatusCode.ERROR, str(error.get("detail", "")))
        opened.span.end()

    # ---- jobs

    def job_began(self, job_id: str, method: str, checkpoint: str) -> None:
        """Open the job's span, which belongs to no request: the job may outlive the server."""
        attributes = {"omni_r1.job_id": job_id, "omni_r1.method": method, "omni_r1.checkpoint": checkpoint}
        self._jobs[job_id] = self._tracer.start_span(
            "job", context=trace.set_span_in_context(trace.INVALID_SPAN), attributes=attributes
        )

    def job_event(self, job_id: str, type_: str, data: Mapping[str, Any]) -> None:
        """Note in the job's span where a stage begins, checkpoints and warnings."""
        span = self._jobs.get(job_id)
        if span is None:
            return
        stage = data.get("stage")
        if stage is not None and stage != self._stages.get(job_id):
            self._stages[job_id] = stage
            span.add_event("stage", {"omni_r1.stage": str(stage)})
        if type_ == "checkpoint":
            span.add_event("checkpoint", {"omni_r1.checkpoint": str(data.get("name"))})
        elif type_ == "warning":
            span.add_event("warning", {"omni_r1.code": str(data.get("code"))})

    def job_ended(self, job_id: str, status: str, error: Mapping[str, Any] | None) -> None:
        """End the job's span."""
        self._stages.pop(job_id, None)
        span = self._jobs.pop(job_id, None)
        if span is None:
            return
        span.set_attribute("omni_r1.status", status)
        if error is not None:
            span.set_attribute("error.type", str(error.get("code")))
        if status == "failed":
            span.set_status(StatusCode.ERROR, str((error or {}).get("detail", "")))
        span.end()

    def close(self) -> None:
        """Send the rest, within a few seconds."""
        self._provider.shutdown()
