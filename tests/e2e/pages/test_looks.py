"""Touch targets, colour schemes, long words and a layout that does not jump; `test_states` checks every state."""

from __future__ import annotations

from typing import Any

from tests.e2e.browser import Open, becomes, fits, status
from tests.e2e.layout import WIDTHS

SMALL_TARGETS = """() => [...document.querySelectorAll('button, select, summary, input[type=range], nav a')]
  .filter((e) => e.checkVisibility({ visibilityProperty: true }) && e.getClientRects().length)
  .map((e) => [e, e.getBoundingClientRect()])
  .filter(([e, box]) => box.height < 43.5 || box.width < 43.5)
  .map(([e, box]) => [e.tagName, e.className, e.textContent.trim().slice(0, 20), box.width, box.height])"""

DARK = "() => document.body.classList.contains('dark')"
AT_THE_THUMB = """() => {
  const { y, height } = document.querySelector('#or-continue').getBoundingClientRect();
  return y > innerHeight - 144 && y < innerHeight - height + 1;
}"""


def test_system_scheme_applies_until_one_is_chosen(studio: Open, studio_url: str) -> None:
    window = studio(studio_url, color_scheme="dark")
    page = window.page()
    becomes(page, DARK, True)
    page.click(".or-theme")
    becomes(page, DARK, False)
    page = window.page("/about", ready=".or-about-section")
    becomes(page, DARK, False)


def test_long_word_stays_on_the_screen(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    page.fill("#or-question textarea", "Averylongwordwithoutanyspaces" * 12)
    page.click("#or-step")
    status(page, "paused", "completed", "failed")
    for width in WIDTHS:
        fits(page, width)


def test_phone_has_touch_targets_and_bottom_buttons(studio: Open, studio_url: str) -> None:
    phone: dict[str, Any] = {"has_touch": True, "is_mobile": True}
    page = studio(studio_url, **phone).page()
    page.set_viewport_size({"width": 390, "height": 844})
    becomes(page, SMALL_TARGETS, [])
    page.tap("#or-step")
    status(page, "paused")
    becomes(page, SMALL_TARGETS, [])
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    becomes(page, AT_THE_THUMB, True)


def test_layout_is_stable_during_a_stream(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.wait_for_selector(".or-checkpoint select option", state="attached")
    page.wait_for_selector(".or-budget:not(:empty)")
    tops = """() => ['.or-bar', '.or-timeline', '.or-stage', '.or-picture-bar', '.or-answer', '#or-sampling']
      .map((one) => document.querySelector(one).getBoundingClientRect().top)"""
    before = page.evaluate(tops)
    page.click("#or-reason")
    for step in range(3):
        page.wait_for_selector(f".or-step >> nth={step}")
        assert page.evaluate(tops) == before
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    assert page.evaluate(tops) == before
