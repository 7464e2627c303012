"""The images and the example of docs/curation.md, from a real server with the shipped model.

    .venv/bin/python -m tests.e2e.curating

Some held-out tasks are answered; in one, a wrong mark is replaced by the reference, and the model goes on from there.
The traces are rated and tagged, and the corrected one becomes `docs/examples/corrected.html`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.client import Client
from tests.e2e.browser import Studio, launched, status
from tests.e2e.interactions import DESK, Album, ask
from tests.e2e.real_server import ROOT, temporary_server
from training.world.world import EVAL_SEED_MIN

IMAGES = ROOT / "docs" / "images" / "curation"
EXAMPLE = ROOT / "docs" / "examples" / "corrected.html"
TASKS = (
    ("operational", 9),
    ("natural", 7),
    ("structured", 2),
    ("diagrammatic", 4),
    ("natural", 11),
    ("operational", 3),
)
GREEDY = {"temperature": 0.0, "seed": 1}
NOTE = "The model marked the circle. With the mark on the diamond it reads the right colour."


def answer_tasks(client: Client) -> list[str]:
    """Ids of traces that answer `TASKS`."""
    made = []
    for slice_, seed in TASKS:
        task = client.task(slice=slice_, seed=EVAL_SEED_MIN + seed)
        trace = client.create_trace(task["question"], [task["image_id"]], task_id=task["task_id"], sampling=GREEDY)
        for _ in client.events(trace["id"]):
            pass
        made.append(trace["id"])
    return made


def corrected(client: Client) -> str:
    """The id of a branch with a corrected mark and the right answer."""
    wrong = ask(client, GREEDY)
    client.update_trace(wrong, rating=-1, tags=["wrong mark"])
    [branch] = client.branch(wrong, 1, edits=[{"step": 1, "image": {"use": "reference"}}])
    for _ in client.events(branch["id"]):
        pass
    client.update_trace(branch["id"], rating=1, tags=["corrected", "marks"], note=NOTE)
    return branch["id"]


def walk(window: Studio, album: Album, branch: str) -> None:
    """The gallery, a selection, and the box under a trace."""
    page = window.page("/gallery", ready=".or-card[data-trace]")
    page.set_viewport_size(DESK)
    album.take(page, "gallery")
    page.click(".or-gallery-bar >> text=Select")
    page.click(".or-card[data-trace] >> nth=0")
    page.click(".or-card[data-trace] >> nth=3", modifiers=["Shift"])
    page.click(".or-select-bar >> text=Export")
    album.take(page, "select")
    page.close()
    page = window.page(f"/?trace={branch}")
    page.set_viewport_size(DESK)
    status(page, "completed")
    page.locator(".or-curate").scroll_into_view_if_needed()
    album.take(page, "trace")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.curating", description="Make the images and the example."
    )
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--example", type=Path, default=EXAMPLE)
    arguments = parser.parse_args()
    with temporary_server() as server:
        with server.client() as client:
            first, second, *_ = answer_tasks(client)
            branch = corrected(client)
            client.update_trace(first, tags=["tray"])
            client.update_trace(second, rating=1, tags=["clean", "marks"])
            answer = client.trace(branch)["answer"]
            arguments.example.parent.mkdir(parents=True, exist_ok=True)
            with client.export(branch, format="html") as page:
                arguments.example.write_bytes(b"".join(page.chunks))
        with launched() as browser:
            window = Studio(browser, server.url)
            walk(window, Album(arguments.images), branch)
            window.check()
    sys.stdout.write(f"{arguments.example}: the corrected trace answers {answer}\n")
    return 0 if answer == "blue" else 1


if __name__ == "__main__":
    sys.exit(main())
