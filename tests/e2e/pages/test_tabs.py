"""Seven visible tabs on one trace, over plain http and a name other than localhost: no Web Locks, six connections."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.browser import FakeServer, Studio, connections, count_connections, launched, status
from tests.e2e.real_server import wait_until
from tests.fake_server import LONG, NINE

pytestmark = pytest.mark.timeout(900)
HOST = "studio.example"
TABS = 7  # one more than a browser has connections
LIMITS = "async () => (await fetch('/v1/limits')).status"
WORDS = "() => [...document.querySelectorAll('.or-step-text')].map((one) => one.textContent)"


@pytest.fixture(scope="module")
def plain_http(tmp_path_factory: pytest.TempPathFactory, chromium: None) -> Iterator[Studio]:
    """A window on a server that the browser knows by a network name."""
    server = FakeServer(tmp_path_factory.mktemp("plain") / "home", {"OMNI_R1_ALLOWED_HOSTS": HOST})
    server.pace_s = 0.12
    try:
        url = server.start().url.replace("127.0.0.1", HOST)
        with launched(f"--host-resolver-rules=MAP {HOST} 127.0.0.1") as browser:
            window = Studio(browser, url)
            count_connections(window)
            yield window
            window.check()
    finally:
        server.kill()


def test_seven_tabs_follow_one_trace(plain_http: Studio) -> None:
    window = plain_http
    first = window.page()
    assert first.evaluate("() => [isSecureContext, 'locks' in navigator]") == [False, False]
    first.fill("#or-question textarea", f"Where is the star, {NINE}?")
    first.click("#or-step")
    status(first, "paused")
    path = first.url.removeprefix(window.url)
    tabs = [first, *(window.page(path) for _ in range(TABS - 1))]
    for tab in tabs:
        status(tab, "paused")
    last = tabs[-1]
    last.click("#or-finish")
    for tab in tabs:
        tab.wait_for_selector(".or-step >> nth=2")  # each tab sees its progress
        assert tab.evaluate(LIMITS) == 200
        assert status(tab, "running", "completed")
    wait_until(lambda: sum(connections(tab) for tab in tabs) <= 1, "one stream for all tabs")
    for tab in tabs:
        status(tab, "completed")
        assert tab.evaluate(LIMITS) == 200
    words = last.evaluate(WORDS)
    assert len(words) == 9
    for tab in tabs:
        assert tab.evaluate(WORDS) == words
        tab.close()


def test_tab_takes_over_a_closed_stream(plain_http: Studio) -> None:
    window = plain_http
    first = window.page()
    first.fill("#or-question textarea", f"Where is the star, {LONG}?")
    first.click("#or-reason")
    status(first, "running")
    second = window.page(first.url.removeprefix(window.url))
    status(second, "running")
    wait_until(lambda: (connections(first), connections(second)) == (0, 1), "the stream in the newer tab")
    second.close()
    wait_until(lambda: connections(first) == 1, "the stream in the tab that is left")
    seen = len(first.evaluate(WORDS))
    first.wait_for_selector(f".or-step >> nth={seen}")  # it brings further steps
    first.click("#or-stop")
    status(first, "cancelled", "completed")
