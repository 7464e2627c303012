"""Real drags in the browser: drops never replace a page, and images are accepted where possible."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.browser import READY, Open, becomes, picture_file

pytestmark = pytest.mark.timeout(600)
SHOWN = "() => document.querySelector('.or-drop img').getAttribute('src')"
FAR = [{"mimeType": "text/uri-list", "data": "https://far.example/a.png"}]
LINK = [{"mimeType": "text/uri-list", "data": "https://far.example/a"}, {"mimeType": "text/html", "data": "<a>x</a>"}]


def drop(page: Any, items: list[dict[str, str]] | None = None, files: list[Path] | None = None, at: str = "") -> None:
    """Drags from outside onto the middle of `at`, or onto an empty area of the page, and drops."""
    box = page.locator(at).bounding_box() if at else {"x": 0, "y": 300, "width": 8, "height": 0}
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    data = {"items": items or [], "files": [str(one) for one in files or []], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": x, "y": y, "data": data})


@pytest.mark.parametrize("path", READY)
def test_drops_never_replace_the_page(studio: Open, slow_url: str, path: str, tmp_path: Path) -> None:
    window = studio(slow_url)
    page = window.page(path, ready=READY[path])
    page.evaluate("window.before = true")
    own = [{"mimeType": "text/uri-list", "data": f"{slow_url}/static/logo.svg"}]
    window.expected = ["415"]
    for items, files in ((FAR, None), (LINK, None), (own, None), (None, [picture_file(tmp_path)])):
        drop(page, items, files)
        page.evaluate("() => new Promise((resolve) => setTimeout(resolve, 100))")  # a navigation would start now
        assert page.evaluate("window.before") is True
        assert len(window.context.pages) == 1


def test_dropped_image_becomes_the_questions_image(studio: Open, slow_url: str, tmp_path: Path) -> None:
    window = studio(slow_url)
    page = window.page()
    example = page.evaluate(SHOWN)
    path = picture_file(tmp_path)
    drop(page, files=[path], at="#or-question textarea")
    page.wait_for_selector(".or-honesty:visible")
    own = page.evaluate(SHOWN)
    assert own != example
    assert page.input_value("#or-question textarea") == ""

    drop(
        page,
        [{"mimeType": "text/html", "data": f'<img alt="a > b" src="{slow_url}{example}">'}, FAR[0]],
        at=".or-stage",
    )
    becomes(page, SHOWN, example)
    inline = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    drop(page, [{"mimeType": "text/uri-list", "data": inline}])
    becomes(page, SHOWN, own)


def test_image_of_another_site_is_rejected(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    before = page.evaluate(SHOWN)
    drop(page, FAR)
    page.wait_for_selector(".or-part-well .or-error >> text=on another site")
    drop(page, LINK, at="#or-question textarea")
    page.wait_for_selector(".or-part-well .or-error >> text=Only an image can be dropped")
    assert page.evaluate(SHOWN) == before
    assert "far.example" not in page.input_value("#or-question textarea")


def test_text_can_be_dropped_into_the_question(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.fill("#or-question textarea", "")
    drop(page, [{"mimeType": "text/plain", "data": "Where is the star?"}], at="#or-question textarea")
    becomes(page, "() => document.querySelector('#or-question textarea').value", "Where is the star?")
