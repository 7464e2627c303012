"""gzip for compressible responses: JSON, scripts, styles, pages. Event streams and images stay as they are."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

SMALLEST = 1000  # bytes; below, the overhead exceeds the gain
LEVEL = 4


class Gzip(GZipMiddleware):
    """Starlette's middleware for clients that accept gzip, honouring weights (`gzip;q=0`, `*`)."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, minimum_size=SMALLEST, compresslevel=LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reduce `Accept-Encoding` to one coding: Starlette ignores weights."""
        if scope["type"] == "http":
            accepted = b"gzip" if accepts_gzip(Headers(scope=scope).getlist("accept-encoding")) else b"identity"
            kept = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
            scope["headers"] = [*kept, (b"accept-encoding", accepted)]
        await super().__call__(scope, receive, send)


def accepts_gzip(values: list[str]) -> bool:
    """Whether `Accept-Encoding` allows gzip (RFC 9110, 12.5.3); invalid weights count as 0."""
    weights: dict[str, float] = {}
    for part in ",".join(values).split(","):
        coding, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        try:
            weights[coding] = float(weight)
        except ValueError:
            weights[coding] = 0.0
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0
