"""The exported page in a browser, from disk: no request, no error, light and dark, on paper and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.client import Client
from tests.e2e.axe import violations
from tests.e2e.browser import becomes
from tests.e2e.states import _three_traces

BACKGROUND = "() => getComputedStyle(document.body).backgroundColor"
IMAGES = "() => [...document.images].every((one) => one.complete && one.naturalWidth > 0)"
HOSTILE = (
    "</style></title><script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\"> $\\frac12$"
)


@pytest.fixture(scope="module")
def file(slow_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three traces, one of them with a hostile note."""
    path = tmp_path_factory.mktemp("page") / "traces.html"
    with Client(slow_url) as client:
        traces = _three_traces(client)
        client.update_trace(traces[0], rating=1, tags=["<i>tag</i>"], note=HOSTILE)
        with client.export(traces, format="html") as export:
            path.write_bytes(b"".join(export.chunks))
    return path


class Opened:
    """The page with all that it requested and reported."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.seen: list[str] = []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.seen.append(request.url[:60]))
        self.page.on("console", lambda message: self.seen.append(message.text))
        self.page.on("pageerror", lambda error: self.seen.append(str(error)))
        self.page.goto(file.as_uri())

    def close(self, file: Path) -> None:
        self.context.close()
        assert [one for one in self.seen if not one.startswith("data:")] == [file.as_uri()[:60]]


@pytest.mark.parametrize(("scheme", "background"), [("light", "rgb(246, 247, 249)"), ("dark", "rgb(19, 21, 25)")])
def test_page_opens_from_disk(browser: Any, file: Path, scheme: str, background: str) -> None:
    opened = Opened(browser, file, color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page = opened.page
    becomes(page, IMAGES, True)
    assert page.locator("article").count() == 3
    assert page.evaluate(BACKGROUND) == background
    assert HOSTILE in page.inner_text("article >> nth=0")
    assert page.title() == "3 traces of Omni-R1 Studio"
    for width in (1280, 320):
        page.set_viewport_size({"width": width, "height": 900})
        becomes(page, f"() => document.documentElement.scrollWidth <= {width}", True)
    assert violations(page) == []
    opened.close(file)


def test_page_prints_dark_on_white(browser: Any, file: Path) -> None:
    opened = Opened(browser, file, color_scheme="dark")
    opened.page.emulate_media(media="print", color_scheme="dark")
    assert opened.page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    assert opened.page.evaluate("() => getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert opened.page.pdf().count(b"/Type /Page\n") >= 3  # each trace begins on a page of its own
    opened.close(file)
