"""The studio in a real browser on a real server.

Uses the shipped checkpoint if present, else the scripted engine. Every test fails on any console error and on any
request that leaves this machine. `pytest tests/e2e/pages/test_studio.py`
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.e2e.browser import Open, becomes, click_to_first_text, picture_file, status
from tests.fake_server import LONG

# A step may be shorter than the interval between two checks: its number shows that it happened.
RESTS_AGAIN = """(seen) => {
  const { status, seq } = document.querySelector('.or-viewer').dataset;
  return Number(seq) > seen && ['paused', 'completed'].includes(status);
}"""
# The current chip (0 = the question) and the number of steps.
PLACE = """() => [[...document.querySelectorAll('.or-chip')].findIndex((one) => one.ariaCurrent === 'step'),
  document.querySelectorAll('.or-step').length]"""
FOCUSED = "() => document.activeElement.className"
QUESTION = "() => document.querySelector('#or-question textarea').value"


def words_of(page: Any) -> list[str]:
    return [str(text) for text in page.locator(".or-step-text").all_inner_texts()]


def test_task_runs_in_steps_and_survives_a_reload(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    assert page.input_value("#or-question textarea")  # an example is already selected
    page.click("#or-step")
    status(page, "paused")
    assert re.search(r"\?trace=\w+", page.url)
    first = words_of(page)
    assert len(first) == 1
    assert first[0]

    page.reload()
    assert status(page, "paused") == "paused"
    assert words_of(page) == first
    page.wait_for_selector("html[data-studio=ready]", state="attached")
    assert page.input_value("#or-question textarea")

    for _ in range(12):
        seen = int(page.get_attribute(".or-viewer", "data-seq"))
        page.click("#or-continue")
        page.wait_for_function(RESTS_AGAIN, arg=seen)
        if status(page, "paused", "completed") == "completed":
            break
    page.wait_for_selector(".or-answer-text:not(:empty)")
    page.wait_for_selector(".or-verdict:not(:empty)")
    assert words_of(page)[0] == first[0]
    page.wait_for_selector("#or-reason:visible")

    page.click("text=reference trace")
    page.wait_for_selector("dialog .or-reference-row img")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")


def test_click_shows_the_models_first_words(
    studio: Open, studio_url: str, record_property: Callable[[str, object], None]
) -> None:
    """The latency is reported (`--junitxml`) and measured by `tests/benchmarks/serving.py`."""
    page = studio(studio_url).page()
    took, text = click_to_first_text(page)
    record_property("click_to_first_text_ms", took)
    status(page, "completed")
    whole = [*words_of(page), page.inner_text(".or-answer-text")][0]
    assert whole.startswith(text.strip())


def test_sixth_tab_on_one_trace_is_usable(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    first = window.page()
    first.click("#or-step")
    status(first, "paused")
    path = first.url.removeprefix(studio_url)
    tabs = [first, *(window.page(path) for _ in range(5))]
    for tab in tabs:
        status(tab, "paused")
    sixth = tabs[5]
    sixth.click("#or-finish")
    status(sixth, "completed")
    sixth.click(".or-chip >> nth=0")
    sixth.wait_for_selector("li:first-child > .or-chip[aria-current=step]")
    for tab in tabs:
        status(tab, "completed")
        assert words_of(tab) == words_of(sixth)


def test_reload_resumes_the_running_trace(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.fill("#or-question textarea", f"Where is the star, {LONG}?")
    page.click("#or-reason")
    page.wait_for_selector(".or-chip[data-skill]")
    seen = words_of(page)[0]
    page.reload()
    assert status(page, "running", "completed") == "running"
    page.wait_for_selector(f".or-step-text:text-is({seen!r})")
    page.click("#or-pause")
    status(page, "paused")
    page.click("#or-stop")
    status(page, "cancelled")
    page.wait_for_selector(".or-trouble >> text=press Reason")
    page.wait_for_selector("#or-reason:visible")


def test_keys_work_as_documented(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.fill("#or-question textarea", f"Where is the star, {LONG}?")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".or-step >> nth=1")
    becomes(page, FOCUSED, "or-viewer")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".or-live[aria-pressed=false]")
    there, steps = page.evaluate(PLACE)
    assert 1 <= there < steps
    page.wait_for_selector(f".or-step >> nth={steps}")  # the trace continued in the background
    assert page.evaluate(PLACE)[0] == there
    page.keyboard.press("End")
    page.wait_for_selector(".or-live[aria-pressed=true]")
    assert page.evaluate(PLACE)[0] > there
    page.keyboard.press("?")
    page.wait_for_selector("dialog kbd >> nth=0")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    becomes(page, FOCUSED, "or-viewer")
    page.keyboard.press("Shift+Escape")
    status(page, "cancelled")


def test_own_image_is_shown_with_model_view_and_note(studio: Open, studio_url: str, tmp_path: Path) -> None:
    window = studio(studio_url)
    page = window.page()
    page.set_input_files("input[type=file]", picture_file(tmp_path))
    page.wait_for_selector(".or-fits:visible")
    page.wait_for_selector("text=/the model sees · \\d+²/")
    page.click("text=pad to a square")
    page.wait_for_function("document.querySelector('.or-seen img').src.includes('fit=pad')")
    becomes(page, QUESTION, "")  # the example's question was about another image
    page.click("#or-reason")
    page.wait_for_selector("text=Write a question first")

    window.expected = ["415"]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no picture")
    page.set_input_files("input[type=file]", broken)
    page.wait_for_selector(".or-part-well .or-error:visible")


def test_unknown_trace_links_to_the_gallery(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    window.expected = ["404"]
    page = window.page("/?trace=tr_nothing")
    page.wait_for_selector("text=does not exist on this server")
    assert page.get_attribute(".or-notice a >> nth=0", "href") == "/gallery"
    page.wait_for_selector("#or-reason:visible")


def test_outage_is_reported_and_keeps_the_question(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    window.expected = ["ERR_FAILED"]
    page = window.page()
    question = page.input_value("#or-question textarea")
    page.route("**/v1/traces", lambda route: route.abort())
    page.click("#or-reason")
    page.wait_for_selector("text=The server is unreachable")
    assert page.input_value("#or-question textarea") == question
    page.wait_for_selector("#or-reason:visible")


def test_gallery_filters_opens_and_deletes(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    page = window.page()
    page.click("#or-reason")
    status(page, "completed")
    page = window.page("/gallery", ready=".or-card[data-trace]")
    page.fill("#or-filter-words input, #or-filter-words textarea", "no such words anywhere")
    page.wait_for_selector("text=No trace matches")
    page.fill("#or-filter-words input, #or-filter-words textarea", "")
    page.wait_for_selector(".or-card[data-trace]")
    newest = page.get_attribute(".or-card[data-trace] >> nth=0", "data-trace")
    page.click(".or-card[data-trace] .or-card-open >> nth=0")
    page.wait_for_selector("dialog .or-viewer[data-status=completed]")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    page.click(".or-delete >> nth=0")
    page.click("text=delete?")
    page.wait_for_selector(f".or-card[data-trace={newest}]", state="detached")
    window.expected = ["404"]
    page = window.page(f"/?trace={newest}")
    page.wait_for_selector("text=does not exist on this server")


def test_about_shows_version_checkpoint_and_limits(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page("/about", ready=".or-about-section >> nth=2")
    text = page.inner_text(".or-about")
    assert "version" in text
    assert "MIT" in text
    assert "tokens" in text
