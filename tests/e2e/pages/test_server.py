"""A server that stops and returns, in the same or a newer version: pages report it, wait and recover."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import READY, FakeServer, Open, becomes, status
from tests.fake_server import LONG

pytestmark = pytest.mark.timeout(900)
NOTE = ".or-server:visible"
LOST = ["ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE_CHUNKED", "503"]


@pytest.fixture
def own_server(tmp_path: Path, chromium: None) -> Iterator[FakeServer]:
    server = FakeServer(tmp_path / "home")
    server.pace_s = 0.12
    server.start()
    server.port = int(server.url.rsplit(":", 1)[1])
    yield server
    server.kill()


def test_pages_reconnect_after_a_restart(studio: Open, own_server: FakeServer) -> None:
    window = studio(own_server.url)
    window.expected = LOST
    page = window.page()
    others = [window.page(path, ready=ready) for path, ready in READY.items() if path != "/"]
    page.fill("#or-question textarea", f"Where is the star, {LONG}?")
    page.click("#or-reason")
    page.wait_for_selector(".or-step >> nth=1")
    own_server.kill()
    page.wait_for_selector(f"{NOTE} >> text=is unreachable")
    for other in others:
        other.evaluate("window.dispatchEvent(new Event('focus')); window.dispatchEvent(new Event('online'))")
        other.wait_for_selector(f"{NOTE} >> text=is unreachable")
    own_server.start()
    for one in [page, *others]:
        one.wait_for_selector(".or-server", state="hidden")
    assert status(page, "interrupted") == "interrupted"
    said = page.inner_text(".or-trouble")
    assert (
        said == "The server stopped before this trace finished. The steps so far are kept: press Reason to ask again."
    )
    assert LONG in page.input_value("#or-question textarea")
    page.fill("#or-question textarea", "Where is the star?")
    page.click("#or-reason")
    assert status(page, "completed") == "completed"


def test_page_opened_during_an_outage_completes_itself(studio: Open, slow_url: str) -> None:
    window = studio(slow_url)
    window.expected = ["ERR_FAILED"]
    for path, ready in READY.items():
        if path == "/about":
            continue  # its content comes with the page
        page = window.context.new_page()
        for api in ("**/v1/**", "**/readyz"):
            page.route(api, lambda route: route.abort())
        page.goto(slow_url + path)
        page.wait_for_selector(f"{NOTE} >> text=is unreachable")
        for api in ("**/v1/**", "**/readyz"):
            page.unroute(api)
        page.wait_for_selector(".or-server", state="hidden")
        page.wait_for_selector(ready, state="attached")
        page.wait_for_selector(".or-checkpoint select:visible")
        if path == "/":
            page.wait_for_selector(".or-example:not(.or-dice):enabled >> nth=3")
            page.wait_for_selector(".or-drop img:visible")
            assert page.locator(".or-error:visible").count() == 0
        page.close()


def as_version(page: Any, version: str) -> None:
    """Makes the server report another version from now on."""
    answer = {"phase": "ready", "checkpoint": "x", "weight_version": 1, "detail": "", "version": version}
    page.route("**/readyz", lambda route: route.fulfill(json=answer))


@pytest.mark.parametrize("path", READY)
def test_newer_server_suggests_a_reload(studio: Open, slow_url: str, path: str) -> None:
    page = studio(slow_url).page(path, ready=READY[path])
    as_version(page, "9.9.9+00000000")
    page.evaluate("window.dispatchEvent(new Event('online'))")
    page.wait_for_selector(f"{NOTE} >> text=The studio was updated")
    page.unroute("**/readyz")
    page.evaluate("window.before = true")
    page.click(".or-server button")
    becomes(page, "() => window.before === undefined", True)
    page.wait_for_selector(READY[path], state="attached")
    assert not page.is_visible(NOTE)
