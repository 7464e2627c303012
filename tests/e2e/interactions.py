"""The images of docs/interactive.md, from a real server with the shipped model: `python -m tests.e2e.interactions`.

A held-out task that the model answers wrongly: asked for the diamond, it marks the circle. A hand erases that mark and
sets the right one, and the model, going on from there, gives the right answer.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from app.client import Client
from tests.e2e.browser import Studio, launched, status
from tests.e2e.ink import edit, scrub
from tests.e2e.real_server import ROOT, temporary_server

FOLDER = ROOT / "docs" / "images" / "interactive"
TASK: dict[str, Any] = {"slice": "natural", "seed": 1_000_000_005}  # "Find the diamond. What is its colour?"
GREEDY: Any = {"temperature": 0.0, "seed": 1}
SAMPLES = {"temperature": 1.0, "seed": 3}
WRONG_MARK = (0.64, 0.26, 0.86, 0.48)  # over the circle: left, top, right, bottom, in shares of the image
RIGHT_MARK = (0.455, 0.695, 0.535, 0.775)  # on the diamond
SETTLED_MS = 500
DESK: Any = {"width": 1280, "height": 860}
PHONE: Any = {"width": 390, "height": 844}


def ask(client: Client, sampling: Any) -> str:
    task = client.task(**TASK)
    trace = client.create_trace(task["question"], [task["image_id"]], task_id=task["task_id"], sampling=sampling)
    for _ in client.events(trace["id"]):
        pass
    return str(trace["id"])


class Album:
    """Screenshots as small WebP files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, page: Any, name: str, *, at: str | None = None, part: str | None = None) -> None:
        """The page, or one part of it, in light; with `at` also in dark, and on a phone scrolled to that element."""
        self._shoot(page, name, part)
        if at is None:
            return
        page.emulate_media(color_scheme="dark")
        self._shoot(page, f"{name}-dark", part)
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(PHONE)
        page.locator(at).first.scroll_into_view_if_needed()
        self._shoot(page, f"{name}-phone")
        page.set_viewport_size(DESK)

    def _shoot(self, page: Any, name: str, part: str | None = None) -> None:
        page.wait_for_timeout(SETTLED_MS)
        with Image.open(io.BytesIO((page.locator(part) if part else page).screenshot())) as shot:
            shot.convert("RGB").save(self.folder / f"{name}.webp", quality=82, method=6)
        sys.stdout.write(f"{self.folder / name}.webp\n")


def walk(window: Studio, album: Album) -> str:
    """Wrong answer, correction, right answer, tree, comparison, samples; returns the answer of the branch."""
    with Client(window.url) as client:
        parent = ask(client, GREEDY)
    page = window.page(f"/?trace={parent}")
    page.set_viewport_size(DESK)
    status(page, "completed")
    page.wait_for_selector(".or-verdict:has-text('reference')")
    page.click(".or-chip >> nth=1")
    album.take(page, "wrong")

    edit(page, 1)
    page.click("text=eraser")
    scrub(page, *WRONG_MARK)
    page.click(".or-ink-bar >> text=pen")
    scrub(page, *RIGHT_MARK, lines=3)
    album.take(page, "edit", at=".or-ink-bar")

    page.click("text=Go on from here")
    page.wait_for_function("(id) => !location.search.includes(id)", arg=parent)
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    answer = str(page.inner_text(".or-answer-text"))
    page.wait_for_selector(".or-tree-row .or-verdict[data-tone=right]")
    album.take(page, "tree", at=".or-tree")

    page.click("text=compare with parent")
    page.wait_for_selector(".or-compare-word:not(:empty)")
    album.take(page, "compare", at=".or-compare-word")
    page.click(".or-compare-two >> text=Close")
    status(page, "completed")

    for _ in range(7):
        page.click("[aria-label='More samples']")
    page.click("#or-sampling button")
    page.fill("#or-temperature input", str(SAMPLES["temperature"]))
    page.fill("#or-seed input", str(SAMPLES["seed"]))
    page.click("#or-sampling button")
    page.click("#or-reason")
    page.wait_for_selector(".or-wall[data-status=completed]")
    album.take(page, "samples", at=".or-wall")
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.interactions", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    with temporary_server() as server, launched() as browser:
        window = Studio(browser, server.url)
        answer = walk(window, Album(arguments.out))
        window.check()
    sys.stdout.write(f"the corrected trace answers: {answer}\n")
    return 0 if answer == "blue" else 1


if __name__ == "__main__":
    sys.exit(main())
