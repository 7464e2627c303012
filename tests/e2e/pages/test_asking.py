"""Asking in the studio: what can be asked, what the checkpoint knows, asking again, early clicks.

On the real engine with the shipped checkpoint.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from tests.e2e.axe import violations
from tests.e2e.browser import Open, becomes, picture_file, status
from tests.e2e.pages.test_mount import HeldBack, opened
from tests.e2e.real_server import ROOT, SHIPPED
from training.world.world import FAMILIES, make_task

pytestmark = pytest.mark.skipif(not (SHIPPED / "config.json").exists(), reason="the checkpoint is not there")
BOX = "#or-question textarea"
NOTE = ".or-outside:visible >> text=outside what this model knows"
SEED = "#or-seed input, #or-seed textarea"
RINGS = "() => document.querySelectorAll('.or-example[aria-pressed=true], .or-family[aria-pressed=true]').length"
QUESTION = f"() => document.querySelector('{BOX}').value"


def asked(page: Any) -> str:
    return str(page.input_value(BOX))


def seed_of(page: Any) -> int:
    found = re.search(r"seed (\d+)", page.inner_text(".or-bar .or-seed"))
    assert found
    return int(found[1])


def test_own_image_gets_the_cards_note_whichever_module_is_late(studio: Open, studio_url: str, tmp_path: Path) -> None:
    picture = picture_file(tmp_path)
    window = studio(studio_url)
    for late in ("studio.js", "header.js", "well.js", None):
        page = opened(window)
        held = HeldBack(page, f"**/static/*/studio/{late}") if late else None
        page.goto(studio_url, wait_until="commit")
        if held:
            page.wait_for_timeout(400)
            held.let_all_go()
        page.wait_for_selector("html[data-studio=ready]", state="attached")
        page.set_input_files("input[type=file]", picture)
        page.wait_for_selector(".or-honesty:visible >> text=On a photo its answer is a guess")
        assert held is None or held.requested
        page.close()


def test_comparison_shows_the_notes_of_its_cards(studio: Open, studio_url: str, tmp_path: Path) -> None:
    page = studio(studio_url).page("/checkpoints?compare=nano-omni-r1,nano-base", ready="html[data-checkpoints=ready]")
    page.wait_for_selector(".or-compare-page .or-example[aria-pressed=true]")
    page.fill(".or-compare-question", "Something else?")
    becomes(page, RINGS, 0)
    page.set_input_files(".or-compare-page input[type=file]", picture_file(tmp_path))
    page.wait_for_selector(".or-compare-page .or-honesty:visible >> text=On a photo its answer is a guess")


def test_question_of_another_world_is_noted(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    page.wait_for_selector(".or-budget:not(:empty)")
    assert not page.is_visible(".or-outside")
    for question in ("asdf qwer", "Who was the first emperor of Rome?"):
        page.fill(BOX, question)
        page.wait_for_selector(NOTE)
        page.fill(BOX, "how many RED shapes are there")
        page.wait_for_selector(".or-outside", state="hidden")
    page.fill(BOX, "asdf qwer")
    page.wait_for_selector(NOTE)
    assert violations(page) == []
    page.click(".or-theme")
    becomes(page, "() => document.body.classList.contains('dark')", True)
    assert violations(page) == []
    page.fill(BOX, "")
    page.wait_for_selector(".or-outside", state="hidden")


def test_note_is_that_of_the_chosen_checkpoint(studio: Open, studio_url: str) -> None:
    """The base has learned to draw on order."""
    page = studio(studio_url).page()
    page.fill(BOX, "Draw a box around the red star.")
    page.wait_for_selector(NOTE)
    page.fill(BOX, "Draw a box around the red circle.")
    page.wait_for_selector(NOTE)
    page.select_option(".or-checkpoint select", "nano-base")
    page.wait_for_selector(".or-outside", state="hidden")


def test_example_of_every_family_is_its_first_in_the_list() -> None:
    source = (ROOT / "static" / "studio" / "families.js").read_text()
    for slice_, families in FAMILIES.items():
        part = source.partition(f"slice: '{slice_}'")[2].partition("slice:")[0]
        shown = re.findall(r"family: '(\w+)', seed: (\d+)", part)
        assert [family for family, _ in shown] == list(families)
        assert [make_task(slice_, int(seed)).family for _, seed in shown] == list(families)


def test_panel_asks_any_family_with_the_keyboard(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    page.focus(".or-families summary")
    page.keyboard.press("Enter")
    page.wait_for_selector(".or-family:not(:disabled) >> nth=12")
    assert page.locator(".or-family").count() == sum(map(len, FAMILIES.values()))
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.dataset.family") == "count"
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-family=count][aria-pressed=true]")
    assert asked(page) == page.inner_text("[data-family=count]").strip()
    becomes(page, RINGS, 1)
    page.keyboard.press("Control+Enter")  # only in the question
    page.click("[data-family=mirror]")
    page.click("#or-reason")
    assert status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    page.wait_for_selector(".or-families[open]")


def test_edited_question_is_no_longer_the_example(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    becomes(page, RINGS, 1 + 1)  # in the row and in the panel
    question = asked(page)
    page.fill(BOX, question + " Really?")
    becomes(page, RINGS, 0)
    page.fill(BOX, question)
    becomes(page, RINGS, 2)


def test_another_seed_is_one_click_and_the_seed_is_copied(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    page.click("#or-sampling button")
    page.fill("#or-temperature input, #or-temperature textarea", "1")
    page.click("#or-reason")
    status(page, "completed")
    first, address = seed_of(page), page.url
    becomes(page, f"() => document.querySelector('{SEED}').value", str(first))
    page.wait_for_selector(f".or-repeats:visible [title='Seed {first}']")

    page.click("#or-reason")  # repeats it
    page.wait_for_function("(before) => location.href !== before", arg=address)
    status(page, "completed")
    assert seed_of(page) == first

    address = page.url
    page.click("text=again with another seed")
    page.wait_for_function("(before) => location.href !== before", arg=address)
    status(page, "completed")
    second = seed_of(page)
    assert second != first
    becomes(page, f"() => document.querySelector('{SEED}').value", str(second))

    page.click("text=new seed")
    becomes(page, f"() => document.querySelector('{SEED}').value", "")
    assert not page.is_visible(".or-repeats")
    page.fill(SEED, "7")  # the user's own
    address = page.url
    page.click("#or-reason")
    page.wait_for_function("(before) => location.href !== before", arg=address)
    status(page, "completed")
    assert seed_of(page) == 7
    page.click(".or-example >> nth=1")
    assert page.input_value(SEED) == "7"
    assert not page.is_visible(".or-repeats")


def test_seed_of_another_question_is_not_copied(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    page.click("#or-reason")
    status(page, "completed")
    page.wait_for_selector(".or-repeats:visible")
    page.fill(BOX, "Something else?")
    page.wait_for_selector(".or-repeats", state="hidden")
    address = page.url
    page.click("text=again with another seed")
    page.wait_for_function("(before) => location.href !== before", arg=address)
    status(page, "completed")
    page.wait_for_selector("text=again with another seed")
    assert asked(page) == "Something else?"
    assert not page.is_visible(".or-repeats")


def test_copied_seed_waits_for_its_folded_field(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    page.click("#or-reason")
    status(page, "completed")
    page.wait_for_selector(".or-repeats:visible")
    seed = seed_of(page)
    page.click("#or-sampling button")
    becomes(page, f"() => document.querySelector('{SEED}')?.value", str(seed))
    page.click(".or-example >> nth=1")  # another question: a random seed
    becomes(page, f"() => document.querySelector('{SEED}').value", "")
    assert not page.is_visible(".or-repeats")


def test_click_before_the_module_is_loaded_counts(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    window.expected = ["422"]
    page = opened(window)
    held = HeldBack(page, "**/static/*/studio/studio.js")
    page.goto(studio_url, wait_until="commit")
    page.click("#or-reason")
    page.fill(BOX, "How many red shapes are there?")
    page.wait_for_timeout(200)
    held.let_all_go()
    page.wait_for_selector("text=needs 1 image")  # written before, so no example has replaced it
    assert asked(page) == "How many red shapes are there?"
    page.wait_for_selector(".or-budget:not(:empty)")
    assert held.requested
    page.close()

    page = opened(window)
    held = HeldBack(page, "**/static/*/studio/studio.js")
    page.goto(studio_url, wait_until="commit")
    page.click("#or-reason")
    held.let_all_go()
    status(page, "completed")
    assert held.requested


def test_image_and_film_are_saved(studio: Open, studio_url: str) -> None:
    page = studio(studio_url).page()
    page.click("#or-reason")
    status(page, "completed")
    steps = page.locator(".or-step").count()
    trace_id = page.evaluate("() => new URLSearchParams(location.search).get('trace')")
    page.click(".or-chip >> nth=1")
    with page.expect_download() as saved:
        page.click("[aria-label='Save this image']")
    assert saved.value.suggested_filename == f"{trace_id}-step-1.png"
    with Image.open(saved.value.path()) as opened_:
        assert opened_.format == "PNG"
    with page.expect_download() as saved:
        page.click("text=save GIF")
    assert saved.value.suggested_filename == f"{trace_id}.gif"
    with Image.open(io.BytesIO(Path(saved.value.path()).read_bytes())) as film:
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(film)]
    assert times == [2000] * (steps + 1) + [4000]


def test_live_trace_has_no_film_yet(studio: Open, slow_url: str) -> None:
    page = studio(slow_url).page()
    page.click("#or-reason")
    page.wait_for_selector(".or-chip[data-live][data-skill]")
    assert not page.is_visible("text=save GIF")
    assert not page.is_visible("text=again with another seed")
    status(page, "completed")
    page.wait_for_selector("text=save GIF")
