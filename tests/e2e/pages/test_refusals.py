"""Rejected requests and failed traces: one message with a remedy, no lost input."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.browser import Open, asked_in_address, becomes, status


def texts(page: Any) -> list[str]:
    """All messages below the question."""
    return [str(text) for text in page.locator(".or-part-line p:visible").all_inner_texts() if text]


def test_long_question_gets_one_message(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.fill("#or-question textarea", "word " * 420)
    page.wait_for_selector(".or-budget[data-over]")
    page.click("#or-reason")
    becomes(page, "() => document.activeElement.tagName", "TEXTAREA")
    (said,) = texts(page)
    assert "shorten it" in said
    assert " 0 tokens" not in said
    page.fill("#or-question textarea", "Where is the star?")
    page.wait_for_selector(".or-budget:not([data-over]) >> text=room for")


def test_refused_field_is_named_as_on_the_page(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    window.expected = ["422"]
    page = window.page()
    page.click("#or-sampling button")
    for field, value, said in (
        ("#or-temperature", "9", "Temperature: "),
        ("#or-temperature", "hot", "Temperature: “hot” is not a number."),
        ("#or-max-new-tokens", "-1", "Max tokens: "),
    ):
        page.fill(f"{field} input", value)
        page.click("#or-reason")
        page.wait_for_selector(f".or-part-line .or-error:has-text('{said}')")
        assert "body" not in page.inner_text(".or-part-line .or-error")
        page.fill(f"{field} input", "")


def test_full_queue_keeps_the_question(studio: Open, slow_url: str) -> None:
    window = studio(slow_url)
    window.expected = ["429"]
    page = window.page()
    question = page.input_value("#or-question textarea")
    problem = {"status": 429, "code": "queue_full", "detail": "64 traces are waiting; try again soon"}

    def full(route: Any) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        headers = {"Retry-After": "5", "Content-Type": "application/problem+json"}
        route.fulfill(status=429, headers=headers, body=json.dumps(problem))

    page.route("**/v1/traces", full)
    page.click("#or-reason")
    page.wait_for_selector("text=64 traces are waiting. Try again in 5 s.")
    assert page.input_value("#or-question textarea") == question
    page.wait_for_selector("#or-reason:visible")
    page.unroute("**/v1/traces")
    page.click("#or-step")
    status(page, "running", "paused")
    assert not page.is_visible("text=Try again in 5 s.")


def test_failed_trace_keeps_its_steps(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.click("#or-step")
    status(page, "paused")
    trace = asked_in_address(page, "trace")

    def failed(route: Any) -> None:
        row = route.fetch().json()
        row |= {"status": "failed", "error": {"code": "engine_died", "detail": "The engine's process ended."}}
        route.fulfill(json=row)

    page.route(f"**/v1/traces/{trace}", failed)
    page.reload()
    assert status(page, "failed") == "failed"
    said = page.inner_text(".or-trouble")
    assert "The engine's process ended." in said
    assert "press Reason" in said
    assert page.locator(".or-step").count() == 1
    page.wait_for_selector("html[data-studio=ready]", state="attached")
    page.wait_for_selector("#or-reason:visible")
