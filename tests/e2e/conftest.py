"""The real server as fixtures: one that many tests share, and one of a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client import Client
from tests.e2e.real_server import Server, new_server


@pytest.fixture
def fresh_server(tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, not started yet; whatever is left of it is killed at the end."""
    server = new_server(tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One running server for all tests that leave it running."""
    running = new_server(tmp_path_factory.mktemp("server"))
    try:
        yield running.start()
    finally:
        running.kill()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client
