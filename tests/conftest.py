"""Fixtures for all tests."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Cluster, require_postgres

# Before torch is imported: tensors are tiny, and a second thread would only wait for the first on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Runs `async def` tests and fixtures on asyncio, each test on its own loop (`anyio_mode` in pyproject.toml)."""
    return "asyncio"


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo what a test that starts a program in this process does to its logging."""
    root, ours = logging.getLogger(), logging.getLogger("omni_r1")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    hooks = sys.excepthook, threading.excepthook
    yield
    for handler in [one for one in root.handlers if one not in handlers]:
        root.removeHandler(handler)
    for logger, level in zip((root, ours), levels, strict=True):
        logger.setLevel(level)
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = hooks


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that can see, draw and judge (plain template, 4 codes per image). Copy it to change it."""
    from tests.tiny import make_tiny_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return make_tiny_checkpoint(folder, verifier="What was done between the two images?")


@pytest.fixture(scope="session")
def tiny_tagged_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the tagged template and 16 codes per image."""
    from tests.tiny import make_tiny_checkpoint

    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-zero", template="tagged", resolution=32)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A running PostgreSQL for the tests. Skips without one, fails if OMNI_R1_REQUIRE_POSTGRES=1."""
    require_postgres()
    cluster = Cluster()
    try:
        yield cluster.start()
    finally:
        cluster.remove()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """A running PostgreSQL for one test, which may stop and start it."""
    require_postgres()
    cluster = Cluster()
    try:
        yield cluster.start()
    finally:
        cluster.remove()


@pytest.fixture
def postgres_url(postgres: Cluster) -> Iterator[str]:
    """A fresh database with tables."""
    url = postgres.new()
    yield url
    postgres.drop(url)
