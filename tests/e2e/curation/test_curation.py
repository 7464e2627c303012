"""Rating, tagging, selecting and training on traces in the browser, by mouse and by keyboard."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.client import Client, NotFound
from tests.e2e.browser import Open, asked_in_address, becomes, status
from tests.e2e.states import CARDS, TRAINING, _three_traces

WORD = "() => document.querySelector('.or-curate-word').textContent"
SELECTED = "() => [...document.querySelectorAll('[data-selected]')].map((one) => one.dataset.trace)"
COUNT = "() => document.querySelector('.or-select-count').textContent"
SHOWN = f"() => [...document.querySelectorAll('{CARDS}')].map((one) => one.dataset.trace)"
TAGS = "() => [...document.querySelectorAll('.or-curate .or-tag > span')].map((one) => one.textContent)"
FOCUSED = "() => document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
SPEC = "() => document.querySelector('.or-editor textarea').value"


@pytest.fixture
def client(studio_url: str) -> Iterator[Client]:
    with Client(studio_url) as client:
        yield client


@pytest.fixture
def traces(client: Client) -> list[str]:
    """Three new traces: the gallery's first three cards, oldest first."""
    return _three_traces(client)


def kept(client: Client, trace_id: str) -> tuple[Any, Any, Any]:
    trace = client.trace(trace_id)
    return trace.get("rating"), trace.get("tags"), trace.get("note")


def test_trace_is_curated_by_keyboard_alone(studio: Open, studio_url: str, client: Client, traces: list[str]) -> None:
    page = studio(studio_url).page(f"/?trace={traces[0]}")
    page.wait_for_selector(".or-curate:visible")
    page.focus(".or-curate [data-rating='1']")
    page.keyboard.press("Space")
    page.wait_for_selector(".or-curate [data-rating='1'][aria-pressed=true]")
    becomes(page, WORD, "saved")
    page.focus(".or-tag-input")
    page.keyboard.type(" box ")
    page.keyboard.press("Enter")
    page.keyboard.type("a, b")
    page.keyboard.press("Enter")
    page.keyboard.type("box")  # it has that one
    page.keyboard.press("Enter")
    becomes(page, TAGS, ["a, b", "box"])
    page.keyboard.press("Shift+Tab")
    becomes(page, FOCUSED, "Remove the tag box")
    page.keyboard.press("Enter")
    becomes(page, FOCUSED, "Remove the tag a, b")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.type("The mark fits.")
    page.keyboard.press("Control+Enter")
    becomes(page, WORD, "saved")
    assert kept(client, traces[0]) == (1, ["a, b"], "The mark fits.")

    page.reload()
    page.wait_for_selector(".or-curate [data-rating='1'][aria-pressed=true]")
    becomes(page, TAGS, ["a, b"])
    assert page.input_value(".or-note") == "The mark fits."
    page.click(".or-curate [data-rating='-1']")
    page.wait_for_selector(".or-curate [data-rating='-1'][aria-pressed=true]")
    page.wait_for_selector(".or-curate [data-rating='1'][aria-pressed=false]")
    page.click(".or-curate [data-rating='-1']")
    page.wait_for_selector(".or-curate [data-rating='-1'][aria-pressed=false]")
    page.fill(".or-note", "")
    page.focus(".or-tag-input")
    page.keyboard.press("Backspace")
    becomes(page, TAGS, [])
    becomes(page, WORD, "saved")
    assert kept(client, traces[0]) == (None, [], None)


def test_refused_change_is_undone_and_reported(studio: Open, studio_url: str, traces: list[str]) -> None:
    window = studio(studio_url)
    window.expected = ["ERR_FAILED", "422"]
    page = window.page(f"/?trace={traces[0]}")
    page.wait_for_selector(".or-curate:visible")
    page.route("**/v1/traces/*", lambda route: route.abort() if route.request.method == "PATCH" else route.continue_())
    page.click(".or-curate [data-rating='1']")
    page.wait_for_selector(".or-curate-word:has-text('unreachable')")
    page.wait_for_selector(".or-curate [data-rating='1'][aria-pressed=false]")
    page.unroute("**/v1/traces/*")
    page.fill(".or-tag-input", "a\u202eb")
    page.keyboard.press("Enter")
    page.wait_for_selector(".or-curate-word:has-text('invisible characters')")
    becomes(page, TAGS, [])


def test_running_trace_shows_no_curation(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.click("#or-reason")
    page.wait_for_selector(".or-step")
    assert not page.is_visible(".or-curate")
    status(page, "completed")
    page.wait_for_selector(".or-curate:visible")


@pytest.mark.parametrize("format", ["jsonl", "html", "json", "zip"])
def test_viewer_exports_the_trace(
    studio: Open, studio_url: str, traces: list[str], tmp_path: Path, format: str
) -> None:
    page = studio(studio_url).page(f"/?trace={traces[0]}")
    page.wait_for_selector(".or-curate:visible")
    page.click(".or-curate >> text=export")
    with page.expect_download() as found:
        page.click(f".or-curate [data-format={format}]")
    assert found.value.suggested_filename == f"{traces[0]}.{format}"
    assert Path(found.value.path()).stat().st_size > 500
    page.keyboard.press("Escape")
    page.wait_for_selector(f".or-curate [data-format={format}]", state="hidden")
    becomes(page, FOCUSED, "export")


def test_card_is_rated_and_filtered(studio: Open, studio_url: str, client: Client, traces: list[str]) -> None:
    client.update_trace(traces[1], tags=[f"tag of {traces[1]}"])
    page = studio(studio_url).page("/gallery", ready=CARDS)
    page.click(f"[data-trace={traces[0]}] [data-rating='1']")
    page.wait_for_selector(f"[data-trace={traces[0]}] [data-rating='1'][aria-pressed=true]")
    page.click(f"[data-trace={traces[1]}] .or-tag-pick")
    becomes(page, SHOWN, [traces[1]])
    assert asked_in_address(page, "tag") == f"tag of {traces[1]}"
    page.go_back()
    page.wait_for_selector(f"[data-trace={traces[0]}] [data-rating='1'][aria-pressed=true]")
    page.select_option("[name=rating]", "1")
    page.wait_for_selector(f"[data-trace={traces[1]}]", state="detached")
    assert asked_in_address(page, "rating") == "1"
    page.reload()
    page.wait_for_selector(f"[data-trace={traces[0]}]")
    assert client.traces(rating=1)["data"][0]["id"] == traces[0]

    page.click(f"[data-trace={traces[0]}] .or-card-open")
    page.wait_for_selector("dialog .or-curate:visible")
    page.fill("dialog .or-tag-input", "from the dialog")
    page.keyboard.press("Enter")
    page.click("dialog [data-rating='-1']")
    page.wait_for_selector("dialog [data-rating='-1'][aria-pressed=true]")
    page.keyboard.press("Escape")
    page.wait_for_selector(f"[data-trace={traces[0]}] [data-rating='-1'][aria-pressed=true]")
    page.wait_for_selector(f"[data-trace={traces[0]}] .or-tag-pick:has-text('from the dialog')")


def test_traces_are_selected_by_mouse_and_keyboard(studio: Open, studio_url: str, traces: list[str]) -> None:
    page = studio(studio_url).page("/gallery", ready=CARDS)
    newest = traces[::-1]
    page.focus(".or-gallery-bar button")
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    becomes(page, SELECTED, newest[:1])
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Space")
    becomes(page, SELECTED, newest)
    becomes(page, COUNT, "3 selected")
    page.keyboard.press("Space")
    becomes(page, SELECTED, newest[:2])
    page.keyboard.press("Control+a")
    every = page.evaluate(SHOWN)
    becomes(page, SELECTED, every)
    page.click(".or-select-bar >> text=None")
    becomes(page, SELECTED, [])
    page.click(f"[data-trace={newest[2]}] .or-card-question", force=True)  # the whole card is the checkbox
    page.click(f"[data-trace={newest[0]}] .or-card-check", modifiers=["Shift"])
    becomes(page, SELECTED, newest)
    assert page.locator("dialog").count() == 0
    page.keyboard.press("Escape")
    becomes(page, SELECTED, [])
    becomes(page, FOCUSED, "Select")
    page.click(f"[data-trace={newest[0]}] .or-card-open")
    page.wait_for_selector("dialog .or-viewer")


def select(page: Any, *trace_ids: str) -> None:
    page.click(".or-gallery-bar >> text=Select")
    for trace_id in trace_ids:
        page.click(f"[data-trace={trace_id}]")
    becomes(page, COUNT, f"{len(trace_ids)} selected")


def test_selection_is_exported_compared_and_deleted(
    studio: Open, studio_url: str, client: Client, traces: list[str]
) -> None:
    page = studio(studio_url).page("/gallery", ready=CARDS)
    select(page, *traces[:2])
    page.click(".or-select-bar >> text=Export")
    with page.expect_download() as found:
        page.click(".or-select-bar .or-fold >> text=zip")
    assert found.value.suggested_filename == "traces.zip"
    with zipfile.ZipFile(found.value.path()) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == set(traces[:2])
    with page.expect_download() as found:
        page.click(".or-select-bar .or-fold >> text=jsonl")
    rows = Path(found.value.path()).read_text().splitlines()
    assert [json.loads(row)["trace_id"] for row in rows] == traces[1::-1]  # in the order of the cards

    page.click(f"[data-trace={traces[2]}]")
    assert page.is_disabled(".or-select-bar >> text=Compare")
    page.click(f"[data-trace={traces[2]}]")
    page.click(".or-select-bar >> text=Compare")
    page.wait_for_selector(".or-compare-word:not(:empty)")
    assert set(asked_in_address(page, "compare").split(",")) == set(traces[:2])

    page = studio(studio_url).page("/gallery", ready=CARDS)
    select(page, *traces[:2])
    page.click(".or-select-bar >> text=Delete")
    page.click(".or-select-bar >> text=delete?")
    for trace_id in traces[:2]:
        page.wait_for_selector(f"[data-trace={trace_id}]", state="detached")
        with pytest.raises(NotFound):
            client.trace(trace_id)
    becomes(page, COUNT, "0 selected")
    assert client.trace(traces[2])["id"] == traces[2]


def test_tile_of_samples_stands_for_all_of_them(studio: Open, studio_url: str, client: Client) -> None:
    task = client.task(slice="natural", seed=1_000_000_000)
    group_id = client.create_trace(task["question"], [task["image_id"]], n=3)["group_id"]
    assert group_id is not None
    for _ in client.group_events(group_id):
        pass
    page = studio(studio_url).page("/gallery", ready=".or-stack")
    page.click(".or-gallery-bar >> text=Select")
    page.click(f"[data-group={group_id}]")
    becomes(page, COUNT, "1 selected")
    page.click(".or-select-bar >> text=Export")
    with page.expect_download() as found:
        page.click('.or-select-bar .or-fold >> text="JSON"')
    exported = json.loads(Path(found.value.path()).read_text())
    assert {trace["id"] for trace in exported} == set(client.group(group_id)["trace_ids"])
    page.click(".or-select-bar >> text=Delete")
    page.click(".or-select-bar >> text=delete?")
    page.wait_for_selector(f"[data-group={group_id}]", state="detached")
    with pytest.raises(NotFound):
        client.group(group_id)


def test_training_starts_with_the_selected_traces(
    studio: Open, studio_url: str, client: Client, traces: list[str]
) -> None:
    for trace_id, rating in zip(traces, (1, -1, 1), strict=True):
        client.update_trace(trace_id, rating=rating)
    page = studio(studio_url).page("/gallery", ready=CARDS)
    select(page, *traces)
    page.click(".or-select-bar >> text=Train")
    page.wait_for_selector("dialog label:has-text('2 traces with a right answer or rated good')")
    becomes(page, FOCUSED, "")  # the first choice
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(TRAINING, state="attached")
    page.wait_for_selector(".or-editor:visible")
    spec = json.loads(page.evaluate(SPEC))
    assert (spec["method"], spec["data"]) == ("pesft", {"source": "traces", "trace_ids": [traces[2], traces[0]]})
    page.reload()
    page.wait_for_selector(".or-editor:visible")
    assert json.loads(page.evaluate(SPEC)) == spec
    page.fill(".or-editor textarea", json.dumps(spec | {"hyperparameters": {"steps": 1}, "output_name": traces[0]}))
    page.click("text=Start this job")
    page.wait_for_selector(".or-run[data-status]:not([data-status=loading])")
    job = client.job(asked_in_address(page, "job"))
    assert job["spec"]["data"]["trace_ids"] == spec["data"]["trace_ids"]
    client.cancel_job(job["id"])
    page.wait_for_selector(".or-run[data-status=cancelled], .or-run[data-status=succeeded]")
