"""axe-core finds nothing on any page in any state, light and dark, with all rules except those of level AAA."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.axe import violations
from tests.e2e.browser import Open, becomes
from tests.e2e.states import every_state

pytestmark = pytest.mark.timeout(900)  # some forty states on a possibly very busy machine


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing(studio: Open, slow_url: str, recipe: str, tmp_path: Path, scheme: str, width: int) -> None:
    window = studio(slow_url, color_scheme=scheme)
    found = {}
    for name, page in every_state(window, tmp_path, recipe):
        page.set_viewport_size({"width": width, "height": 2400})  # no text under the bottom bar
        becomes(page, "() => document.body.classList.contains('dark')", scheme == "dark")
        found[name] = violations(page)
        page.set_viewport_size({"width": 1280, "height": 800})
    assert {name: reported for name, reported in found.items() if reported} == {}


@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 1366)])
def test_axe_finds_nothing_on_the_tour(studio: Open, slow_url: str, scheme: str, width: int) -> None:
    page = studio(slow_url, color_scheme=scheme, tour=True).page()
    page.set_viewport_size({"width": width, "height": 2400})  # no text under the bottom bar
    page.wait_for_selector(".or-tour")
    assert violations(page) == []


def test_axe_rules_include_experimental_ones(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page("/about", ready=".or-about-section")
    page.evaluate("document.querySelector('.or-theme').append('other words')")
    assert any("label-content-name-mismatch" in one for one in violations(page))
