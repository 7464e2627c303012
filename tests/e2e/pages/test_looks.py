"""Contrast, touch targets and page width, for every width and both colour schemes."""

from __future__ import annotations

from typing import Any

from tests.e2e.browser import Open, becomes, fits, status

# Contrast of every visible element with own text against the first opaque background below it (WCAG 2.2).
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.95) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll('.gradio-container *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest(':disabled, .or-sr')) continue;
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(style.color)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push([element.tagName, element.className, element.textContent.trim().slice(0, 30), ratio]);
  }
  return low;
}"""

SMALL_TARGETS = """() => [...document.querySelectorAll('button, select, summary, input[type=range], nav a')]
  .filter((e) => e.checkVisibility({ visibilityProperty: true }) && e.getClientRects().length)
  .map((e) => [e, e.getBoundingClientRect()])
  .filter(([e, box]) => box.height < 43.5 || box.width < 43.5)
  .map(([e, box]) => [e.tagName, e.className, e.textContent.trim().slice(0, 20), box.width, box.height])"""

WIDTHS = (390, 640, 900, 1280, 1600)
DARK = "() => document.body.classList.contains('dark')"
AT_THE_THUMB = """() => {
  const { y, height } = document.querySelector('#or-continue').getBoundingClientRect();
  return y > innerHeight - 144 && y < innerHeight - height + 1;
}"""


def readable(page: Any) -> None:
    """Checks the contrast in both schemes; the page is light before and after."""
    for dark in (False, True):
        becomes(page, DARK, dark)
        becomes(page, CONTRAST, [])
        page.click(".or-theme")


def test_text_has_contrast_in_both_schemes(studio: Open, studio_url: str) -> None:
    window = studio(studio_url, color_scheme="light")
    page = window.page()
    readable(page)
    page.click("#or-step")
    status(page, "paused")
    readable(page)
    page.click("#or-finish")
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    readable(page)
    readable(window.page("/gallery", ready=".or-card[data-trace]"))


def test_system_scheme_applies_until_one_is_chosen(studio: Open, studio_url: str) -> None:
    window = studio(studio_url, color_scheme="dark")
    page = window.page()
    becomes(page, DARK, True)
    page.click(".or-theme")
    becomes(page, DARK, False)
    page = window.page("/about", ready=".or-about-section")
    becomes(page, DARK, False)


def test_nothing_is_wider_than_the_screen(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    page = window.page()
    for width in WIDTHS:
        fits(page, width)
    page.fill("#or-question textarea", "Averylongwordwithoutanyspaces" * 12)
    page.click("#or-step")
    status(page, "paused", "completed", "failed")
    for width in WIDTHS:
        fits(page, width)
    page = window.page("/gallery", ready=".or-card[data-trace]")
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
