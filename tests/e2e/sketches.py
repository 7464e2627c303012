"""Twelve drawings from the studio's sketch pad, and how many of their questions the model answers correctly.

    .venv/bin/python -m tests.e2e.sketches            the shipped model's answers
    .venv/bin/python -m tests.e2e.sketches --draw     redraw them with a real browser's mouse

The drawings are in tests/data/sketches: PNG files as the pad uploaded them, and `sketches.json` with question, expected
answer and family of each. They ask questions the model was trained on, in another style: pen strokes, uneven edges, the
pad's colours. Lengths are those of the model's 64x64 image; the hand shakes a little, reproducibly.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.client import Client
from tests.e2e.browser import Studio, launched
from tests.e2e.real_server import new_server

FOLDER = Path(__file__).parents[1] / "data" / "sketches"
LIST = FOLDER / "sketches.json"
SIZE = 64
SHAKE = 0.25  # pixels of 64
PENS = {"thin": 0.75, "medium": 2.0, "thick": 5.0}  # width in pixels of 64
DIGITS = {  # polylines on a grid of 2x4
    1: ((1, 0), (1, 4)),
    2: ((0, 0), (2, 0), (2, 2), (0, 2), (0, 4), (2, 4)),
    3: ((0, 0), (2, 0), (2, 2), (0, 2), (2, 2), (2, 4), (0, 4)),
    4: ((0, 0), (0, 2), (2, 2), (2, 0), (2, 4)),
    5: ((2, 0), (0, 0), (0, 2), (2, 2), (2, 4), (0, 4)),
    6: ((2, 0), (0, 0), (0, 4), (2, 4), (2, 2), (0, 2)),
}
Point = tuple[float, float]


class Hand:
    """A mouse on the open sketch pad."""

    def __init__(self, page: Any, seed: int) -> None:
        self._page = page
        self._box = page.locator(".or-sketch").bounding_box()
        self._rng = random.Random(seed)

    def stroke(self, colour: str, pen: str, points: list[Point]) -> None:
        """One line through the points without lifting the pen."""
        for name in (colour, pen):
            self._page.click(f".or-swatch[aria-label={name}]")
        mouse = self._page.mouse
        mouse.move(*self._at(points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self._at(point), steps=2)
        mouse.up()

    def _at(self, point: Point) -> Point:
        x, y = (value + self._rng.uniform(-SHAKE, SHAKE) for value in point)
        return self._box["x"] + x * self._box["width"] / SIZE, self._box["y"] + y * self._box["height"] / SIZE

    def fill(self, colour: str, corners: list[Point]) -> None:
        """A convex area: its outline, then back and forth inside, with the medium pen."""
        centre = sum(x for x, _ in corners) / len(corners), sum(y for _, y in corners) / len(corners)
        inner = [_towards(corner, centre, PENS["medium"] / 2) for corner in corners]
        self.stroke(colour, "medium", [*inner, inner[0]])
        top, bottom = min(y for _, y in inner), max(y for _, y in inner)
        rows, zigzag = max(2, round((bottom - top) / 1.5)), []
        for row in range(rows + 1):
            left, right = _cut(inner, min(bottom, top + (bottom - top) * row / rows))
            zigzag += [left, right] if row % 2 == 0 else [right, left]
        self.stroke(colour, "medium", zigzag)

    def shape(self, colour: str, kind: str, centre: Point, size: float = 15) -> None:
        x, y, r = *centre, size / 2
        if kind == "cross":
            for width, height in ((r, r / 3), (r / 3, r)):
                self.rectangle(colour, x - width, y - height, x + width, y + height)
        elif kind == "square":
            self.rectangle(colour, x - r, y - r, x + r, y + r)
        elif kind == "circle":
            turns = [2 * math.pi * k / 24 for k in range(24)]
            self.fill(colour, [(x + r * math.cos(a), y + r * math.sin(a)) for a in turns])
        elif kind == "triangle":
            self.fill(colour, [(x, y - r), (x + r, y + r), (x - r, y + r)])
        else:
            self.fill(colour, [(x, y - r), (x + r, y), (x, y + r), (x - r, y)])

    def rectangle(self, colour: str, left: float, top: float, right: float, bottom: float) -> None:
        self.fill(colour, [(left, top), (right, top), (right, bottom), (left, bottom)])

    def line(self, start: Point, end: Point) -> None:
        """A black line of about 3 pixels."""
        self.stroke("black", "medium", [start, end, (start[0] + 0.8, start[1] + 0.8), (end[0] + 0.8, end[1] + 0.8)])

    def digit(self, value: int, left: float, top: float) -> None:
        self.stroke("black", "thin", [(left + x, top + y) for x, y in DIGITS[value]])


def _towards(point: Point, centre: Point, by: float) -> Point:
    distance = math.dist(point, centre)
    return tuple(p + (c - p) * min(1.0, by / distance) for p, c in zip(point, centre, strict=True))  # type: ignore[return-value]


def _cut(corners: list[Point], y: float) -> tuple[Point, Point]:
    """Where a horizontal line enters and leaves a convex outline."""
    crossings = []
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if min(y1, y2) <= y <= max(y1, y2):
            crossings += [x1, x2] if y1 == y2 else [x1 + (x2 - x1) * (y - y1) / (y2 - y1)]
    return (min(crossings), y), (max(crossings), y)


# ---- drawings


def shapes(*placed: tuple[str, str, int, int]) -> Callable[[Hand], None]:
    """Shapes (colour, kind) on a 3x3 grid (column, row)."""

    def draw(hand: Hand) -> None:
        for colour, kind, column, row in placed:
            hand.shape(colour, kind, (11 + 21 * column, 11 + 21 * row))

    return draw


def extend(start: Point, end: Point, *dots: tuple[str, float, float]) -> Callable[[Hand], None]:
    def draw(hand: Hand) -> None:
        for colour, x, y in dots:
            hand.shape(colour, "circle", (x, y), 14)
        hand.line(start, end)

    return draw


def graph(hand: Hand) -> None:
    nodes = {"red": (8, 8), "green": (32, 8), "blue": (32, 32), "yellow": (32, 56), "orange": (56, 32)}
    for one, other in (("red", "green"), ("green", "blue"), ("blue", "yellow"), ("blue", "orange")):
        hand.line(nodes[one], nodes[other])
    for colour, centre in nodes.items():
        hand.shape(colour, "circle", centre, 14)


def pattern(hand: Hand) -> None:
    for k, colour in enumerate(("green", "orange", "red", "blue")):
        left, top = 9 + 24 * (k % 2), 9 + 24 * (k // 2)
        hand.rectangle(colour, left, top, left + 22, top + 22)


def board(hand: Hand) -> None:
    rows = ("red blue green yellow", "orange green red blue", "blue yellow orange green", "green red blue orange")
    for row, colours in enumerate(rows):
        for column, colour in enumerate(colours.split()):
            hand.rectangle(colour, 16 * column + 1, 16 * row + 1, 16 * column + 15, 16 * row + 15)
    hand.shape("black", "circle", (24, 40), 12)


def bars(hand: Hand) -> None:
    for value in range(1, 7):
        hand.digit(value, 2, 58 - 8 * value)
    for colour, column, value in (("blue", 3, 2), ("red", 5, 5), ("green", 7, 3)):
        hand.rectangle(colour, 8 * column + 1, 60 - 8 * value, 8 * column + 7, 60)
    hand.line((8.5, 4), (8.5, 62))
    hand.line((8.5, 60.5), (62, 60.5))


@dataclass(frozen=True)
class Sketch:
    name: str
    family: str
    question: str
    answer: str
    draw: Callable[[Hand], None]


SKETCHES = (
    Sketch(
        "find-square",
        "find",
        "Find the square. What is its colour?",
        "blue",
        shapes(("red", "circle", 0, 0), ("blue", "square", 2, 1), ("green", "triangle", 0, 2)),
    ),
    Sketch(
        "find-circle",
        "find",
        "What colour is the circle?",
        "orange",
        shapes(
            ("green", "square", 0, 0), ("orange", "circle", 1, 1), ("red", "cross", 2, 0), ("blue", "triangle", 2, 2)
        ),
    ),
    Sketch(
        "find-green",
        "find",
        "What is the shape of the green shape?",
        "triangle",
        shapes(("red", "circle", 2, 0), ("green", "triangle", 0, 1), ("blue", "square", 2, 2)),
    ),
    Sketch(
        "count-red",
        "count",
        "Count the red things.",
        "3",
        shapes(
            ("red", "circle", 0, 0),
            ("red", "square", 2, 0),
            ("blue", "circle", 1, 1),
            ("red", "triangle", 0, 2),
            ("green", "square", 2, 2),
        ),
    ),
    Sketch(
        "count-circles",
        "count",
        "How many circles do you see?",
        "2",
        shapes(
            ("yellow", "circle", 0, 0), ("blue", "diamond", 2, 0), ("red", "square", 0, 2), ("green", "circle", 2, 2)
        ),
    ),
    Sketch(
        "relation",
        "relation",
        "Look right of the blue square. What shape is there?",
        "triangle",
        shapes(
            ("red", "circle", 0, 0),
            ("green", "diamond", 2, 0),
            ("blue", "square", 0, 1),
            ("yellow", "triangle", 1, 1),
            ("orange", "circle", 1, 2),
        ),
    ),
    Sketch(
        "extend-up",
        "extend",
        "Which colour does the black line hit when it goes on?",
        "blue",
        extend((22, 56), (28, 40), ("red", 8, 8), ("blue", 40, 8), ("yellow", 56, 8)),
    ),
    Sketch(
        "extend-right",
        "extend",
        "To which dot does the black line point?",
        "red",
        extend((8, 48), (24, 40), ("green", 56, 8), ("red", 56, 24), ("orange", 56, 56)),
    ),
    Sketch("path", "path", "How many steps is it from red to yellow along the lines?", "3", graph),
    Sketch(
        "rotate",
        "rotate",
        "Do a quarter turn left and a flip sideways. Which colour is upper left then?",
        "blue",
        pattern,
    ),
    Sketch("walker", "walker", "The black dot walks up and right. What colour is it on then?", "red", board),
    Sketch("bars", "bar", "How high is the red bar?", "5", bars),
)


# ---- drawing and asking


def draw(url: str, names: list[str]) -> None:
    """Draw these sketches (default: all) in the studio at `url` and store the uploaded files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with launched() as browser:
        window = Studio(browser, url)
        page = window.page()
        for seed, sketch in enumerate(SKETCHES):
            if names and sketch.name not in names:
                continue
            page.click(".or-source:has-text('sketch')")
            page.wait_for_selector(".or-sketch")
            sketch.draw(Hand(page, seed))
            with page.expect_response(lambda r: r.url.endswith("/v1/images") and r.request.method == "POST") as stored:
                page.click("text=use this sketch")
            picture = httpx.get(url + stored.value.json()["url"])
            (FOLDER / f"{sketch.name}.png").write_bytes(picture.raise_for_status().content)
            page.wait_for_selector("dialog", state="detached")
            sys.stderr.write(f"{sketch.name}\n")
        window.check()
    rows = [{"file": f"{s.name}.png", "family": s.family, "question": s.question, "answer": s.answer} for s in SKETCHES]
    LIST.write_text(json.dumps(rows, indent=2) + "\n")


def ask_all(client: Client) -> list[dict[str, Any]]:
    """The model's greedy answers; each row with `said`, `right` and the trace."""
    rows: list[dict[str, Any]] = json.loads(LIST.read_text())
    for row in rows:
        image = client.upload_image((FOLDER / row["file"]).read_bytes())
        row["trace"] = client.create_trace(row["question"], [image["image_id"]], sampling={"temperature": 0.0})
    for row in rows:
        for _ in client.events(row["trace"]["id"]):
            pass
        row["trace"] = client.trace(row["trace"]["id"])
        row["said"] = row["trace"]["answer"]
        row["right"] = (row["said"] or "").lower().removesuffix(".") == row["answer"]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.sketches", description="Ask about the kept sketches.")
    parser.add_argument("--draw", nargs="*", metavar="NAME", help="draw these (or all) anew first; needs chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = new_server(Path(folder))
        try:
            server.start()
            if arguments.draw is not None:
                draw(server.url, arguments.draw)
            with server.client() as client:
                rows = ask_all(client)
        finally:
            server.kill()
    for row in rows:
        verdict = "right" if row["right"] else "wrong"
        sys.stdout.write(f"{verdict}  {row['question']}  {row['answer']}; said {row['said']}\n")
    sys.stdout.write(f"{sum(row['right'] for row in rows)} of {len(rows)} sketches answered right\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
