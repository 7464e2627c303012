"""A hand that draws on the image of a step under edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Point = tuple[float, float]  # in shares of the image


def edit(page: Any, step: int) -> None:
    """Opens a step and waits for its image."""
    page.click(f"[aria-label='Edit step {step}']")
    page.wait_for_selector(".or-ink[data-ready]")


def draw(page: Any, points: Sequence[Point]) -> None:
    """One line through these points."""
    page.locator(".or-ink").scroll_into_view_if_needed()
    box = page.locator(".or-ink").bounding_box()
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def draw_box(page: Any, left: float, top: float, right: float, bottom: float) -> None:
    """A rectangle."""
    draw(page, [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)])


def scrub(page: Any, left: float, top: float, right: float, bottom: float, lines: int = 5) -> None:
    """Covers a rectangle with strokes to and fro."""
    points: list[Point] = []
    for line in range(lines):
        y = top + (bottom - top) * line / (lines - 1)
        points += [(left, y), (right, y)] if line % 2 == 0 else [(right, y), (left, y)]
    draw(page, points)
