"""The Runs page on real short jobs, with the keyboard alone: choose two runs, compare, read the values, go on."""

from __future__ import annotations

import re
from typing import Any

import pytest

from app.client import Client
from tests.e2e.axe import violations
from tests.e2e.browser import Open, becomes, fits
from tests.e2e.real_server import Server

RUNS = "html[data-runs=ready]"
PLOT = ".or-plot[role=slider]"
MOST_TABS = 80

pytestmark = pytest.mark.timeout(300)


def job(client: Client, seed: int) -> str:
    """The id of a finished PeSFT run of two steps at a constant rate."""
    made = client.create_job(
        {
            "method": "pesft",
            "base_checkpoint": client.readiness()["checkpoint"],
            "data": {"source": "unitasks", "num_samples": 8},
            "hyperparameters": {
                "steps": 2,
                "schedule": "constant",
                "batch_tokens": 256,
                "log_every": 1,
                "sample_every": 0,
            },
            "seed": seed,
            "name": "pair",
        }
    )
    for _ in client.job_events(made["id"]):
        pass
    assert client.job(made["id"])["status"] == "succeeded"
    return made["id"]


def tab_to(page: Any, selector: str, key: str = "Tab") -> None:
    """Presses the key until the focus is on such an element."""
    for _ in range(MOST_TABS):
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{key} does not reach {selector}")


def test_two_real_runs_are_compared_by_keyboard(studio: Open, server: Server, client: Client) -> None:
    one, two = job(client, 1), job(client, 2)
    window = studio(server.url)
    page = window.page("/runs", ready=RUNS)
    for job_id in (two, one):
        tab_to(page, f"[data-job={job_id}] [data-control=choose]")
        page.keyboard.press("Space")
        becomes(page, f"() => new URLSearchParams(location.search).get('runs').includes('{job_id}')", True)
    becomes(page, "() => document.querySelectorAll('.or-runs-legend li').length", 2)
    tab_to(page, PLOT, "Shift+Tab")
    page.keyboard.press("Home")
    series = {found["job_id"]: found for found in client.job_series([one, two], ["loss/ce"])["data"]}
    for step in (1, 2):
        becomes(page, f"() => document.querySelector('{PLOT}').getAttribute('aria-valuenow')", str(step))
        said = re.findall(r"pair · (\w+) ([\d.e−]+)", page.get_attribute(PLOT, "aria-valuetext"))
        measured = {job_id[-4:]: series[job_id]["values"][step - 1] for job_id in (one, two)}
        assert {name: float(text.replace("−", "-")) for name, text in said} == pytest.approx(measured, rel=0.05)
        page.keyboard.press("ArrowRight")
    assert len({tuple(found["values"]) for found in series.values()}) == 2

    again = window.page(page.evaluate("location.pathname + location.search"), ready=RUNS)
    becomes(again, "() => document.querySelectorAll('.or-runs-legend li').length", 2)
    assert violations(again) == []
    tab_to(again, f"[data-job={one}] [data-control=edit]")
    again.keyboard.press("Enter")
    again.wait_for_selector("dialog .or-runs-edit")
    assert violations(again) == []
    tab_to(again, "dialog input[type=number]")
    again.keyboard.press("ControlOrMeta+a")
    again.keyboard.type("1")
    again.keyboard.press("Enter")
    again.wait_for_selector("text=The result will be that of one run of all steps.")
    (more,) = (found for found in client.jobs(name="pair")["data"] if found["continues"])
    assert (more["continues"] or {})["job_id"] == one
    for _ in client.job_events(more["id"]):
        pass
    assert [row["step"] for row in client.job_metrics(more["id"])["data"]] == [3]
    again.keyboard.press("Escape")
    client.update_job(two, tags=["first, second"])
    again.reload()
    again.wait_for_selector(RUNS, state="attached")
    tab_to(again, f"[data-job={two}] [data-control=edit]")
    again.keyboard.press("Enter")
    tab_to(again, "dialog [aria-label='Add a tag']")
    again.keyboard.type("third")
    again.keyboard.press("Enter")
    again.click("dialog >> text=Save")
    again.wait_for_selector("dialog", state="detached")
    assert client.job(two)["tags"] == ["first, second", "third"]
    again.click("[data-column=best] .or-sort")
    assert again.get_attribute("[data-column=best]", "aria-sort") == "descending"
    fits(again, 390)
    again.close()
    page.close()


def test_unknown_run_is_named(studio: Open, server: Server) -> None:
    window = studio(server.url)
    window.expected.append("404")
    page = window.page("/runs?runs=nothing", ready=RUNS)
    page.wait_for_selector("text=Not on this server: nothing.")
