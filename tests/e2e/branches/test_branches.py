"""Steps edited in place, the tree of branches, two traces side by side: in a real browser, on the real engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.client import Client
from tests.e2e.browser import Open, asked_in_address, becomes, count_connections, status
from tests.e2e.ink import draw_box, edit

TASK: dict[str, Any] = {"slice": "natural", "seed": 1_000_000_005}
EDITED_TEXT = "I look for the diamond once more."
# Clicks "Go on from here"; resolves with the milliseconds until the first text that the parent did not have.
GO_ON = """
(known) => new Promise((resolve) => {
  const start = performance.now();
  const observer = new MutationObserver(() => {
    const steps = document.querySelectorAll('.or-step');
    const next = steps[known]?.querySelector('.or-step-text')?.textContent;
    const answer = document.querySelector('.or-answer-text').textContent;
    const id = new URLSearchParams(location.search).get('trace');
    if (!(next || answer) || id === before || document.querySelector('.or-edit')) return;
    observer.disconnect();
    resolve(performance.now() - start);
  });
  const before = new URLSearchParams(location.search).get('trace');
  observer.observe(document.body, { subtree: true, childList: true, characterData: true });
  document.querySelector('.or-edit .or-primary').click();
})
"""
CUT = """() => [...document.querySelectorAll('.or-words')]
  .filter((one) => one.checkVisibility() && one.scrollHeight > one.clientHeight)
  .map((one) => [one.scrollHeight, one.clientHeight])"""
FOCUSED_TRACE = "() => document.activeElement.dataset.trace ?? ''"


def ended_trace(url: str) -> str:
    """The id of a completed trace of the task."""
    with Client(url) as client:
        task = client.task(**TASK)
        trace = client.create_trace(
            task["question"],
            [task["image_id"]],
            task_id=task["task_id"],
            sampling={"temperature": 0.0, "seed": 1},
        )
        for _ in client.events(trace["id"]):
            pass
    return str(trace["id"])


@pytest.fixture(scope="module")
def parent(studio_url: str) -> str:
    return ended_trace(studio_url)


def shown(page: Any, *, other_than: str) -> str:
    """Waits for another, completed trace; returns its id."""
    page.wait_for_function(
        "(id) => !location.search.includes(id) && location.search.includes('trace=')", arg=other_than
    )
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    return asked_in_address(page, "trace")


def test_box_drawn_with_the_mouse_begins_a_branch(
    studio: Open, studio_url: str, parent: str, record_property: Callable[[str, object], None]
) -> None:
    page = studio(studio_url).page(f"/?trace={parent}")
    status(page, "completed")
    edit(page, 1)
    draw_box(page, 0.1, 0.1, 0.5, 0.5)
    pixels = page.evaluate(
        "() => { const c = document.querySelector('.or-ink'); const at = (x, y) => [...c.getContext('2d')"
        ".getImageData(x, y, 1, 1).data]; return [c.width, at(Math.round(c.width * .3), Math.round(c.width * .1))]; }"
    )
    assert pixels[1] == [255, 0, 255, 255]
    record_property("go_on_to_new_text_ms", page.evaluate(GO_ON, 1))
    branch = shown(page, other_than=parent)
    with Client(studio_url) as client:
        row: Any = client.trace(branch)
        kept = [event.data for event in client.events(branch) if event.type == "step.kept"]
    assert row["parent"]["trace_id"] == parent
    assert [(one["step"], one["edited"]) for one in kept] == [(1, True)]
    assert kept[0]["source_image_id"] != kept[0]["image"]["image_id"]
    assert page.inner_text(".or-answer-text") == row["answer"].strip()
    page.wait_for_selector(".or-chip[data-edited] >> nth=0")
    assert page.locator(".or-step-note:visible").count() == 1
    page.reload()
    page.wait_for_selector(f".or-tree-row[data-trace={branch}][aria-selected=true]")
    assert page.locator(".or-step-note:visible").count() == 1


def test_right_image_is_offered_within_the_steps_of_a_task(studio: Open, studio_url: str, parent: str) -> None:
    page = studio(studio_url).page(f"/?trace={parent}")
    status(page, "completed")
    edit(page, 1)
    page.click(".or-ink-bar >> text=reference")
    page.wait_for_selector(".or-ink-bar [aria-pressed=true]:text('reference')")
    page.click("text=undo")
    page.wait_for_selector(".or-ink-bar [aria-pressed=false]:text('reference')")
    page.click(".or-ink-bar >> text=reference")
    with page.expect_request(lambda request: request.url.endswith("/branches")) as sent:
        page.click("text=Go on from here")
    body = sent.value.post_data_json
    assert body["edits"] == [{"step": 1, "image": {"use": "reference"}}]
    shown(page, other_than=parent)


def test_escape_leaves_nothing_behind(studio: Open, studio_url: str, parent: str) -> None:
    page = studio(studio_url).page(f"/?trace={parent}")
    status(page, "completed")
    page.wait_for_selector(".or-verdict:has-text('reference')")
    page.wait_for_selector(".or-canvas[data-shown] >> nth=1")
    before = page.locator(".or-viewer").inner_text()
    edit(page, 2)
    page.fill(".or-edit-text", "Something else.")
    page.click("text=blank")
    page.keyboard.press("Escape")
    page.wait_for_selector(".or-edit, .or-ink", state="detached")
    becomes(page, "() => document.activeElement.getAttribute('aria-label')", "Edit step 2")
    page.keyboard.press("End")
    page.wait_for_selector(".or-live[aria-pressed=true]")
    assert page.locator(".or-viewer").inner_text() == before
    assert asked_in_address(page, "trace") == parent


def test_keys_work_after_a_pen_stroke_and_changes_are_not_lost(studio: Open, studio_url: str, parent: str) -> None:
    page = studio(studio_url).page(f"/?trace={parent}")
    status(page, "completed")
    edit(page, 1)
    draw_box(page, 0.1, 0.1, 0.5, 0.5)
    page.keyboard.press("Escape")
    page.wait_for_selector(".or-edit, .or-ink", state="detached")
    edit(page, 1)
    page.fill(".or-edit-text", "My long careful text.")
    page.click("[aria-label='Edit step 2']")
    page.wait_for_selector(".or-edit .or-error:has-text('Step 1 has changes')")
    assert page.input_value(".or-edit-text") == "My long careful text."
    draw_box(page, 0.1, 0.1, 0.5, 0.5)
    page.keyboard.press("Control+Enter")
    branch = shown(page, other_than=parent)
    with Client(studio_url) as client:
        kept = next(event.data for event in client.events(branch) if event.type == "step.kept")
    assert kept["text"] == "My long careful text."
    page.goto(studio_url)
    page.wait_for_selector("html[data-studio=ready]")
    assert not page.is_visible(".or-relatives")


def test_refused_edit_is_explained_in_place(studio: Open, studio_url: str, parent: str) -> None:
    window = studio(studio_url)
    window.expected = ["422"]
    page = window.page(f"/?trace={parent}")
    status(page, "completed")
    edit(page, 1)
    page.fill(".or-edit-text", "Final Answer: red")
    page.click("text=Go on from here")
    page.wait_for_selector(".or-edit .or-error:has-text('template mark')")
    page.fill(".or-edit-text", EDITED_TEXT)
    page.click("text=Go on from here")
    shown(page, other_than=parent)


def test_keyboard_alone_branches_opens_the_tree_and_compares(studio: Open, studio_url: str) -> None:
    parent = ended_trace(studio_url)
    page = studio(studio_url).page(f"/?trace={parent}")
    status(page, "completed")
    page.focus("[aria-label='Edit step 1']")
    page.keyboard.press("Enter")
    page.wait_for_selector(".or-ink[data-ready]")
    becomes(page, "() => document.activeElement.getAttribute('aria-label')", "Text of step 1")
    page.keyboard.press("Control+A")
    page.keyboard.type(EDITED_TEXT)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    branch = shown(page, other_than=parent)
    assert page.inner_text(".or-step-text >> nth=0") == EDITED_TEXT
    becomes(page, "() => document.activeElement.className", "or-viewer")

    page.focus(".or-tree-row[tabindex='0']")
    becomes(page, FOCUSED_TRACE, branch)
    page.keyboard.press("ArrowUp")
    becomes(page, FOCUSED_TRACE, parent)
    page.wait_for_selector(".or-tree-word:text('has no parent')")
    page.keyboard.press("ArrowRight")
    becomes(page, FOCUSED_TRACE, branch)
    page.wait_for_selector(".or-tree-word:text('step 1 was edited')")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.wait_for_function("(id) => location.search === '?trace=' + id", arg=parent)
    status(page, "completed")
    page.go_back()
    page.wait_for_selector(f".or-tree-row[data-trace={branch}][aria-selected=true]")

    page.focus(".or-relatives .or-link")
    page.keyboard.press("Enter")
    page.wait_for_selector(".or-compare-word:text('The texts first differ at step 1')")
    becomes(page, "() => document.activeElement.className", "or-compare-two")
    assert asked_in_address(page, "compare") == f"{parent},{branch}"


def test_comparison_aligns_steps_and_outlines_other_images(studio: Open, studio_url: str, parent: str) -> None:
    body = {"after_step": 1, "edits": [{"step": 1, "image": {"use": "reference"}}]}
    answer = httpx.post(f"{studio_url}/v1/traces/{parent}/branches", json=body).raise_for_status()
    other = answer.json()["data"][0]["id"]
    with Client(studio_url) as client:
        for _ in client.events(other):
            pass
    page = studio(studio_url).page(f"/?compare={parent},{other}")
    page.wait_for_selector(".or-compare-word:has-text('The images differ in step')")
    for side in ("left", "right"):
        page.wait_for_selector(f"[data-side={side}] .or-chip[data-differs] >> nth=0")
    page.click("[data-side=left] .or-chip >> nth=1")
    page.wait_for_selector("[data-side=right] li:nth-child(2) > .or-chip[aria-current]")
    page.wait_for_selector("[data-side=right] .or-picture[data-differs]")
    page.click("[data-side=left] .or-chip >> nth=0")
    page.wait_for_selector("[data-side=right] .or-picture:not([data-differs])")
    page.click(".or-compare-two >> text=Close")
    page.wait_for_selector(f".or-tree-row[data-trace={other}][aria-selected=true]")


def test_steps_are_not_cut_on_a_phone(studio: Open, studio_url: str) -> None:
    parent = ended_trace(studio_url)
    page = studio(studio_url, has_touch=True).page(f"/?trace={parent}")
    page.set_viewport_size({"width": 390, "height": 844})
    status(page, "completed")
    edit(page, 1)
    page.fill(".or-edit-text", "I look for the diamond, which is small and blue, and mark it. " * 4)
    becomes(page, CUT, [])
    with Client(studio_url) as client:
        (branch,) = client.branch(parent, 1, edits=[{"step": 1, "text": "I look at every one of the things. " * 12}])
        for _ in client.events(branch["id"]):
            pass
    page.goto(f"{studio_url}/?compare={parent},{branch['id']}")
    page.wait_for_selector(".or-compare-word:not(:empty)")
    becomes(page, CUT, [])


def test_running_trace_has_no_edit_buttons(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.click("#or-step")
    page.wait_for_selector(".or-step")
    assert status(page, "running", "paused") == "paused" or not page.is_visible("[aria-label='Edit step 1']")
    status(page, "paused")
    page.wait_for_selector("[aria-label='Edit step 1']:visible")


def test_tree_and_editor_ask_for_nothing_twice(studio: Open, studio_url: str, parent: str) -> None:
    """One stream for a branch, and one look at the tree after its end."""
    window = studio(studio_url, alone=True)
    count_connections(window)
    page = window.page(f"/?trace={parent}")
    status(page, "completed")
    edit(page, 1)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(studio_url).split("?")[0]))
    page.fill(".or-edit-text", EDITED_TEXT)
    with page.expect_response(lambda response: response.url.endswith("/tree")):
        page.click("text=Go on from here")
    branch = shown(page, other_than=parent)
    own = [path for path in asked if re.match(r"/v1/(?!images/|traces/\w+/partials/)", path)]
    assert sorted(own) == sorted(
        [
            f"/v1/traces/{parent}/branches",
            f"/v1/traces/{branch}/events",
            f"/v1/traces/{branch}",
            f"/v1/traces/{branch}/tree",
            *(["/v1/tasks"] if "/v1/tasks" in own else []),
        ]
    )
