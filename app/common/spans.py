"""What a tracing system may learn about traces and jobs: nothing, unless OpenTelemetry is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Spans:
    """Makes spans of what happens; this class makes none. No method blocks or raises.

    Attributes:
        fastapi: the `telemetry` of the FastAPI app; on, it makes a span of each request and continues `traceparent`.
    """

    fastapi: Any = {"tracing": False, "metrics": False, "logs": False}  # noqa: RUF012 -- read only

    def request(self, request_id: str) -> None:
        """The request that is being handled has this id."""

    def trace_began(self, trace_id: str, checkpoint: str) -> None:
        """A trace was accepted, by the request that is being handled."""

    def trace_event(self, trace_id: str, type_: str, data: Mapping[str, Any]) -> None:
        """A trace has a new event; terminal ones and `trace.paused` end its span."""

    def trace_left(self, trace_id: str) -> None:
        """A trace ended; called once for each, also after its last event."""

    def job_began(self, job_id: str, method: str, checkpoint: str) -> None:
        """A job was started or resumed. From any thread, as the two below."""

    def job_event(self, job_id: str, type_: str, data: Mapping[str, Any]) -> None:
        """A job has a new event."""

    def job_ended(self, job_id: str, status: str, error: Mapping[str, Any] | None) -> None:
        """A job ended."""

    def close(self) -> None:
        """Send what was not sent yet. Blocking, and slow if nobody answers."""
