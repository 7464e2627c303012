"""What a tracing system may learn about traces and jobs: nothing, unless OpenTelemetry is asked for.

The standard variables of OpenTelemetry ask for it. Without them nothing of it is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class SpansError(RuntimeError):
    """OpenTelemetry is asked for and cannot be used; the message is one line."""


class Spans(Protocol):
    """Makes spans of what happens. No method blocks or raises."""

    @property
    def fastapi(self) -> Any:
        """The `telemetry` of the FastAPI app, which makes a span of each request and continues `traceparent`."""
        ...

    def request(self, request_id: str) -> None:
        """The request that is being handled has this id."""
        ...

    def trace_began(self, trace_id: str, checkpoint: str) -> None:
        """A trace was accepted, by the request that is being handled."""
        ...

    def trace_event(self, trace_id: str, type_: str, data: Mapping[str, Any]) -> None:
        """A trace has a new event; terminal ones and `trace.paused` end its span."""
        ...

    def trace_left(self, trace_id: str) -> None:
        """A trace ended; called once for each, also after its last event."""
        ...

    def job_began(self, job_id: str, method: str, checkpoint: str) -> None:
        """A job was started or resumed. From any thread, as the two below."""
        ...

    def job_event(self, job_id: str, type_: str, data: Mapping[str, Any]) -> None:
        """A job has a new event."""
        ...

    def job_ended(self, job_id: str, status: str, error: Mapping[str, Any] | None) -> None:
        """A job ended."""
        ...

    def close(self) -> None:
        """Send what was not sent yet. Blocking, and slow if nobody answers."""
        ...


class NoSpans:
    """Tells nobody."""

    fastapi: Any = {"tracing": False, "metrics": False, "logs": False}  # noqa: RUF012 -- read only

    def request(self, request_id: str) -> None:
        """Nothing."""

    def trace_began(self, trace_id: str, checkpoint: str) -> None:
        """Nothing."""

    def trace_event(self, trace_id: str, type_: str, data: Mapping[str, Any]) -> None:
        """Nothing."""

    def trace_left(self, trace_id: str) -> None:
        """Nothing."""

    def job_began(self, job_id: str, method: str, checkpoint: str) -> None:
        """Nothing."""

    def job_event(self, job_id: str, type_: str, data: Mapping[str, Any]) -> None:
        """Nothing."""

    def job_ended(self, job_id: str, status: str, error: Mapping[str, Any] | None) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def make_spans() -> Spans:
    """Spans for the collector that the environment names, or none.

    Raises:
        SpansError: OpenTelemetry is not installed, or its variables are wrong.
    """
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if endpoint is None or off or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return NoSpans()
    address = urlsplit(os.environ[endpoint])
    if address.scheme not in ("http", "https") or not address.netloc:
        raise SpansError(f"{endpoint}={os.environ[endpoint]} is not an http:// or https:// address")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        raise SpansError(f"OTLP is sent as http/protobuf, not as {protocol}; leave OTEL_EXPORTER_OTLP_PROTOCOL out")
    try:
        from app.common.otel import OtelSpans, exporting
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        install = "pip install 'omni-r1-studio[otel]'"
        raise SpansError(f"{endpoint} is set, but OpenTelemetry is not installed: {install}, or unset it") from None
    try:
        return OtelSpans(exporting(os.environ[endpoint]))
    except ValueError as error:
        raise SpansError(f"OpenTelemetry cannot be set up: {error}") from None
