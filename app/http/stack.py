"""The middleware of the app, in its order."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app.common.metrics import MetricsMiddleware
from app.http.access_log import HEADER, AccessLog
from app.http.auth import GuardMiddleware, KeyMiddleware
from app.http.bodies import BodyMiddleware
from app.http.compression import Gzip
from app.http.conditional import ConditionalMiddleware
from app.http.connections import PatienceMiddleware
from app.http.deps import SKIPPED, Services
from app.storage.images import MAX_UPLOAD_BYTES

# Multipart overhead on top of the largest image.
ENVELOPE_BYTES = 65_536


def add_middleware(app: FastAPI, services: Services) -> None:
    """The last middleware is the outermost; CORS preflights carry no key."""
    settings = services.settings
    app.add_middleware(BodyMiddleware, spool=services.spool)
    if services.key is not None:
        app.add_middleware(KeyMiddleware, find=services.key.caller_of)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Location", "Retry-After", "Idempotent-Replayed", SKIPPED, HEADER],
        )
    app.add_middleware(
        GuardMiddleware,
        hosts=(settings.host, *settings.allowed_hosts),
        cors_origins=settings.cors_origins,
        max_body=MAX_UPLOAD_BYTES + ENVELOPE_BYTES,
    )
    app.add_middleware(PatienceMiddleware, timeout_s=settings.client_timeout_s)
    app.add_middleware(MetricsMiddleware, metrics=services.metrics)
    app.add_middleware(Gzip)
    app.add_middleware(ConditionalMiddleware)
    app.add_middleware(AccessLog, write=settings.access_log, tell=services.spans.request)
