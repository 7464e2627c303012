"""The animation of the README, from a real run of the shipped model in a real browser.

    .venv/bin/python -m tests.e2e.recording                  docs/images/reasoning.webp
    .venv/bin/python -m tests.e2e.recording --out FILE.webp  elsewhere

Two questions: one is answered in a single run, the other one step at a time. Every frame is a screenshot of the running
page. The model takes about a second for an answer, so frames are shown for longer than they took.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tests.e2e.browser import PATIENCE_MS, Studio, launched, status
from tests.e2e.real_server import ROOT, temporary_server
from tests.patience import PATIENCE_S

TARGET = ROOT / "docs" / "images" / "reasoning.webp"
MAX_BYTES = 3_000_000
SIZE = {"width": 1280, "height": 760}
ZOOM_SEED = 1_000_000_011  # "What colour is the circle?": mark it, zoom in, answer
LIVE_MS, READ_MS, END_MS = 320, 1_500, 2_600
QUALITY = 80


@dataclass
class Film:
    """Frames with the time that each is shown; equal neighbours become one."""

    frames: list[Image.Image] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)

    def take(self, page: Any, duration_ms: int) -> None:
        frame = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        if self.frames and frame.tobytes() == self.frames[-1].tobytes():
            self.durations[-1] = max(self.durations[-1], duration_ms)
        else:
            self.frames.append(frame)
            self.durations.append(duration_ms)

    def follow(self, page: Any, *ends: str) -> None:
        """One frame after another until the trace has one of these statuses."""
        selector = ", ".join(f".or-viewer[data-status={end}]" for end in ends)
        deadline = time.monotonic() + PATIENCE_S
        while page.locator(selector).count() == 0:
            assert time.monotonic() < deadline, f"the trace did not become {ends}"
            self.take(page, LIVE_MS)

    def save(self, path: Path) -> int:
        """Write an animated WebP; its size in bytes."""
        first, *rest = self.frames
        first.save(path, save_all=True, append_images=rest, duration=self.durations, loop=0, quality=QUALITY, method=6)
        return path.stat().st_size


def one_run(page: Any, film: Film) -> None:
    """Two marks and a box, then the answer."""
    page.click(".or-example >> nth=0")
    film.take(page, READ_MS)
    page.click("#or-reason")
    film.follow(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    page.wait_for_timeout(400)
    film.take(page, END_MS)
    page.click(".or-chip >> nth=-2")  # back to the box
    page.wait_for_timeout(400)
    film.take(page, READ_MS)


def step_by_step(page: Any, film: Film) -> None:
    """A mark and a zoom; the model waits after each step."""
    page.route(
        lambda url: "/v1/tasks" in url and "seed=" not in url,
        lambda route: route.continue_(url=f"{route.request.url.split('?')[0]}?slice=natural&seed={ZOOM_SEED}"),
    )
    with page.expect_response(lambda response: "/v1/tasks" in response.url):
        page.click(".or-dice")
    page.wait_for_timeout(400)
    film.take(page, READ_MS)
    page.click("#or-step")
    page.wait_for_selector(".or-viewer:not([data-status=completed])")
    while status(page, "running", "paused", "completed") != "completed":
        film.follow(page, "paused", "completed")
        page.wait_for_timeout(400)
        film.take(page, READ_MS)
        if status(page, "paused", "completed") == "paused":
            page.click("#or-continue")
            page.wait_for_selector(".or-viewer:not([data-status=paused])", timeout=PATIENCE_MS)
    page.wait_for_selector(".or-verdict:not(:empty)")
    page.wait_for_timeout(400)
    film.take(page, END_MS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.recording", description="Record the README's animation.")
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--frames", type=Path, metavar="DIR", help="also write every frame as a PNG")
    arguments = parser.parse_args()
    film = Film()
    with temporary_server() as server:
        for process in server.children():  # the engine: the browser comes first, for more frames
            process.nice(19)
        with launched() as browser:
            window = Studio(browser, server.url)
            page = window.page()
            page.set_viewport_size(SIZE)
            page.wait_for_selector(".or-example[aria-pressed=true]")
            one_run(page, film)
            step_by_step(page, film)
            window.check()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    size = film.save(arguments.out)
    for number, frame in enumerate(film.frames if arguments.frames else ()):
        arguments.frames.mkdir(parents=True, exist_ok=True)
        frame.save(arguments.frames / f"{number:03d}.png")
    sys.stdout.write(
        f"{arguments.out}: {len(film.frames)} frames, {sum(film.durations) / 1000:.0f} s, {size:,} bytes\n"
    )
    if size > MAX_BYTES:
        sys.stdout.write(f"too large: at most {MAX_BYTES:,} bytes\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
