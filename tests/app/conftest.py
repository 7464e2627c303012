"""A real server on a free port, in this process, with a scripted engine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from app.common.settings import Settings
from app.common.spans import Spans
from app.http.connections import ConnectionGuard
from app.http.deps import Services
from app.jobs.process import COMMAND
from app.main import create_app
from app.runtime import Runtime
from app.server import bind, server_config
from app.storage.database import Database
from app.store import bucket
from tests.app.canned import Canned
from tests.app.store.moto import Moto
from tests.app.store.s3 import BUCKET, S3
from tests.app.stream_events import check_event
from tests.fakes import FakeGeneration, png, write_paper_checkpoint
from tests.patience import PATIENCE_S
from tests.postgres import Cluster


@dataclass(frozen=True)
class Sse:
    """One event as received, with its exact bytes."""

    id: int
    type: str
    data: dict[str, Any]
    raw: bytes = field(repr=False)


def parse_sse(stream: bytes) -> list[Sse]:
    """Whole events of a stream, without comments."""
    found = []
    for block in stream.split(b"\n\n")[:-1]:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
        if fields:
            raw = block + b"\n\n"
            found.append(Sse(int(fields[b"id"]), fields[b"event"].decode(), json.loads(fields[b"data"]), raw))
    return found


def is_problem(answer: Any, status: int, code: str, path: str | None = None) -> dict[str, Any]:
    """Assert that the response is that problem document and names that field; returns the document."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code, document
    assert document.keys() >= {"type", "title", "status", "detail", "instance", "code"}
    assert document["status"] == status
    assert document["detail"]
    assert "Traceback" not in answer.text
    if path is not None:
        assert [error["path"] for error in document["errors"]] == [path]
    return document


class Serve(Protocol):
    """The fixture `serve`."""

    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[Server]: ...


without_store = pytest.mark.skipif("STUDIO_TEST_S3" in os.environ, reason="with an object store the file comes back")

# Runs a test on SQLite and on PostgreSQL, for behaviour that depends on the database.
both_databases = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


class Server:
    """A running server; `stop` and `start` restart it on the same home."""

    database_url: str | None = None  # of every server in the test; None: each home's own
    migrated: Path | None = None  # an empty database that a new home gets; None: it makes its own
    bucket: str | None = None  # every server has a store of its own there; None: no store

    def __init__(self, home: Path, package: Path, generation: FakeGeneration, **settings: Any) -> None:
        self.home = home
        self.package = package
        self.generation = generation
        self.most_connections: int = settings.pop("most_connections", 1000)
        self.job_command: Sequence[str] = settings.pop("job_command", COMMAND)
        self.spans: Spans | None = settings.pop("spans", None)
        store = None if self.bucket is None else f"{self.bucket}/{uuid.uuid4().hex}"
        usual = {"port": 0, "ping_s": 15.0, "database_url": self.database_url, "store": store}
        self.settings = Settings(**{"home": home, **usual, **settings})
        self.app: FastAPI
        self.client: httpx.AsyncClient

    @property
    def services(self) -> Services:
        """The server's parts, for inspection."""
        found: Services = self.app.state.services
        return found

    @property
    def runtime(self) -> Runtime:
        """The server's runtime."""
        found: Runtime = self.app.state.runtime
        return found

    async def start(self, *, ready: bool = True) -> None:
        if self.migrated is not None and not self.home.exists():
            self.home.mkdir(mode=0o700, parents=True)
            shutil.copyfile(self.migrated, self.home / self.migrated.name)
        self.app = create_app(
            self.settings,
            generation=self.generation,
            package_folder=self.package,
            job_command=self.job_command,
            spans=self.spans,
        )
        self.guard = ConnectionGuard(self.most_connections, timeout_s=self.settings.client_timeout_s)
        sock = bind("127.0.0.1", 0)
        sock.guard = self.guard
        self.port = sock.getsockname()[1]
        self._server = uvicorn.Server(server_config(self.app, self.guard))
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self._task = asyncio.create_task(self._server.serve(sockets=[sock]))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S, limits=limits)
        if ready:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if (await self.client.get("/readyz")).status_code == 200:
                            return
                    await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """As after a signal: traces end first, then the connections."""
        await self.runtime.stop_traces()
        self._server.should_exit = True
        await self._task
        await self.client.aclose()

    async def crash(self) -> None:
        """Stop abruptly: active traces get no end."""
        self.services.traces._launcher.stopping = True
        for live in list(self.services.traces._live.values()):
            live.ended = True
            if live.runner is not None:
                live.runner.cancel()
        self._server.should_exit = True
        await self._task
        await self.client.aclose()

    # ---- shorthands

    async def image(self, data: bytes | None = None) -> str:
        """The id of a stored image."""
        answer = await self.client.post("/v1/images", content=data or png(), headers={"content-type": "image/png"})
        assert answer.status_code == 201, answer.text
        found: str = answer.json()["image_id"]
        return found

    async def body(self, **more: Any) -> dict[str, Any]:
        """A valid request."""
        return {"question": "Where is the red star?", "images": [{"image_id": await self.image()}], **more}

    async def create(self, **more: Any) -> dict[str, Any]:
        """A started trace."""
        answer = await self.client.post("/v1/traces", json=await self.body(**more))
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def get(self, trace_id: str) -> dict[str, Any]:
        """The whole trace."""
        answer = await self.client.get(f"/v1/traces/{trace_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def stream(
        self,
        trace_id: str,
        after: int | None = None,
        until: Callable[[Sse], bool] | None = None,
        kind: str = "traces",
        **headers: str,
    ) -> list[Sse]:
        """Events until the server closes the stream, or until one satisfies `until` (then disconnect)."""
        params = {} if after is None else {"after": str(after)}
        got: list[Sse] = []
        buffer = b""
        async with self.client.stream("GET", f"/v1/{kind}/{trace_id}/events", params=params, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for chunk in answer.aiter_raw():
                buffer += chunk
                *whole, buffer = buffer.split(b"\n\n")
                for event in parse_sse(b"".join(block + b"\n\n" for block in whole)):
                    check_event(kind, event.type, event.data)
                    got.append(event)
                    if until is not None and until(event):
                        return got
        return got

    async def until(self, trace_id: str, type_: str) -> list[Sse]:
        """Events up to the first of `type_`."""
        return await self.stream(trace_id, until=lambda event: event.type == type_)

    async def finished(self, trace_id: str) -> dict[str, Any]:
        """The trace once it has ended."""
        await self.stream(trace_id)
        return await self.get(trace_id)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables and no rows, to copy: the migrations take a third of a server's start."""
    path = tmp_path_factory.mktemp("migrated") / "omni-r1.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture(scope="session", autouse=True)
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """With STUDIO_TEST_S3=PATH/moto_server every server has an object store."""
    program = os.environ.get("STUDIO_TEST_S3")
    if program is None:
        yield
        return
    found = Moto(program, tmp_path_factory.mktemp("moto") / "log")
    os.environ.update(found.environment)
    Server.bucket = f"s3://{BUCKET}"
    yield
    found.end()


@pytest.fixture(autouse=True)
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, migrated: Path) -> Iterator[str]:
    """The database of the test's servers: "sqlite", and with `both_databases` also "postgresql"."""
    monkeypatch.setattr(Server, "migrated", migrated)
    kind: str = getattr(request, "param", "sqlite")
    if kind == "postgresql":
        cluster: Cluster = request.getfixturevalue("postgres")
        url = cluster.new()
        monkeypatch.setattr(Server, "database_url", url)
        yield kind
        cluster.drop(url)
    else:
        yield kind


@pytest.fixture
def database_url(database: str, tmp_path: Path) -> str:
    """A database for tests without a server; has tables only if it is PostgreSQL."""
    return Server.database_url or f"sqlite:///{tmp_path / 'x.db'}"


@pytest.fixture(scope="session")
def paper_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder without tensors; copy it before changing it."""
    return write_paper_checkpoint(tmp_path_factory.mktemp("paper") / "nano-omni-r1")


@pytest.fixture
def package(tmp_path: Path, paper_checkpoint: Path) -> Path:
    """A package folder with the one shipped checkpoint."""
    folder = tmp_path / "package"
    shutil.copytree(paper_checkpoint, folder / "nano-omni-r1")
    return folder


@pytest.fixture
def engine() -> FakeGeneration:
    """The scripted engine of the servers."""
    return FakeGeneration()


@contextlib.asynccontextmanager
async def running(home: Path, package: Path, engine: FakeGeneration, **settings: Any) -> AsyncIterator[Server]:
    """A server, started and stopped."""
    server = Server(home, package, engine, **settings)
    await server.start()
    try:
        yield server
    finally:
        if not server._task.done():
            await server.stop()


def _num_event_writers() -> int:
    return sum(thread.name == "event-writer" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_event_writer() -> Iterator[None]:
    """Every test's event writers end with it."""
    before = _num_event_writers()
    yield
    assert _num_event_writers() <= before


@pytest.fixture
def serve(tmp_path: Path, package: Path, engine: FakeGeneration) -> Serve:
    """`async with serve(**settings) as server:` runs a server during the block."""
    return functools.partial(running, tmp_path / "home", package, engine)


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Server]:
    """A running server with the default settings."""
    async with serve() as server:
        yield server


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """A store, found by the environment; what fails there is not tried again at once."""
    monkeypatch.setattr(bucket, "RETRIES", 0)
    found = S3()
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    yield found
    found.gate.set()
    found.down()


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Canned]:
    """The canned server as the command line's server, in an empty folder with an image."""
    server = Canned()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("OMNI_R1_URL", server.url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"picture")
    yield server
    server.cancelled.set()
    server.shutdown()
    server.server_close()
    thread.join()
