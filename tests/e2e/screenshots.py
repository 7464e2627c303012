"""The images of README and docs, from a real server with the shipped model, in a real browser.

    .venv/bin/python -m tests.e2e.screenshots                        all, to docs/images
    .venv/bin/python -m tests.e2e.screenshots running dark --out DIR  some, to another folder

Take them on a quiet machine: they show times. `training` starts a real PeRPO job and waits for its seventh step (some
minutes); the others take seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.client import Client
from tests.e2e.browser import Studio, launched, status
from tests.e2e.real_server import ROOT, temporary_server
from tests.tiny import make_tiny_checkpoint

FOLDER = ROOT / "docs" / "images"
LONG_MS = 30 * 60_000
PHONE: dict[str, Any] = {"has_touch": True, "is_mobile": True}
JOB: dict[str, Any] = {
    "method": "perpo",
    "base_checkpoint": "nano-omni-r1",
    "data": {"source": "unitasks", "num_samples": 400},
    "hyperparameters": {"steps": 30},
    "seed": 3,
}
SWEEP: dict[str, Any] = {
    "spec": {
        "method": "pesft",
        "base_checkpoint": "tiny",
        "data": {"source": "unitasks", "num_samples": 16},
        "hyperparameters": {
            "steps": 80,
            "schedule": "constant",
            "batch_tokens": 256,
            "log_every": 1,
            "save_every": 80,
            "sample_every": 0,
        },
        "tags": ["rates"],
    },
    "grid": {"hyperparameters.lr": [3e-3, 1e-3, 3e-4], "seed": [0, 1]},
}
MEASURED = ("nano-base", "nano-omni-r1-zero", "nano-omni-r1")


def running(window: Studio) -> Any:
    page = window.page()
    page.click(".or-example >> nth=3")
    page.click("#or-reason")
    page.wait_for_selector("li:nth-child(2) > .or-chip[data-live][data-skill] img:visible")
    return page


def step_mode(window: Studio) -> Any:
    page = window.page()
    page.click(".or-example >> nth=0")
    page.click("#or-step")
    status(page, "paused")
    page.click("#or-continue")
    page.wait_for_selector(".or-step >> nth=1")
    status(page, "paused")
    return page


def dark(window: Studio) -> Any:
    page = window.page()
    page.click("#or-reason")
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    page.click(".or-chip >> nth=-2")
    return page


def phone(window: Studio) -> Any:
    page = window.page()
    page.set_viewport_size({"width": 390, "height": 844})
    page.click(".or-example >> nth=2")
    page.click("#or-reason")
    status(page, "completed")
    page.wait_for_selector(".or-verdict:not(:empty)")
    return page


def error(window: Studio) -> Any:
    page = window.page()
    page.fill("#or-question textarea", "Which of all these many things is it? " * 90)
    page.wait_for_selector(".or-budget[data-over]")
    page.click("#or-reason")
    return page


def training(window: Studio) -> Any:
    with Client(window.url) as client:
        job = client.create_job(JOB)
    page = window.page(f"/training?job={job['id']}", ready="html[data-training=ready]")
    page.set_viewport_size({"width": 1280, "height": 1180})
    page.wait_for_function("omniR1.parts.training.run.state.stages.perpo?.step >= 7", timeout=LONG_MS)
    page.wait_for_selector(".or-sample-chip")
    page.locator(".or-training-main").evaluate("(main) => main.scrollIntoView()")
    return page


def checkpoints(window: Studio) -> Any:
    page = window.page("/checkpoints?compare=nano-omni-r1,nano-base", ready="html[data-checkpoints=ready]")
    page.set_viewport_size({"width": 1280, "height": 1000})
    page.wait_for_selector(".or-compare-page .or-example[aria-pressed=true]")
    page.click("text=Ask both")
    for side in ("left", "right"):
        page.wait_for_selector(f"[data-side={side}] .or-viewer[data-status=completed]")
    page.wait_for_selector(".or-compare-words [role=status]:not(:empty)")
    page.click("[data-side=left] .or-chip >> nth=2")
    page.locator(".or-compare-page").evaluate("(one) => one.scrollIntoView()")
    return page


def runs(window: Studio) -> Any:
    """Six real runs of a sweep, on the tests' checkpoint, whose steps take milliseconds."""
    with Client(window.url) as client:
        sweep = client.create_sweep(SWEEP["spec"], SWEEP["grid"], name="rates")
        for job in sweep["jobs"]:
            for _ in client.job_events(job["id"]):
                pass
    page = window.page(f"/runs?sweep={sweep['id']}&metric=loss/ce", ready="html[data-runs=ready]")
    page.set_viewport_size({"width": 1280, "height": 1080})
    page.fill("input[type=range]", "0.8")
    page.focus(".or-plot")
    page.keyboard.press("Home")
    for _ in range(9):
        page.keyboard.press("PageUp")
    page.click("[data-column=best] .or-sort")
    page.wait_for_selector(".or-runs-legend li >> nth=5")
    return page


def leaderboard(window: Studio) -> Any:
    with Client(window.url) as client:
        for name in MEASURED:
            data = {"source": "unitasks", "num_samples": 16}
            job = client.create_job({"method": "benchmark", "base_checkpoint": name, "data": data})
            for _ in client.job_events(job["id"]):
                pass
    page = window.page("/checkpoints?name=nano-omni-r1", ready="html[data-checkpoints=ready]")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_selector(".or-board tbody tr >> nth=2")
    page.locator(".or-board").evaluate("(board) => board.scrollIntoView({ block: 'end' })")
    return page


SHOTS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "running": (running, {}),
    "step-mode": (step_mode, {}),
    "dark": (dark, {"color_scheme": "dark"}),
    "phone": (phone, PHONE),
    "error": (error, {}),
    "checkpoints": (checkpoints, {}),
    "training": (training, {}),
    "runs": (runs, {}),
    "leaderboard": (leaderboard, {}),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.screenshots", description="Take the docs' pictures.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SHOTS))
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SHOTS):
        parser.error(f"no such picture: {', '.join(sorted(unknown))}; there are {', '.join(SHOTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with temporary_server() as server, launched() as browser:
        make_tiny_checkpoint(server.home / "checkpoints" / "tiny")
        for name in arguments.names or SHOTS:
            take, options = SHOTS[name]
            window = Studio(browser, server.url, **options)
            page = take(window)
            if name != "running":
                page.wait_for_timeout(500)  # transitions end, and job values are drawn four times a second
            page.screenshot(path=arguments.out / f"{name}.png")
            window.check()
            sys.stdout.write(f"{arguments.out / name}.png\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
