"""Fixtures of the real server: one shared by many tests, and one per test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.client import Client
from tests.e2e.browser import FakeServer, Open, Studio, launched, new_context, require_browser
from tests.e2e.real_server import ROOT, SHIPPED, Server, new_server
from tests.e2e.states import played_recipe
from tests.training.packages import write_package


@pytest.fixture
def fresh_server(tmp_path: Path) -> Iterator[Server]:
    """A server without pages for one test, not started yet; killed at the end."""
    server = new_server(tmp_path)
    server.environment["OMNI_R1_PAGES"] = "0"
    yield server
    server.kill()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One running server, shared by all tests that leave it running."""
    running = new_server(tmp_path_factory.mktemp("server"))
    try:
        yield running.start()
    finally:
        running.kill()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def chromium() -> None:
    """Without chromium the test is skipped with the reason, or fails if OMNI_R1_REQUIRE_BROWSER=1."""
    require_browser()


@pytest.fixture(scope="module")
def browser(chromium: None) -> Iterator[Any]:
    """A browser for one file: its event loop runs in this thread, so no other test may have one meanwhile."""
    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def slow_url(tmp_path_factory: pytest.TempPathFactory, chromium: None) -> Iterator[str]:
    """A scripted server whose traces take seconds, so that pages can be reloaded in the middle.

    It accepts the rewards of `examples/`, and has a package with the example's task family.
    """
    folder = tmp_path_factory.mktemp("slow")
    server = FakeServer(folder / "home")
    server.pace_s = 0.12
    package = write_package(
        folder, rewards={"tidy": "examples.own_reward:tidy"}, tasks={"dots": "examples.own_tasks:Dots"}
    )
    path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
    server.environment |= {"PYTHONPATH": path, "OMNI_R1_REWARDS_DIR": str(ROOT / "examples")}
    yield server.start().url
    server.kill()


@pytest.fixture(scope="session")
def recipe(slow_url: str) -> str:
    """The whole recipe, played to its end on that server; returns the job's id."""
    return played_recipe(slow_url)


@pytest.fixture(scope="session")
def studio_url(request: pytest.FixtureRequest, chromium: None) -> str:
    """The real engine on the shipped checkpoint, or the scripted engine without one."""
    if (SHIPPED / "config.json").exists():
        return str(request.getfixturevalue("server").url)
    return str(request.getfixturevalue("slow_url"))


@pytest.fixture(scope="module")
def shared_context(browser: Any) -> Any:
    """Of the windows of one file that have no options; closed with the browser."""
    return new_context(browser)


@pytest.fixture
def studio(browser: Any, shared_context: Any) -> Iterator[Open]:
    """Opens a window on a server; finally asserts that its pages had no errors and requested no other host."""
    opened: list[Studio] = []

    def open_(url: str, **options: Any) -> Studio:
        taken = any(one.shared for one in opened)  # a second window of one test is another visitor
        opened.append(Studio(browser, url, shared=None if taken else shared_context, **options))
        return opened[-1]

    yield open_
    for one in opened:
        one.check()
