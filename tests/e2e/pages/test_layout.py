"""No overlaps and nothing cut off: every page, every state, from 320 to 1920 px."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.browser import Open
from tests.e2e.layout import WIDTHS, stands_well
from tests.e2e.states import (
    RUNS,
    branch_states,
    checkpoint_states,
    curation_states,
    gallery_states,
    studio_states,
    training_states,
    why_states,
)

pytestmark = pytest.mark.timeout(900)  # many widths on a possibly very busy machine


def test_studio_layout_at_every_width(studio: Open, slow_url: str, tmp_path: Path) -> None:
    window = studio(slow_url)
    for _, page in studio_states(window, tmp_path):
        stands_well(page)


def test_branches_layout_at_every_width(studio: Open, slow_url: str) -> None:
    for _, page in branch_states(studio(slow_url)):
        stands_well(page)


def test_curation_layout_at_every_width(studio: Open, slow_url: str) -> None:
    for _, page in curation_states(studio(slow_url)):
        stands_well(page)


def test_why_layout_at_every_width(studio: Open, slow_url: str) -> None:
    for _, page in why_states(studio(slow_url)):
        stands_well(page)


def test_gallery_and_about_layout_at_every_width(studio: Open, slow_url: str) -> None:
    window = studio(slow_url)
    for _, page in gallery_states(window):
        stands_well(page)
    stands_well(window.page("/about", ready=".or-about-section >> nth=2"))


def test_training_and_runs_layout_at_every_width(studio: Open, slow_url: str, recipe: str) -> None:
    window = studio(slow_url)
    for _, page in training_states(window, recipe):
        stands_well(page)
    stands_well(window.page(f"/runs?runs={recipe}", ready=RUNS))


def test_checkpoints_layout_at_every_width(studio: Open, slow_url: str) -> None:
    for _, page in checkpoint_states(studio(slow_url)):
        stands_well(page)


def test_overlaps_and_cuts_are_detected(studio: Open, slow_url: str) -> None:
    """The check itself: it reports each of these faults, added to a valid page."""
    page = studio(slow_url).page("/about", ready=".or-about-section >> nth=2")
    for style, word in (
        ("position:absolute;top:0;left:0", "overlap"),
        ("display:block;width:20px;overflow:hidden;white-space:nowrap", "cut"),
    ):
        page.evaluate("(style) => document.querySelector('.or-about h2').setAttribute('style', style)", style)
        with pytest.raises(AssertionError, match=word):
            stands_well(page, WIDTHS[-1:], settled_ms=1000)
