"""Walks through docs/why.md in a real browser on the real engine, and takes its screenshots.

    .venv/bin/python -m tests.e2e.explanations             to docs/images/why
    .venv/bin/python -m tests.e2e.explanations --out DIR   to another folder

It is the trace of `tests.e2e.interactions`: a wrong mark, and a wrong answer that depends on it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from app.client import Client
from tests.e2e.browser import Studio, launched, status
from tests.e2e.interactions import DESK, GREEDY, Album, ask
from tests.e2e.real_server import ROOT, temporary_server

FOLDER = ROOT / "docs" / "images" / "why"
TRACE = "#or-trace"
PANEL = ".or-why"
TABLE = ".or-why-wide"


def walk(window: Studio, album: Album) -> str:
    """Reliance, likelihood, attention, replaced images; returns the tally."""
    with Client(window.url) as client:
        trace = ask(client, GREEDY)
    page = window.page(f"/?trace={trace}")
    page.set_viewport_size(DESK)
    status(page, "completed")
    page.wait_for_selector(".or-verdict:has-text('reference')")
    page.click("text=Why?")
    page.wait_for_selector(".or-reliance li")
    album.take(page, "reliance", part=TRACE)

    page.click(".or-why >> text=likelihood")
    page.wait_for_selector(".or-step-text .or-token")
    album.take(page, "likelihood", at=".or-why-strip", part=TRACE)
    page.click(".or-why >> text=attention")
    page.wait_for_selector(".or-why-strip li >> nth=2")
    album.take(page, "attention", at=".or-why-strip", part=TRACE)
    page.click(".or-why >> text=attention")

    for kind in ("blank", "other", "reference"):
        page.check(f".or-why input[value={kind}]")
    page.click("text=Try it")
    page.wait_for_selector(".or-effects[aria-busy=false]")
    album.take(page, "replaced", at=".or-effects", part=PANEL)
    return str(page.inner_text(f"{TABLE} .or-why-found"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.explanations", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    with temporary_server() as server, launched() as browser:
        window = Studio(browser, server.url)
        tally = walk(window, Album(arguments.out))
        window.check()
    sys.stdout.write(f"{tally}\n")
    return 0 if "change the answer" in tally else 1


if __name__ == "__main__":
    sys.exit(main())
