"""A real server with an object store: refusals at the start, a store that is away, a killed server.

`make test-store` runs this, on moto's server; the same without processes is in `tests/app/storage/test_mirror.py`.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.client import Client
from app.store.owner import OWNER
from tests.app.store.moto import Moto
from tests.e2e.real_server import ROOT, Server, new_server, wait_until
from tests.fakes import png
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.skipif("STUDIO_TEST_S3" not in os.environ, reason="make test-store runs these")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Moto]:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "")  # restored afterwards
    moto = Moto(os.environ["STUDIO_TEST_S3"], tmp_path / "moto.log")
    yield moto
    moto.end()


@pytest.fixture
def server(tmp_path: Path, store: Moto) -> Iterator[Server]:
    """A server that is not started yet."""
    found = new_server(tmp_path)
    found.environment |= {"OMNI_R1_STORE": store.url, "OMNI_R1_PAGES": "0", **store.environment}
    yield found
    found.kill()


def ask(client: Client, number: int = 0) -> str:
    """The end of a trace with previews of its images."""
    picture = client.upload_image(png((number, 0, 0), box=10))["image_id"]
    trace = client.create_trace("What colour is the circle?", [picture], partial_images=2)
    for _ in client.events(trace["id"]):
        pass
    return client.trace(trace["id"])["status"]


def files(home: Path) -> dict[str, bytes]:
    return {
        path.relative_to(home).as_posix(): path.read_bytes()
        for folder in ("images", "partials")
        for path in (home / folder).rglob("*")
        if path.is_file()
    }


def stored(store: Moto) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.names() - {OWNER}}


def nothing_waits(client: Client) -> Callable[[], bool]:
    def check() -> bool:
        store = client.storage()["store"]
        assert store is not None
        return store["waiting"] == 0

    return check


def refusal(server: Server, **environment: str) -> str:
    """The line with which the server does not start."""
    env = server.env() | environment
    done = subprocess.run(server.command(), cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    *logged, last = done.stderr.strip().splitlines()
    assert not [line for line in logged if "Traceback" in line]
    assert "secret" not in done.stderr
    return last


def test_unusable_stores_are_refused_at_the_start(server: Server, store: Moto, tmp_path: Path) -> None:
    assert "OMNI_R1_STORE: not a store" in refusal(server, OMNI_R1_STORE="s3://")
    assert "no such bucket" in refusal(server, OMNI_R1_STORE="s3://another")
    (tmp_path / "obstore.py").write_text("raise ImportError")
    assert "pip install 'omni-r1-studio[store]'" in refusal(server, PYTHONPATH=str(tmp_path))
    store.down()
    assert "does not answer" in refusal(server)


def test_store_that_is_away_costs_no_trace(server: Server, store: Moto) -> None:
    with server.start().client() as client:
        assert ask(client) == "completed"
        wait_until(nothing_waits(client), "uploads")
        store.down()
        ended: list[str] = []

        def load(first: int) -> None:
            with server.client() as own:
                ended.extend(ask(own, first + number) for number in range(4))

        threads = [threading.Thread(target=load, args=[first]) for first in (10, 20, 30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert ended == ["completed"] * 12
        held = client.storage()["store"]
        assert held is not None
        assert held["waiting"] >= 12
        assert held["last_error"] is not None
        assert client.readiness()["phase"] == "ready"
        store.up()
        wait_until(nothing_waits(client), "uploads")
    assert stored(store) == files(server.home)
    assert server.stop() == 0


def test_server_killed_while_it_uploads_loses_nothing(server: Server, store: Moto) -> None:
    with server.start().client() as client:
        for number in range(3):
            assert ask(client, number) == "completed"
    server.kill()  # right after its traces: some of the uploads are on their way
    with server.start().client() as client:
        wait_until(nothing_waits(client), "uploads")
        assert stored(store) == files(server.home)
        for name in list(files(server.home)):
            (server.home / name).unlink()  # as on a fresh disk
        for trace in client.traces()["data"]:
            for step in client.trace(trace["id"])["steps"]:
                if step.get("image"):
                    assert client.image(step["image"]["image_id"]).startswith(b"\x89PNG")
