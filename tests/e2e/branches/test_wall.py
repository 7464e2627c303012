"""Several samples of one question: stepper, wall, tally, and the tour of a first visit."""

from __future__ import annotations

from typing import Any

from app.client import Client
from tests.e2e.browser import Open, asked_in_address, becomes, connections, count_connections, status
from tests.fake_server import LONG

MEMBERS = "() => document.querySelectorAll('.or-member').length"
SAMPLES = "() => document.querySelector('.or-samples-field').value"
TALLY = """() => [...document.querySelectorAll('.or-tally-row')].map((row) => [
  row.querySelector('strong').textContent, row.querySelector('.or-num').textContent,
  row.querySelectorAll('.or-tally-bar').length])"""
SHARES = """() => [...document.querySelectorAll('.or-tally-row .or-num')]
  .reduce((sum, one) => sum + Number(one.textContent.split('·')[1]), 0)"""


def ask(page: Any, samples: int) -> None:
    """Asks the shown question several times, by keyboard."""
    page.focus(".or-samples-field")
    page.keyboard.press("Home")
    for _ in range(samples - 1):
        page.keyboard.press("ArrowUp")
    page.click("#or-reason")
    page.wait_for_selector(f".or-member >> nth={samples - 1}")


def test_wall_shows_all_samples_their_tally_and_each_trace(studio: Open, studio_url: str) -> None:
    window = studio(studio_url, alone=True)
    count_connections(window)
    page = window.page()
    ask(page, 4)
    assert connections(page) <= 1
    page.wait_for_selector(".or-wall[data-status=completed]")
    becomes(page, MEMBERS, 4)
    becomes(page, SHARES, 4)
    assert page.locator(".or-member .or-thumb img").count() >= 4
    group = asked_in_address(page, "group")
    with Client(studio_url) as client:
        rows = client.fetch(f"/v1/groups/{group}")
    assert b'"completed"' in rows

    page.focus(".or-member-open >> nth=1")
    page.keyboard.press("Enter")
    status(page, "completed")
    assert asked_in_address(page, "trace")
    page.click("text=all samples")
    page.wait_for_selector(".or-wall:visible")
    assert asked_in_address(page, "group") == group

    page.click(".or-member-choose >> nth=0")
    page.click(".or-member-choose >> nth=2")
    page.click("text=Compare the two")
    page.wait_for_selector(".or-compare-word:not(:empty)")
    page.go_back()
    page.wait_for_selector(".or-wall:visible")

    page.reload()
    page.wait_for_selector(".or-wall[data-status=completed]")
    becomes(page, MEMBERS, 4)
    becomes(page, SHARES, 4)
    page.wait_for_selector("#or-reason:visible")


def test_stop_cancels_every_sample(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.fill("#or-question textarea", f"Where is the star, {LONG}?")
    ask(page, 3)
    page.wait_for_selector(".or-member .or-thumb >> nth=2")
    page.wait_for_selector("#or-pause", state="hidden")
    page.click("#or-stop")
    page.wait_for_selector(".or-wall[data-status=completed]")
    assert page.locator(".or-member[data-status=cancelled]").count() == 3
    page.wait_for_selector("#or-reason:visible")
    becomes(page, TALLY, [["stopped", "3", 0]])
    page.wait_for_selector(".or-wall-head:text-is('3 samples · all stopped')")
    page.reload()
    page.wait_for_selector(".or-wall[data-status=completed]")
    becomes(page, TALLY, [["stopped", "3", 0]])


def test_greedy_samples_are_said_to_be_identical(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    page.click("#or-sampling button")
    for temperature, visible in (("0", True), ("1", False)):
        page.fill("#or-temperature input", temperature)
        before = page.evaluate("location.search")
        ask(page, 2)
        page.wait_for_function("(before) => location.search !== before", arg=before)
        page.wait_for_selector(".or-wall[data-status=completed]")
        assert page.is_visible(".or-wall-hint:has-text('Greedy samples are identical')") == visible
        page.reload()
        page.wait_for_selector("html[data-studio=ready]", state="attached")
        page.wait_for_selector(".or-wall[data-status=completed]")
        assert page.is_visible(".or-wall-hint") == visible
        page.click("#or-sampling button")


def test_step_draws_one_sample_and_says_so(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    assert not page.is_visible(".or-samples-note")
    page.click("[aria-label='More samples']")
    page.wait_for_selector(".or-samples-note:text-is('Reason draws 2 samples; Step draws one.')")
    page.click("#or-step")
    status(page, "paused")
    assert asked_in_address(page, "trace")
    page.click("#or-stop")
    page.click("[aria-label='Fewer samples']")
    page.wait_for_selector(".or-samples-note", state="hidden")


def test_link_to_samples_shows_their_question(studio: Open, studio_url: str) -> None:
    with Client(studio_url) as client:
        task = client.task(slice="diagrammatic", seed=1_000_000_007)
        first = client.create_trace(task["question"], [task["image_id"]], task_id=task["task_id"], n=2)
        for _ in client.group_events(first["group_id"]):
            pass
    page = studio(studio_url).page(f"/?group={first['group_id']}")
    page.wait_for_selector(".or-wall[data-status=completed]")
    assert page.input_value("#or-question textarea") == task["question"]
    assert str(page.get_attribute(".or-drop img", "src")).endswith(task["image_id"])
    assert page.locator(".or-example[aria-pressed=true], .or-family[aria-pressed=true]").count() == 0
    becomes(page, "() => document.title.slice(0, 20)", task["question"][:20])
    with page.expect_request(lambda request: request.method == "POST" and request.url.endswith("/v1/traces")) as sent:
        page.click("#or-reason")
    assert sent.value.post_data_json["task_id"] == task["task_id"]


def test_stepper_stays_between_one_and_sixteen(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    becomes(page, SAMPLES, "1")
    page.wait_for_selector("[aria-label='Fewer samples']:disabled")
    page.focus(".or-samples-field")
    page.keyboard.press("End")
    becomes(page, SAMPLES, "16")
    page.wait_for_selector("[aria-label='More samples']:disabled")
    page.fill(".or-samples-field", "99")
    page.keyboard.press("Tab")
    becomes(page, SAMPLES, "16")
    page.fill(".or-samples-field", "many")
    page.keyboard.press("Tab")
    becomes(page, SAMPLES, "1")


def test_tour_comes_once(studio: Open, studio_url: str) -> None:
    window = studio(studio_url, tour=True)
    page = window.page()
    page.wait_for_selector(".or-tour:has-text('1 of 3')")
    page.click("text=Next")
    page.click("text=Next")
    page.wait_for_selector(".or-tour:has-text('3 of 3')")
    page.click("text=Done")
    page.wait_for_selector(".or-tour", state="detached")
    page.reload()
    page.wait_for_selector("html[data-studio=ready]", state="attached")
    assert page.locator(".or-tour").count() == 0


def test_skipped_tour_does_not_come_again(studio: Open, studio_url: str) -> None:
    window = studio(studio_url, tour=True)
    page = window.page()
    page.focus(".or-tour button >> nth=0")
    page.keyboard.press("Escape")
    page.wait_for_selector(".or-tour", state="detached")
    page = window.page()
    assert page.locator(".or-tour").count() == 0
