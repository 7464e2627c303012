"""Deleted traces and samples, and addresses that name none: a message that says so, and a way on."""

from __future__ import annotations

from typing import Any

import pytest

from app.client import Client
from tests.e2e.branches.test_branches import ended_trace
from tests.e2e.browser import Open, asked_in_address, becomes, status

LINKS = "(place) => [...document.querySelectorAll(`${place} .or-notice a`)].map((one) => one.getAttribute('href'))"
NEW = ["/gallery", "/"]


def branch_of(url: str, parent: str) -> str:
    with Client(url) as client:
        (branch,) = client.branch(parent, 1, edits=[{"step": 1, "text": "I look once more."}])
        for _ in client.events(branch["id"]):
            pass
    return str(branch["id"])


def delete(url: str, trace: str) -> None:
    with Client(url) as client:
        client.delete(trace)


def links(page: Any, place: str) -> list[str]:
    return [str(href) for href in page.evaluate(LINKS, place)]


def test_deleted_trace_has_a_message_and_ways_on(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    window.expected = ["404"]
    trace = ended_trace(studio_url)
    page = window.page(f"/?trace={trace}")
    status(page, "completed")
    delete(studio_url, trace)
    page.goto(f"{studio_url}/gallery")
    page.click(f"nav a[data-link=studio][href='/?trace={trace}']")  # once the header has been mounted
    page.wait_for_selector(".or-viewer .or-notice:has-text('does not exist on this server')")
    assert links(page, ".or-viewer") == NEW
    page.wait_for_selector("#or-reason:visible")
    page.click(".or-notice >> text=open the gallery")
    page.wait_for_selector(".or-theme svg")  # the header has been mounted
    assert page.get_attribute("nav a[data-link=studio]", "href") == "/", "it does not lead there again"


def test_deleting_a_trace_resets_the_studio_link(studio: Open, studio_url: str) -> None:
    trace = ended_trace(studio_url)
    page = studio(studio_url).page(f"/?trace={trace}")
    status(page, "completed")
    page.goto(f"{studio_url}/gallery")
    page.wait_for_selector(f"a[data-link=studio][href='/?trace={trace}'] >> nth=0")
    for _ in range(2):
        page.click(f".or-card[data-trace={trace}] .or-delete")
    page.wait_for_selector(f".or-card[data-trace={trace}]", state="detached")
    becomes(page, "() => document.querySelector('nav a[data-link=studio]').getAttribute('href')", "/")


def test_card_of_a_deleted_trace_is_removed(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    window.expected = ["404"]
    ended_trace(studio_url)  # its card gets the focus
    trace = ended_trace(studio_url)
    page = window.page("/gallery", ready=f".or-card[data-trace={trace}]")
    delete(studio_url, trace)
    page.click(f".or-card[data-trace={trace}] .or-card-open")
    page.wait_for_selector("dialog >> text=This trace was deleted")
    assert page.locator("dialog .or-viewer, dialog a").count() == 0
    page.keyboard.press("Escape")
    page.wait_for_selector(f".or-card[data-trace={trace}]", state="detached")
    becomes(page, "() => document.activeElement.classList.contains('or-card-open')", True)


def test_branch_is_compared_with_its_deleted_parent(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    window.expected = ["404"]
    parent = ended_trace(studio_url)
    branch = branch_of(studio_url, parent)
    delete(studio_url, parent)
    page = window.page(f"/?compare={parent},{branch}")
    page.wait_for_selector(".or-compare-two > .or-notice:has-text('The parent of this branch was deleted')")
    assert links(page, ".or-compare-two >") == [f"/?trace={branch}", "/gallery"]
    assert page.is_visible("[data-side=right] .or-step >> nth=0")
    assert not page.is_visible("[data-side=left]")
    assert page.locator("[data-differs], [data-parts]").count() == 0
    page.click(".or-compare-two >> text=Close")
    page.wait_for_selector(f".or-tree-row[data-trace={branch}][aria-selected=true]")
    assert asked_in_address(page, "trace") == branch


@pytest.mark.parametrize("first", [True, False])
def test_comparison_with_an_unknown_trace_shows_the_other(studio: Open, studio_url: str, first: bool) -> None:
    window = studio(studio_url)
    window.expected = ["404"]
    known, unknown = ended_trace(studio_url), "tr_nothing"
    page = window.page(f"/?compare={','.join((unknown, known) if first else (known, unknown))}")
    side = "first" if first else "second"
    page.wait_for_selector(f".or-compare-two > .or-notice:has-text('The {side} trace does not exist')")
    page.click(".or-compare-two >> text=Close")
    status(page, "completed")
    assert asked_in_address(page, "trace") == known


def test_comparison_of_two_unknown_traces_leads_on(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    window.expected = ["404"]
    page = window.page("/?compare=tr_a,tr_b")
    page.wait_for_selector(".or-compare-two > .or-notice:has-text('Neither trace exists')")
    assert links(page, ".or-compare-two >") == NEW
    page.click(".or-compare-two >> text=Close")
    page.wait_for_selector(".or-example[aria-pressed=true]:visible")


def test_comparison_of_one_trace_is_explained(studio: Open, studio_url: str) -> None:
    trace = ended_trace(studio_url)
    page = studio(studio_url).page(f"/?compare={trace}")
    page.wait_for_selector(".or-compare-two > .or-notice:has-text('This address names only one')")
    assert links(page, ".or-compare-two >") == [f"/?trace={trace}", *NEW]
    assert not page.is_visible(".or-compare-pair")
    page.click(".or-notice >> text=open this trace")
    status(page, "completed")
    page.goto(f"{studio_url}/?compare=")
    page.wait_for_selector(".or-compare-two > .or-notice:has-text('takes two traces')")


@pytest.mark.parametrize("group", ["gr_nothing", "gr_" + "0" * 20, "foo"])
def test_unknown_group_is_reported(studio: Open, studio_url: str, group: str) -> None:
    window = studio(studio_url)
    window.expected = ["404"]
    page = window.page(f"/?group={group}")
    page.wait_for_selector(".or-wall .or-notice:has-text('do not exist')")
    assert links(page, ".or-wall") == NEW
    page.wait_for_selector("#or-reason:visible")


def test_deleted_samples_are_marked_in_their_group(studio: Open, studio_url: str) -> None:
    with Client(studio_url) as client:
        task = client.task(slice="natural", seed=1_000_000_005)
        group = client.create_trace(task["question"], [task["image_id"]], n=2)["group_id"]
        for _ in client.group_events(group):
            pass
        first, second = client.group(group)["trace_ids"]
        client.delete(second)
        page = studio(studio_url).page(f"/?group={group}")
        page.wait_for_selector(".or-wall[data-status=completed]")
        page.wait_for_selector(".or-member:nth-child(2) .or-member-open:disabled")
        assert page.inner_text(".or-member:nth-child(2) .or-member-word") == "deleted"
        page.wait_for_selector(".or-member:nth-child(1) .or-member-open:not(:disabled)")
        client.delete(first)
    page.reload()
    page.wait_for_selector(".or-wall .or-notice:has-text('All of these samples were deleted')")
