"""Pages become ready in any order of script arrival, and report a missing script."""

from __future__ import annotations

import random
import re
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.e2e.browser import READY, Open, Studio, becomes

pytestmark = pytest.mark.timeout(900)
STEP_MS = 10
HELD_MS = 300  # long enough for the other scripts on most machines; on slower ones the test is weaker, not wrong


def opened(window: Studio) -> Any:
    """An empty page whose errors count like any other's."""
    page = window.context.new_page()
    window.watch(page)
    return page


class HeldBack:
    """Requests for these scripts wait for `let_all_go`."""

    def __init__(self, page: Any, pattern: str) -> None:
        self.waiting: list[Any] = []
        self.requested = 0
        self._open = False
        page.route(pattern, self._take)

    def _take(self, route: Any) -> None:
        self.requested += 1
        if self._open:
            route.continue_()
        else:
            self.waiting.append(route)

    def let_all_go(self) -> None:
        """Releases waiting and future requests."""
        self._open = True
        while self.waiting:
            self.waiting.pop().continue_()


@pytest.mark.parametrize(("path", "seed"), [(path, seed) for seed, path in enumerate(READY, 1)])
def test_scripts_may_arrive_in_any_order(studio: Open, slow_url: str, path: str, seed: int) -> None:
    rng = random.Random(seed)
    page = opened(studio(slow_url))
    held = HeldBack(page, "**/*.js")
    page.goto(slow_url + path, wait_until="commit")
    for _ in range(6000):
        page.wait_for_timeout(STEP_MS)
        if page.query_selector(READY[path]):
            break
        if held.waiting:
            held.waiting.pop(rng.randrange(len(held.waiting))).continue_()
    page.wait_for_selector(READY[path], state="attached")


IMPORTED = re.compile(r"""\bfrom\s*["'](\.[^"']+)["']""")


def roots(sources: dict[str, str]) -> list[str]:
    """The scripts that no other of them imports. A module runs with its root: only a root can be late on its own."""
    imported = {urljoin(url, found) for url, source in sources.items() for found in IMPORTED.findall(source)}
    return sorted(url for url in sources if url not in imported)


def test_roots_are_imported_by_no_other_script() -> None:
    page, shared, icon = "http://a/static/x/page.js", "http://a/static/shared/dom.js", "http://a/static/x/icon.js"
    sources = {page: "import { h } from '../shared/dom.js';\nexport * from './icon.js';", shared: "", icon: ""}
    assert roots(sources) == [page]


def test_every_script_may_arrive_last(studio: Open, slow_url: str) -> None:
    """Including Gradio's text box, which our modules must not depend on."""
    window = studio(slow_url)
    ours: dict[str, str] = {}
    gradio: set[str] = set()

    def note(response: Any) -> None:
        url = response.url.split("?")[0]
        if url.endswith(".js") and "/static/" in url:
            ours[url] = response.text()
        elif "/assets/Index-" in url or "/assets/HTML-" in url:
            gradio.add(url)

    page = opened(window)
    page.on("requestfinished", lambda request: note(request.response()))
    page.goto(slow_url)
    page.wait_for_selector(READY["/"], state="attached")
    page.close()
    late = [*roots(ours), *sorted(url for url in gradio if url.endswith(".js"))]
    assert any("/studio/studio.js" in url for url in late)
    assert len(late) > 3
    for name in late:
        page = opened(window)
        held = HeldBack(page, f"{name}*")
        page.goto(slow_url, wait_until="commit")
        page.wait_for_timeout(HELD_MS)
        held.let_all_go()
        page.wait_for_selector(READY["/"], state="attached")
        page.close()


@pytest.mark.parametrize("module", ["studio/studio.js", "shared/dom.js"])
def test_failed_module_is_requested_again(studio: Open, slow_url: str, module: str) -> None:
    window = studio(slow_url)
    window.expected = ["503", "ERR_FAILED"]
    left = [503, None]

    def broken(route: Any) -> None:
        if not left:
            route.continue_()
        elif (answer := left.pop()) is None:
            route.abort()
        else:
            route.fulfill(status=answer)

    page = opened(window)
    page.route(f"**/static/*/{module}", broken)
    page.goto(slow_url)
    page.wait_for_selector(READY["/"], state="attached")
    page.wait_for_selector(".or-theme svg")
    assert left == []


def test_missing_module_is_reported(studio: Open, slow_url: str) -> None:
    window = studio(slow_url)
    window.expected = ["ERR_FAILED", "Failed to fetch dynamically imported module"]
    page = opened(window)
    page.route("**/static/*/studio/gallery.js", lambda route: route.abort())
    page.goto(slow_url + "/gallery")
    page.wait_for_selector("#or-gallery >> text=could not be loaded")
    page.unroute("**/static/*/studio/gallery.js")
    page.click("#or-gallery >> text=Reload")
    page.wait_for_selector(READY["/gallery"], state="attached")


def test_recreated_component_shows_the_same(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.evaluate("""() => {
      for (const name of ['well', 'examples', 'line', 'viewer']) {
        const old = document.querySelector(`.or-part-${name}`);
        const fresh = old.cloneNode(false);
        old.replaceWith(fresh);
        window.omniR1.parts.studio.mount(name, fresh);
      }
      const box = document.querySelector('#or-question textarea');
      box.replaceWith(box.cloneNode(true));
    }""")
    page.click(".or-example >> nth=1")
    becomes(page, "() => document.querySelectorAll('.or-example[aria-pressed=true]').length", 1)
    page.fill("#or-question textarea", "word " * 420)
    page.wait_for_selector(".or-budget[data-over]")
    page.click(".or-example >> nth=0")
    page.wait_for_selector(".or-budget:not([data-over]) >> text=room for")
    page.click("#or-step")
    page.wait_for_selector(".or-viewer[data-status=paused]")
