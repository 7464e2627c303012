"""The panel "Why?" of an ended trace: reliance, replaced images, likelihood, attention; in a real browser."""

from __future__ import annotations

import math
from typing import Any

import pytest

from app.client import Client
from tests.e2e.browser import Open, asked_in_address, becomes, connections, count_connections, fits, status
from tests.fake_server import LONG

TASK: dict[str, Any] = {"slice": "natural", "seed": 1_000_000_005}
OPERATIONAL: dict[str, Any] = {"slice": "operational", "seed": 1_000_000_003}
BARS = (
    "() => [...document.querySelectorAll('.or-chip')].map((c) => c.querySelector('.or-chip-bar')?.dataset.length ?? '')"
)
SPACE = "\N{NO-BREAK SPACE}"
STAGE_TOP = "() => document.querySelector('.or-stage').getBoundingClientRect().top + scrollY"
FOCUSED = "() => document.activeElement.textContent.trim()"
ROWS = """() => [...document.querySelectorAll('.or-effects tbody tr')].map((row) => [
  row.dataset.trace, row.querySelector('.or-effect-mark').textContent,
  row.querySelector('.or-effect-answer strong').textContent])"""


def ended_trace(url: str, task: dict[str, Any] = TASK, **sampling: Any) -> str:
    """The id of a completed trace of a task, greedy unless requested otherwise."""
    with Client(url) as client:
        made = client.task(**task)
        asked: Any = {"temperature": 0.0, "seed": 1} | sampling
        trace = client.create_trace(made["question"], [made["image_id"]], task_id=made["task_id"], sampling=asked)
        for _ in client.events(trace["id"]):
            pass
    return str(trace["id"])


@pytest.fixture(scope="module")
def trace(studio_url: str) -> str:
    return ended_trace(studio_url)


def shown(page: Any, *, at: str = ".or-verdict:has-text('reference')") -> None:
    """Waits for the completed trace with everything that may move its parts."""
    status(page, "completed")
    page.wait_for_selector(at)
    page.wait_for_selector(".or-canvas[data-shown] >> nth=1")


def ask_why(page: Any) -> None:
    page.click("text=Why?")
    page.wait_for_selector(".or-reliance li")


def finished(page: Any, rows: int) -> None:
    page.wait_for_selector(f".or-effects[aria-busy=false] tbody tr >> nth={rows - 1}")


def test_bars_show_what_the_answer_relies_on(studio: Open, studio_url: str, trace: str) -> None:
    page = studio(studio_url).page(f"/?trace={trace}")
    shown(page)
    top = page.evaluate(STAGE_TOP)
    ask_why(page)
    with Client(studio_url) as client:
        images = client.reliance(trace)["images"]
    most = max(image["reliance"] for image in images)
    lengths = page.evaluate(BARS)
    assert lengths[-1] == ""  # the answer is no image
    assert [float(length) for length in lengths[:-1]] == pytest.approx(
        [max(0.0, image["reliance"]) / most for image in images], abs=1e-3
    )
    assert page.evaluate(STAGE_TOP) == top
    largest = max(images, key=lambda image: image["reliance"])["step"]
    assert f"relies most on step {largest}" in page.inner_text(".or-why")
    chip = page.locator(".or-chip").nth(largest)
    words = page.inner_text(f"#{chip.get_attribute('aria-describedby')} .or-sr")
    assert f"{most:.2f} nats" in words
    assert words in chip.get_attribute("title")
    page.click(".or-why [aria-label=Close]")
    assert page.locator(".or-chip-bar").count() == 0
    becomes(page, FOCUSED, "Why?")


def test_replacements_fill_the_table_and_mark_changes(studio: Open, studio_url: str, trace: str) -> None:
    window = studio(studio_url, alone=True)
    count_connections(window)
    page = window.page(f"/?trace={trace}")
    shown(page)
    ask_why(page)
    for kind in ("blank", "other", "reference"):
        page.check(f".or-why input[value={kind}]")
    with page.expect_response(lambda response: response.url.endswith("/interventions")) as started:
        page.click("text=Try it")
    assert connections(page) <= 1
    finished(page, 8)
    with Client(studio_url) as client:
        group: Any = client.group(started.value.json()["id"])
    wanted = [
        [one["trace_id"], "changed" if one["changed"] else "same", one["answer_after"] if one["changed"] else ""]
        for one in group["effects"]
    ]
    assert any(mark == "changed" for _, mark, _ in wanted)
    becomes(page, ROWS, wanted)
    changed = sum(mark == "changed" for _, mark, _ in wanted)
    assert page.is_visible(f".or-why >> text={changed} of 8 replacements change the answer.")

    member = wanted[0][0]
    page.click(f".or-effects [data-trace={member}] >> text=open")
    page.wait_for_function("(id) => location.search.includes(id)", arg=member)
    status(page, "completed")
    page.wait_for_selector(".or-why", state="hidden")
    page.go_back()
    page.wait_for_function("(id) => location.search.includes(id)", arg=trace)
    shown(page)
    page.click("text=Why?")
    becomes(page, ROWS, wanted)  # found earlier on this page
    page.click(f".or-effects [data-trace={member}] >> text=compare")
    page.wait_for_selector(".or-compare-word:not(:empty)")
    assert asked_in_address(page, "compare") == f"{trace},{member}"


def test_sampled_trace_gets_the_control(studio: Open, studio_url: str) -> None:
    sampled = ended_trace(studio_url, OPERATIONAL, temperature=0.8)
    page = studio(studio_url).page(f"/?trace={sampled}")
    shown(page, at=".or-verdict:not(:empty)")
    ask_why(page)
    assert page.is_visible("text=This trace was sampled (temperature 0.8)")
    with page.expect_request(lambda request: request.url.endswith("/interventions")) as sent:
        page.click("text=Try it")
    assert sent.value.post_data_json == {"with": ["previous", "none"]}
    page.wait_for_selector(".or-effects[aria-busy=false] tr:has-text('nothing (control)')")
    page.wait_for_selector("text=With nothing replaced")


def test_likelihood_tints_words_and_codes(studio: Open, studio_url: str, trace: str) -> None:
    page = studio(studio_url).page(f"/?trace={trace}")
    shown(page)
    before = page.inner_text(".or-words"), page.inner_text(".or-answer-text")
    ask_why(page)
    page.click(".or-why >> text=likelihood")
    page.wait_for_selector(".or-step-text .or-token")
    assert (page.inner_text(".or-words"), page.inner_text(".or-answer-text")) == before
    with Client(studio_url) as client:
        tokens = client.tokens(trace)
    first = tokens["steps"][0]["tokens"][1:]  # after the mark
    titles = page.eval_on_selector_all(".or-step:first-child .or-token", "(all) => all.map((one) => one.title)")
    for token, title in zip(first, titles, strict=False):
        percent = 100 * math.exp(token["logprob"] or 0.0)
        assert title == (f"over 99{SPACE}%" if percent > 99.5 else f"{round(percent)}{SPACE}%"), token
    page.wait_for_selector(".or-canvas[data-layered] >> nth=0")
    page.click(".or-why-strip button:has-text('step 1')")
    page.wait_for_selector("li:nth-child(2) > .or-chip[aria-current]")
    codes = [code for row in tokens["steps"][0]["image"] for code in row]
    unsure = sum(math.exp(code) < 0.5 for code in codes)
    page.wait_for_selector(f".or-why >> text=Image of step 1: {unsure} of {len(codes)} codes were under 50 %.")
    page.click(".or-why >> text=likelihood")
    page.wait_for_selector(".or-token", state="detached")
    page.wait_for_selector(".or-canvas[data-layered]", state="detached")


def test_layer_lies_exactly_on_the_image(studio: Open, studio_url: str, trace: str) -> None:
    page = studio(studio_url).page(f"/?trace={trace}")
    shown(page)
    ask_why(page)
    page.click(".or-why >> text=attention")
    inside = """() => {
      const sides = ({ left, top, right, bottom }) => [left, top, right, bottom].map(Math.round);
      const box = (e) => sides(e.getBoundingClientRect());
      const layer = [...document.querySelectorAll('.or-layer')].filter((one) => one.checkVisibility());
      return layer.map((one) => [box(one), box(one.parentElement.previousElementSibling)]);
    }"""
    for chip, layers in ((2, 2), (1, 1), (0, 1)):  # side by side after the zoom, else one image
        page.click(f".or-chip >> nth={chip}")
        for width in (1366, 390):
            fits(page, width)
            becomes(page, f"() => ({inside})().length", layers)
            becomes(page, f"() => ({inside})().every(([a, b]) => a.every((x, k) => Math.abs(x - b[k]) <= 1))", True)


def test_attention_has_shares_and_follows_the_step(studio: Open, studio_url: str, trace: str) -> None:
    page = studio(studio_url).page(f"/?trace={trace}")
    shown(page)
    ask_why(page)
    page.click(".or-why >> text=attention")
    page.wait_for_selector(".or-why >> text=Attention is not causation")
    with Client(studio_url) as client:
        answer, step = client.attention(trace), client.attention(trace, 1)
    figures = "() => [...document.querySelectorAll('.or-why-strip .or-num')].map((one) => one.textContent)"
    becomes(page, figures, [f"{round(100 * image['share'])}{SPACE}%" for image in answer])
    page.select_option("[aria-label='Attention of']", "step")
    becomes(page, figures, [f"{round(100 * image['share'])}{SPACE}%" for image in answer])  # the answer is shown
    page.click(".or-chip >> nth=1")
    becomes(page, figures, [f"{round(100 * image['share'])}{SPACE}%" for image in step])
    page.wait_for_selector(".or-why >> text=Attention of step 1:")
    page.click(".or-chip >> nth=0")
    page.wait_for_selector("text=The question does not attend to anything")
    becomes(page, figures, [])


def test_missing_tokens_are_explained_and_replacing_still_works(studio: Open, slow_url: str) -> None:
    window = studio(slow_url)
    window.expected = ["409"]
    page = window.page(f"/?trace={ended_trace(slow_url)}")
    shown(page, at=".or-verdict:not(:empty)")
    page.click("text=Why?")
    page.wait_for_selector(".or-why .or-error:has-text('stored no tokens')")
    page.click(".or-why >> text=likelihood")
    page.wait_for_selector(".or-why-layers .or-error:has-text('stored no tokens')")
    assert not page.is_visible(".or-why-layers >> text=try again")
    page.click("text=Try it")
    finished(page, 3)
    page.wait_for_selector("text=None of the 3 replacements changes the answer.")


def test_errors_are_shown_and_tried_again(studio: Open, studio_url: str, trace: str) -> None:
    window = studio(studio_url)
    window.expected = ["ERR_FAILED", "500"]
    page = window.page(f"/?trace={trace}")
    shown(page)
    problem = {"code": "internal", "detail": "the engine has a fault", "status": 500}
    page.route("**/reliance", lambda route: route.fulfill(status=500, json=problem))
    page.click("text=Why?")
    page.wait_for_selector(".or-why .or-error:has-text('The engine has a fault')")
    page.unroute("**/reliance")
    page.click(".or-why .or-error button:visible")
    page.wait_for_selector(".or-reliance li")
    page.wait_for_selector(".or-why .or-error", state="hidden")

    page.route("**/attention", lambda route: route.abort())
    page.click(".or-why >> text=attention")
    page.wait_for_selector(".or-why .or-error:has-text('unreachable')")
    page.unroute("**/attention")
    page.evaluate("window.dispatchEvent(new Event('online'))")
    page.wait_for_selector(".or-why-strip li")
    page.wait_for_selector(".or-why .or-error", state="hidden")


def test_rows_fill_while_it_runs_and_cancel_stops_it(studio: Open, slow_url: str) -> None:
    window = studio(slow_url)
    window.expected = ["409"]
    page = window.page(f"/?trace={ended_trace(slow_url)}")
    shown(page, at=".or-verdict:not(:empty)")
    page.click("text=Why?")
    page.click("text=Try it")
    page.wait_for_selector(".or-effects[aria-busy=true] tr[data-status=running] >> nth=0")
    page.wait_for_selector(".or-effects[aria-busy=true] tr[data-status=same] >> nth=0")  # the last step's, at first
    page.wait_for_selector("text=of 3 done.")
    page.click(".or-why >> text=Cancel")
    page.wait_for_selector(".or-effects[aria-busy=false] tr[data-status=stopped]:has-text('did not finish')")
    page.wait_for_selector(".or-why >> text=Cancel", state="hidden")
    becomes(page, FOCUSED, "Try it")


def test_button_needs_an_ended_trace_with_an_answer(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.fill("#or-question textarea", f"Where is the star, {LONG}?")
    page.click("#or-step")
    page.wait_for_selector(".or-step")
    assert not page.is_visible(".or-why-button")
    status(page, "paused")
    assert not page.is_visible(".or-why-button")
    page.press(".or-viewer", "w")
    page.click("#or-stop")
    status(page, "cancelled")
    assert not page.is_visible(".or-why-button")
    assert not page.is_visible(".or-why")


def test_panel_stays_with_its_trace(studio: Open, studio_url: str, trace: str) -> None:
    other = ended_trace(studio_url, OPERATIONAL)
    page = studio(studio_url).page(f"/?trace={trace}")
    shown(page)
    ask_why(page)
    page.click(".or-why >> text=likelihood")
    page.wait_for_selector(".or-step-text .or-token")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for chip in (0, 1, 2):
        page.click(f".or-chip >> nth={chip}")
        page.wait_for_selector(f"li:nth-child({chip + 1}) > .or-chip[aria-current]")
        assert page.is_visible(".or-why-layers [aria-pressed=true]:text('likelihood')")
        assert page.locator(".or-chip-bar").count() == 3
    assert [url for url in asked if "/v1/traces" in url] == []
    page.evaluate("(id) => history.pushState(null, '', '/?trace=' + id)", other)
    page.go_back()
    page.go_forward()
    page.wait_for_selector(".or-why", state="hidden")
    page.wait_for_selector(".or-token, .or-chip-bar, .or-canvas[data-layered]", state="detached")


def test_keyboard_alone_asks_why_and_replaces(studio: Open, studio_url: str, trace: str) -> None:
    page = studio(studio_url).page(f"/?trace={trace}")
    shown(page)
    page.focus(".or-viewer")
    page.keyboard.press("w")
    page.wait_for_selector(".or-reliance li")
    assert page.get_attribute(".or-why-button", "aria-expanded") == "true"
    page.focus(".or-why [aria-label=Close]")
    for wanted in ("each step’s reliance", "likelihood"):
        page.keyboard.press("Tab")
        becomes(page, FOCUSED, wanted)
    page.keyboard.press("Enter")
    page.wait_for_selector(".or-step-text .or-token")
    page.focus("input[value=blank]")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    becomes(page, FOCUSED, "Try it")
    page.keyboard.press("Enter")
    finished(page, 4)
    becomes(page, FOCUSED, "Try it")
    page.keyboard.press("Escape")
    page.wait_for_selector(".or-why", state="hidden")
    becomes(page, FOCUSED, "Why?")
    page.keyboard.press("w")
    page.wait_for_selector(".or-why:visible")
    page.keyboard.press("?")
    page.wait_for_selector("dialog kbd:text-is('w')")
