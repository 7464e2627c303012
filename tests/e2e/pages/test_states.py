"""Every page in every state, 320 to 1920 px, light and dark: no overlaps, nothing cut off, nothing for axe-core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.axe import LOOKS, violations
from tests.e2e.browser import Open, Studio, becomes
from tests.e2e.layout import WIDTHS, stands_well
from tests.e2e.states import (
    RUNS,
    State,
    branch_states,
    checkpoint_states,
    curation_states,
    gallery_states,
    studio_states,
    training_states,
    why_states,
)

pytestmark = pytest.mark.timeout(900)  # many states and widths on a possibly very busy machine


def hold_in_every_state(states: Iterator[State]) -> None:
    """Check the layout of each state, then with axe-core all of it light on a desk and its looks dark on a phone."""
    found = {}
    for name, page in states:
        stands_well(page)
        for scheme, width, rules in (("dark", 390, LOOKS), ("light", 1280, None)):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 2400})  # no text under the bottom bar
            becomes(page, "() => document.body.classList.contains('dark')", scheme == "dark")
            found[f"{name}, {scheme}"] = violations(page, rules)
        page.set_viewport_size({"width": 1280, "height": 800})
    assert {name: reported for name, reported in found.items() if reported} == {}


def test_studio(studio: Open, slow_url: str, tmp_path: Path) -> None:
    hold_in_every_state(studio_states(studio(slow_url), tmp_path))


def test_branches(studio: Open, slow_url: str) -> None:
    hold_in_every_state(branch_states(studio(slow_url)))


def test_curation(studio: Open, slow_url: str) -> None:
    hold_in_every_state(curation_states(studio(slow_url)))


def test_why(studio: Open, slow_url: str) -> None:
    hold_in_every_state(why_states(studio(slow_url)))


def test_gallery_and_about(studio: Open, slow_url: str) -> None:
    def states(window: Studio) -> Iterator[State]:
        yield from gallery_states(window)
        yield "about", window.page("/about", ready=".or-about-section >> nth=2")

    hold_in_every_state(states(studio(slow_url)))


def test_training_and_runs(studio: Open, slow_url: str, recipe: str) -> None:
    def states(window: Studio) -> Iterator[State]:
        yield from training_states(window, recipe)
        yield "runs", window.page(f"/runs?runs={recipe}", ready=RUNS)

    hold_in_every_state(states(studio(slow_url)))


def test_checkpoints(studio: Open, slow_url: str) -> None:
    hold_in_every_state(checkpoint_states(studio(slow_url)))


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1366)])
def test_tour(studio: Open, slow_url: str, scheme: str, width: int) -> None:
    page = studio(slow_url, color_scheme=scheme, tour=True).page()
    page.set_viewport_size({"width": width, "height": 2400})  # no text under the bottom bar
    page.wait_for_selector(".or-tour")
    assert violations(page) == []


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


def test_axe_rules_include_experimental_ones(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page("/about", ready=".or-about-section")
    page.evaluate("document.querySelector('.or-theme').append('other words')")
    assert any("label-content-name-mismatch" in one for one in violations(page))


def test_axe_sees_both_colour_schemes(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page("/about", ready=".or-about-section")
    for scheme, colour in (("dark", "#333"), ("light", "#ddd")):
        page.emulate_media(color_scheme=scheme)
        page.evaluate("(colour) => { document.querySelector('.or-about h2').style.color = colour }", colour)
        assert any(one.startswith("color-contrast") for one in violations(page))
        page.evaluate("() => document.querySelector('.or-about h2').removeAttribute('style')")
        assert violations(page) == []
