"""Titles, history and addresses of the pages, on the real engine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.browser import READY, Open, asked_in_address, becomes, status

CARD = ".or-card[data-trace]"
TITLE = "() => document.title"
PAGES = {"/": ""} | {f"/{name.lower()}": name for name in ("Gallery", "Training", "Runs", "Checkpoints", "About")}
BOX = "#or-question textarea"
QUESTION = f"() => document.querySelector('{BOX}').value"
AT_THE_TOP = "() => Math.abs(document.querySelector('.or-viewer').getBoundingClientRect().top) < 40"
FILTERS = "() => [...document.querySelectorAll('.or-filters [name]')].map((one) => one.value)"


def ask(page: Any, example: int) -> tuple[str, str]:
    """Asks an example; returns the id of its trace and the question."""
    page.click(f".or-example >> nth={example}")
    before = asked_in_address(page, "trace")
    page.click("#or-reason")
    page.wait_for_function("(before) => !location.search.includes(before || 'none') && location.search", arg=before)
    status(page, "completed")
    return asked_in_address(page, "trace"), str(page.input_value(BOX))


@pytest.mark.parametrize("path", PAGES)
def test_page_has_a_title_of_its_own(studio: Open, studio_url: str, path: str) -> None:
    page = studio(studio_url).page(path, ready=".or-theme svg")
    title = " · ".join(filter(None, (PAGES[path], "Omni-R1 Studio")))
    becomes(page, TITLE, title)
    page.wait_for_timeout(500)  # Gradio sets its own
    assert page.title() == title


def test_tab_may_go_from_one_studio_to_another(studio: Open, slow_url: str, studio_url: str) -> None:
    page = studio(slow_url).page()
    page.goto(studio_url)
    page.wait_for_selector("html[data-studio=ready]", state="attached")
    page.wait_for_selector(".or-theme svg")


def test_back_and_forward_go_through_the_traces(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    first, question = ask(page, 0)
    second, other = ask(page, 1)
    assert question != other
    becomes(page, TITLE, f"{other} · Omni-R1 Studio")

    page.go_back()
    becomes(page, QUESTION, question)
    assert asked_in_address(page, "trace") == first
    status(page, "completed")
    becomes(page, "() => document.querySelector('.or-question').textContent", question)
    page.wait_for_selector(".or-example[aria-pressed=true] >> nth=0")

    page.go_back()
    page.wait_for_selector(".or-viewer[data-status=idle]")
    assert asked_in_address(page, "trace") == ""
    becomes(page, TITLE, "Omni-R1 Studio")
    page.wait_for_selector("#or-reason:visible")

    page.go_forward()
    page.go_forward()
    becomes(page, QUESTION, other)
    assert asked_in_address(page, "trace") == second
    page.reload()
    status(page, "completed")
    becomes(page, QUESTION, other)


def test_running_trace_is_left_and_found_again(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.click("#or-reason")
    status(page, "running")
    becomes(page, "() => document.title.startsWith('● ')", True)
    page.go_back()
    page.wait_for_selector(".or-viewer[data-status=idle]")
    becomes(page, TITLE, "Omni-R1 Studio")
    page.go_forward()
    status(page, "completed")


def test_filters_stand_in_the_address(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    page = window.page()
    ask(page, 0)
    page = window.page("/gallery", ready=CARD)
    page.wait_for_selector(".or-more button:enabled", state="attached")  # where tiles are few, further pages have come
    every = page.locator(CARD).count()
    page.select_option("[name=slice]", "operational")
    becomes(page, "() => location.search", "?slice=operational")
    page.locator("[name=q]").press_sequentially("walker")
    becomes(page, "() => location.search", "?q=walker&slice=operational")
    page.reload()
    page.wait_for_selector(READY["/gallery"])
    becomes(page, FILTERS, ["walker", "operational", "", "", "", ""])

    page.go_back()  # the typed words are one entry
    becomes(page, FILTERS, ["", "operational", "", "", "", ""])
    page.go_back()
    becomes(page, FILTERS, ["", "", "", "", "", ""])
    becomes(page, f"() => document.querySelectorAll('{CARD}').length", every)
    page.go_forward()
    becomes(page, FILTERS, ["", "operational", "", "", "", ""])

    page = window.page("/gallery?verdict=right&checkpoint=long-gone&slice=magic", ready=".or-gallery-word:not(:empty)")
    becomes(page, FILTERS, ["", "", "right", "", "", "long-gone"])
    page.wait_for_selector("text=No trace matches these filters")


def test_shared_link_opens_at_the_trace_on_a_phone(studio: Open, studio_url: str) -> None:
    trace, _ = ask(studio(studio_url).page(), 2)
    phone = studio(studio_url, has_touch=True, is_mobile=True)
    page = phone.context.new_page()
    phone.watch(page)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{studio_url}/?trace={trace}")
    page.wait_for_selector("html[data-studio=ready]", state="attached")
    status(page, "completed")
    becomes(page, AT_THE_TOP, True)
    page.wait_for_timeout(500)  # images above it arrive
    assert page.evaluate(AT_THE_TOP)
    page.close()
    page = phone.page()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("scrollY") == 0
