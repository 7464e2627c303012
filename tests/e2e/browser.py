"""A real browser with a real server, and checks for every page: no console errors, no requests to other hosts."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.real_server import Server
from tests.patience import PATIENCE_S

BROWSERS = ("chromium-headless-shell", "chromium")  # the first is chromium without its windows, loads pages sooner
PATIENCE_MS = 1_000 * PATIENCE_S
READY = {  # what a page has once it can be used, whatever the server holds
    "/": "html[data-studio=ready]",
    "/gallery": ".or-card:not(.or-skeleton), .or-gallery-word:not(:empty)",
    "/training": "html[data-training=ready]",
    "/checkpoints": "html[data-checkpoints=ready]",
    "/about": ".or-about-section >> nth=2",
}


class FakeServer(Server):
    """The real app on a scripted engine (`tests.fake_server`): needs no weights, draws at a chosen pace."""

    pace_s: float = 0.05

    def command(self) -> list[str]:
        options = ("--port", str(self.port), "--home", str(self.home), "--pace", str(self.pace_s))
        return [sys.executable, "-m", "tests.fake_server", *options]


def browser_path() -> str | None:
    """The first of `BROWSERS` that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def missing_browser() -> str | None:
    """Why browser tests cannot run here, or None."""
    if browser_path() is None:
        return "chromium is not installed"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed"
    return None


def require_browser() -> None:
    """Skips with the reason; fails instead if OMNI_R1_REQUIRE_BROWSER=1."""
    reason = missing_browser()
    if reason is None:
        return
    if os.environ.get("OMNI_R1_REQUIRE_BROWSER") == "1":
        pytest.fail(f"browser tests are required here, but {reason}")
    pytest.skip(reason)


@contextmanager
def launched(*arguments: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox", *arguments])
        try:
            yield browser
        finally:
            browser.close()


def new_context(browser: Any, *, tour: bool = False, **options: Any) -> Any:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
    context.set_default_timeout(PATIENCE_MS)
    if not tour:  # of the first visit; it would cover other parts
        context.add_init_script("try { localStorage.setItem('omni-r1-tour', 'seen'); } catch {}")
    return context


def forget(context: Any, url: str) -> None:
    """Close the context's pages and drop its cookies and what pages of `url` have stored; files stay cached."""
    for page in context.pages:
        page.close()
    context.clear_cookies()
    page = context.new_page()
    session = context.new_cdp_session(page)
    origin = "/".join(url.split("/")[:3])
    session.send("Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "local_storage,indexeddb"})
    page.close()


class Studio:
    """A browser window on a server; `check()` reports the errors of its pages.

    Windows without options share a context, one after another, and with it the cached files; each begins without
    cookies and stored items. A test that changes its context (scripts, permissions, ...) asks for its own: `alone`.
    """

    def __init__(
        self, browser: Any, url: str, *, tour: bool = False, alone: bool = False, shared: Any = None, **options: Any
    ) -> None:
        self.url = url
        self.errors: list[str] = []
        self.expected: list[str] = []  # parts of console errors that the test provokes
        self.shared = shared is not None and not (tour or alone or options)
        self.context = shared if self.shared else new_context(browser, tour=tour, **options)

    def page(self, path: str = "/", *, ready: str = "html[data-studio=ready]") -> Any:
        from playwright.sync_api import TimeoutError as Late

        page = self.context.new_page()
        self.watch(page)
        waiting: dict[Any, str] = {}
        page.on("request", lambda request: waiting.update({request: request.url}))
        page.on("requestfinished", lambda request: waiting.pop(request, None))
        page.on("requestfailed", lambda request: waiting.pop(request, None))
        page.goto(self.url + path)
        try:
            page.wait_for_selector(ready, state="attached")
        except Late as late:
            shown = page.evaluate("() => document.body.innerText.slice(0, 2000)")
            late.add_note(f"errors: {self.errors}\nunanswered: {list(waiting.values())}\nthe page: {shown}")
            raise
        return page

    def watch(self, page: Any) -> None:
        """Count this page's errors in `check()` from now on."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(f"console: {message.text} {message.location.get('url', '')}")

    def _request(self, request: Any) -> None:
        if not re.match(r"(http://127\.0\.0\.1[:/]|data:|blob:)", request.url.replace(self.url, "http://127.0.0.1:1")):
            self.errors.append(f"outside: {request.url}")

    def check(self) -> None:
        wrong = [error for error in self.errors if not any(part in error for part in self.expected)]
        if self.shared:
            forget(self.context, self.url)
        else:
            self.context.close()
        assert not wrong, wrong


Open = Callable[..., Studio]


def status(page: Any, *wanted: str) -> str:
    """Waits until the trace on the page has one of these statuses; returns it."""
    found = page.wait_for_selector(", ".join(f".or-viewer[data-status={one}]" for one in wanted))
    return str(found.get_attribute("data-status"))


def becomes(page: Any, script: str, wanted: Any, *, timeout_ms: float = PATIENCE_MS, what: str = "") -> None:
    """Waits until this arrow function returns `wanted` in the page; fails with its actual result."""
    from playwright.sync_api import TimeoutError as Late

    found = page.evaluate(script)
    if found != wanted:
        text = json.dumps(wanted, separators=(",", ":"), ensure_ascii=False)
        with suppress(Late):
            page.wait_for_function(
                f"JSON.stringify(({script})()) === {json.dumps(text)}", polling=50, timeout=timeout_ms
            )
        found = page.evaluate(script)
    assert found == wanted, (what, found)


def fits(page: Any, width: int, height: int = 800) -> None:
    """Resizes the page and waits until nothing on it is wider."""
    page.set_viewport_size({"width": width, "height": height})
    becomes(page, f"() => innerWidth === {width} && document.documentElement.scrollWidth <= {width}", True)


def count_connections(window: Studio) -> None:
    """From the next page on, `connections` counts the page's open EventSources; the window must be `alone`."""
    assert not window.shared
    window.context.add_init_script(
        "window.sources = []; const Real = EventSource;"
        "window.EventSource = class extends Real { constructor(...all) { super(...all); window.sources.push(this); } };"
    )


def connections(page: Any) -> int:
    return int(page.evaluate("window.sources.filter((one) => one.readyState !== 2).length"))


def asked_in_address(page: Any, name: str) -> str:
    """The value of `name` in the page's URL, as the page sees it (`page.url` is updated later)."""
    return str(page.evaluate("(name) => new URLSearchParams(location.search).get(name) ?? ''", name))


FIRST_TEXT = """
() => new Promise((resolve) => {
  const start = performance.now();
  const observer = new MutationObserver(() => {
    const text = document.querySelector('.or-step-text, .or-answer-text')?.textContent;
    if (!text) return;
    observer.disconnect();
    resolve([performance.now() - start, text]);
  });
  observer.observe(document.body, { subtree: true, childList: true, characterData: true });
  document.querySelector('#or-reason').click();
})
"""


def click_to_first_text(page: Any) -> tuple[float, str]:
    """Clicks "Reason" on a page without a trace; returns the milliseconds until the model's first words appear, and the
    words."""
    took, text = page.evaluate(FIRST_TEXT)
    return float(took), str(text)


def picture_file(folder: Path, size: tuple[int, int] = (96, 64)) -> Path:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", size, (240, 236, 220))
    ImageDraw.Draw(picture).ellipse((20, 12, 60, 52), fill=(200, 30, 30))
    path = folder / "own.png"
    picture.save(path)
    return path
