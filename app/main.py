"""Builds the server from its parts.

serve(read_settings())                            run the studio, as `omni-r1 serve` does
create_app(settings, generation=FakeGeneration()) the same app on any `Generation`, for tests
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from app.common import logs
from app.common.collector import SpansError, make_spans
from app.common.settings import Settings
from app.common.spans import Spans
from app.engine import engine_of
from app.http.errors import install_handlers
from app.http.openapi import add_docs
from app.http.page_gate import PageGate
from app.http.routes import responses
from app.http.routes.api import API, ROUTES
from app.http.stack import add_middleware
from app.parts import build_services
from app.runtime import BuildUI, Runtime, UISlot
from app.server import BAD_START, StudioServer, bind, run_app
from app.storage.dialects import DatabaseUnusable
from app.storage.home import Home, HomeError
from app.storage.mirror import StoreUnusable
from app.ui.assets import static_files
from model.checkpoint.shards import SHIPPED
from model.engine.messages import Generation

__all__ = ["StudioServer", "bind", "build_page", "build_services", "create_app", "run_app", "serve"]

log = logging.getLogger("omni_r1.server")


def create_app(
    settings: Settings,
    *,
    generation: Generation,
    build_ui: BuildUI | None = None,
    home: Home | None = None,
    package_folder: Path = SHIPPED,
    job_command: Sequence[str] | None = None,
    spans: Spans | None = None,
) -> FastAPI:
    """The app on `generation`; its lifespan starts and stops everything. `app.state.runtime` is its runtime."""
    home, spans = home or Home(settings.home), spans or Spans()
    slot = UISlot()
    services = build_services(
        settings, generation=generation, home=home, package_folder=package_folder, job_command=job_command, spans=spans
    )
    runtime = Runtime(services, home, slot, build_ui)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        try:
            yield
        finally:
            await runtime.close()

    app = FastAPI(
        title="Omni-R1 Studio",
        version=version("omni-r1-studio"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=spans.fastapi,
        routes=API.routes,
    )
    app.state.services = services
    app.state.runtime = runtime
    install_handlers(app)
    add_docs(app, with_key=services.key is not None, schemas=responses.event_schemas)
    app.mount("/static", static_files(), name="static")
    app.mount("/", PageGate(slot, ROUTES), name="page")
    add_middleware(app, services)
    return app


def build_page(base_url: str, api_key: str) -> ASGIApp:
    """The Gradio pages on this server's own API; imports Gradio (takes seconds)."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from app.ui.mount import build_page as build

    return build(base_url, api_key)


def serve(
    settings: Settings,
    *,
    generation: Generation | None = None,
    build_ui: BuildUI | None = build_page,
    job_command: Sequence[str] | None = None,
) -> int:
    """Run the studio until it is stopped; returns the exit code (0; 2 for a failed start)."""
    logs.configure(settings.log_format, settings.log_level)
    home = Home(settings.home)
    if os.path.expanduser("~") == "~":  # unknown user: libraries need a home, too
        os.environ["HOME"] = str(settings.home)
    try:
        spans = make_spans()
        home.open()
        sock = bind(settings.host, settings.port)
    except (HomeError, OSError, SpansError) as error:
        home.close()
        logs.fatal(str(error))
        return BAD_START
    host, port = sock.getsockname()[:2]
    home.note(host, port)
    kill_engine: Callable[[], None] | None = None
    if generation is None:
        engine = engine_of(settings)
        engine.spawn()  # it imports torch while this process opens the database and builds the pages
        generation, kill_engine = engine, engine.kill
    pages = build_ui if settings.pages else None
    app = create_app(settings, generation=generation, build_ui=pages, home=home, job_command=job_command, spans=spans)
    try:
        app.state.runtime.prepare()
    except (DatabaseUnusable, StoreUnusable, SQLAlchemyError, OSError) as error:
        sock.close()
        home.close()
        logs.fatal(_reason(error))
        return BAD_START
    shown = f"[{host}]" if ":" in host else host
    logs.announce(f"http://{shown}:{port}")
    return run_app(app, sock, kill_engine=kill_engine)


def _reason(error: Exception) -> str:
    """One line about the problem with home or database; drivers' messages contain no passwords."""
    first = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    return f"the database cannot be used: {first}" if isinstance(error, SQLAlchemyError) else first


if __name__ == "__main__":
    from app.common.settings import SettingsError, read_settings

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until uvicorn handles signals
    logs.begin()
    try:
        code = serve(read_settings())
    except SettingsError as refusal:
        logs.fatal(str(refusal))
        code = BAD_START
    sys.exit(code)
