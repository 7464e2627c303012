"""Whether spans are asked for: the standard variables of OpenTelemetry say so.

Without them nothing of OpenTelemetry is imported here.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from app.common.spans import Spans

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class SpansError(RuntimeError):
    """OpenTelemetry is asked for and cannot be used; the message is one line."""


def make_spans() -> Spans:
    """Spans for the collector that the environment names; without one, the class that makes none.

    Raises:
        SpansError: OpenTelemetry is not installed, or its variables are wrong.
    """
    endpoint = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if endpoint is None or off or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return Spans()
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
