"""The About page: server, checkpoint and limits, read through the API on each visit."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import gradio as gr

from app.client import Client, OmniError
from app.common.build import build_version
from app.ui.components import header, module_html

KINDS = {"jobs": "jobs: logs and state", "datasets": "data sets", "other": "other files"}
Section = dict[str, Any]  # {title, text, rows: [[name, value or {text, href}]]}


def _megabytes(count: object) -> str:
    return f"{count / 10**6:,.0f} MB" if isinstance(count, int | float) and not isinstance(count, bool) else "unknown"


def _range(least: int, most: int) -> str:
    return str(least) if least == most else f"{least} to {most}"


def _day(moment: object) -> str:
    try:
        return f"{datetime.fromisoformat(str(moment)).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return ""


def words_of(notes: object) -> str:
    """A card's notes in any format as one paragraph."""
    if isinstance(notes, dict):
        return " ".join(str(value) for value in notes.values())
    if isinstance(notes, list):
        return " ".join(str(value) for value in notes)
    return str(notes or "")


def _studio(client: Client) -> Section:
    ready = client.readiness()
    rows: list[list[Any]] = [
        ["version", build_version()],
        ["licence", "MIT"],
        ["state", ready["phase"] + (f": {ready['detail']}" if ready.get("detail") else "")],
        ["REST API", {"text": "/docs", "href": "/docs"}],
        ["metrics", {"text": "/metrics", "href": "/metrics"}],
    ]
    text = "Watch a model reason in images: it boxes, zooms, draws lines and marks, and predicts the next state."
    return {"title": "Omni-R1 Studio", "text": text, "rows": rows}


def _checkpoint(one: dict[str, Any]) -> Section:
    lineage = one.get("lineage") or {}
    rows: list[tuple[str, Any]] = [
        ("active", "yes" if one.get("active") else "no"),
        ("licence", one.get("licence")),
        ("template", one.get("template")),
        ("base", one.get("base") or lineage.get("base")),
        ("size", _megabytes(one.get("size_bytes"))),
        ("created", _day(one.get("created_at"))),
        ("images", f"{one['resolution']} × {one['resolution']} px" if one.get("resolution") else None),
        ("note", words_of(one.get("card_notes"))),
        ("problem", one.get("problem")),
    ]
    known = [[name, value] for name, value in rows if value]
    return {"title": str(one["id"]), "text": one.get("description") or "", "rows": known}


def _limits(client: Client) -> Section:
    limits = client.limits()
    images, queue = limits["images"], limits["queue"]
    rows = [
        ["context", f"{limits['context_len']:,} tokens"],
        ["tokens per image", f"{limits['tokens_per_image']:,} tokens"],
        ["images per question", _range(images["min"], images["max"])],
        ["longest question", f"{limits['max_question_chars']:,} characters"],
        ["largest image file", _megabytes(limits["max_upload_bytes"])],
        ["queue length", f"{queue['max']:,}"],
    ]
    return {"title": "Limits", "text": "", "rows": rows}


def _size(count: int) -> str:
    """Of what may be small: in kilobytes below a tenth of a megabyte."""
    if count >= 10**7:
        return _megabytes(count)
    return f"{count / 10**6:.1f} MB" if count >= 10**5 else f"{count / 1000:,.0f} kB"


def _storage(client: Client) -> Section:
    held = client.storage()
    rows = [[KINDS.get(kind, kind), _size(size)] for kind, size in held["sizes"].items()]
    keep_days, max_bytes = held["keep_days"], held["max_bytes"]
    if keep_days is not None:
        rows.append(["traces are kept", f"{keep_days:,} days"])
    if max_bytes is not None:
        rows.append(["limit", _size(max_bytes)])
    store = held["store"]
    if store is not None:
        behind = f", {store['waiting']:,} files wait" if store["waiting"] else ""
        rows.append(["object store", store["url"] + behind])
    return {"title": "Storage", "text": "", "rows": [["total", _size(held["total_bytes"])], *rows]}


def sections(client: Client) -> list[Section]:
    """The page's sections; an unavailable server is reported as a section."""
    try:
        return [_studio(client), *(_checkpoint(one) for one in client.checkpoints()), _limits(client), _storage(client)]
    except OmniError as error:
        return [{"title": "Omni-R1 Studio", "text": f"{error}. Start the server again: make serve.", "rows": []}]


def about_page(client: Client) -> None:
    """Builds the page inside the current Blocks."""
    header("about")
    facts = module_html(
        "studio/about.js",
        "mountAbout(element, props, watch)",
        '<div data-about class="or-about"></div>',
        elem_id="or-about",
    )
    blocks = gr.context.Context.root_block
    assert blocks is not None
    blocks.load(
        lambda: json.dumps(sections(client)), None, facts, show_progress="hidden", queue=False, api_visibility="private"
    )
