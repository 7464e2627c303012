"""Groups in the gallery: one tile for all members, with the group's own tally."""

from __future__ import annotations

from typing import Any

from app.client import Client
from tests.e2e.branches.test_wall import MEMBERS, ask
from tests.e2e.browser import Open, asked_in_address, becomes, status

TASK: dict[str, Any] = {"slice": "natural", "seed": 1_000_000_005}
CUT = """() => [...document.querySelectorAll('.or-card-origin')]
  .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.textContent)"""


def samples(url: str, count: int) -> str:
    """The id of a group of finished samples that differ."""
    with Client(url) as client:
        task = client.task(**TASK)
        sampling: Any = {"temperature": 1.0, "seed": 3}
        first = client.create_trace(
            task["question"], [task["image_id"]], task_id=task["task_id"], sampling=sampling, n=count
        )
        group = str(first["group_id"])
        for _ in client.group_events(group):
            pass
    return group


def test_gallery_shows_a_group_as_one_tile(studio: Open, studio_url: str) -> None:
    window = studio(studio_url)
    page = window.page()
    for samples in (3, 1, 1):
        if samples > 1:
            ask(page, samples)
            page.wait_for_selector(".or-wall[data-status=completed]")
            group = asked_in_address(page, "group")
        else:
            page.focus(".or-samples-field")
            page.keyboard.press("Home")
            before = page.evaluate("location.search")
            page.click("#or-reason")
            page.wait_for_function("(before) => location.search !== before", arg=before)
            status(page, "completed")
    page = window.page("/gallery", ready=".or-card[data-trace]")
    page.wait_for_selector(f".or-stack[data-group={group}] .or-stack-count:text-is('×3')")
    page.click(".or-gallery-bar >> text=Select")
    page.click(".or-card[data-trace] >> nth=0")
    page.click(".or-card[data-trace] >> nth=1")
    page.click(".or-select-bar >> text=Compare")
    page.wait_for_selector(".or-compare-word:not(:empty)")
    page.go_back()
    page.click(f".or-stack[data-group={group}] a")
    page.wait_for_selector(".or-wall[data-status=completed]")
    becomes(page, MEMBERS, 3)


def test_tile_counts_members_that_are_not_loaded(studio: Open, studio_url: str) -> None:
    group = samples(studio_url, 3)
    page = studio(studio_url).context.new_page()

    def first_two(route: Any) -> None:
        answer = route.fetch(url=route.request.url.replace("limit=24", "limit=2"))
        route.fulfill(json=answer.json() | {"has_more": False})

    page.route("**/v1/traces?limit=24*", first_two)
    page.goto(f"{studio_url}/gallery")
    tile = f".or-stack[data-group={group}]"
    page.wait_for_selector(f"{tile} .or-stack-count:text-is('×3')")
    with Client(studio_url) as client:
        tally = client.group(group)["tally"]
    answers = ", ".join(f"{entry['answer']} ×{entry['count']}" for entry in tally if entry["answer"] is not None)
    assert page.inner_text(f"{tile} strong") == answers or "no answers"
    assert not page.is_visible(f"{tile} .or-stack-note")


def test_large_groups_leave_room_for_other_tiles(studio: Open, studio_url: str) -> None:
    with Client(studio_url) as client:
        task = client.task(**TASK)
        single = client.create_trace(task["question"], [task["image_id"]], task_id=task["task_id"])["id"]
        for _ in client.events(single):
            pass
    for _ in range(2):
        samples(studio_url, 16)
    page = studio(studio_url).page("/gallery", ready=f".or-card[data-trace={single}]")
    assert page.locator(".or-stack").count() >= 2


def test_filtered_tile_says_how_many_members_match(studio: Open, studio_url: str) -> None:
    group = samples(studio_url, 8)
    with Client(studio_url) as client:
        verdict = client.group(group)["tally"][0].get("verdict") or "wrong"
        matching = len(client.traces(group=group, verdict=verdict)["data"])
    page = studio(studio_url).page(f"/gallery?verdict={verdict}", ready=f".or-stack[data-group={group}]")
    tile = f".or-stack[data-group={group}]"
    page.wait_for_selector(f"{tile} .or-stack-count:text-is('×8')")
    if matching == 8:
        assert not page.is_visible(f"{tile} .or-stack-note")
    else:
        page.wait_for_selector(f"{tile} .or-stack-note:text-is('{matching} of 8 match')")


def test_tile_is_deleted_with_all_its_members(studio: Open, studio_url: str) -> None:
    group = samples(studio_url, 2)
    page = studio(studio_url).page("/gallery", ready=f".or-stack[data-group={group}]")
    delete = f".or-stack[data-group={group}] .or-delete"
    page.click(delete)
    page.wait_for_selector(f"{delete}.sure:text-is('delete all?')")
    with Client(studio_url) as client:
        assert len(client.traces(group=group)["data"]) == 2, "only asked"
        with page.expect_response(lambda response: response.request.method == "DELETE"):
            page.click(delete)
        page.wait_for_selector(f".or-stack[data-group={group}]", state="detached")
        becomes(page, "() => document.activeElement.classList.contains('or-card-open')", True)
        assert client.traces(group=group)["data"] == []
        assert group not in [one["id"] for one in client.groups()["data"]]


def test_origin_of_a_card_is_not_cut(studio: Open, studio_url: str) -> None:
    samples(studio_url, 2)
    page = studio(studio_url).context.new_page()

    def long_names(route: Any) -> None:
        found = route.fetch().json()
        for trace in found["data"]:
            trace["checkpoint"] = "my-lab-nano-base-pesft-perpo-2r52-step-12000-best"
        route.fulfill(json=found)

    page.route("**/v1/traces?limit=24*", long_names)
    page.goto(f"{studio_url}/gallery")
    page.wait_for_selector(".or-card-origin:has-text('step-12000-best')")
    for width in (390, 1280, 1366, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        becomes(page, CUT, [])
