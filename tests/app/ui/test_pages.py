"""The pages without a server: Gradio's configuration, and the About page's content."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import StreamingResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from app.client import Client
from app.common.build import static_path
from app.common.locations import STATIC
from app.common.prefix import ROOT, SCOPE_KEY
from app.ui.about import sections, words_of
from app.ui.assets import static_files
from app.ui.page import build_ui, head, mount_ui, theme
from app.ui.root import RootMiddleware
from app.ui.training import presets
from training.spec.spec import parse_spec

LIMITS = {
    "context_len": 768,
    "tokens_per_image": 66,
    "images": {"min": 1, "max": 1},
    "max_question_chars": 4000,
    "max_upload_bytes": 20_000_000,
    "queue": {"running": 0, "waiting": 0, "max": 64},
}
STORAGE = {
    "sizes": {"images": 2_000_000},
    "total_bytes": 2_000_000,
    "keep_days": 30,
    "max_bytes": 5_000_000_000,
    "store": {"url": "s3://studio", "waiting": 1_200},
}
CHECKPOINT = {
    "id": "nano-omni-r1",
    "active": True,
    "licence": "MIT",
    "description": "The embedded model.",
    "size_bytes": 30_000_000,
    "created_at": "2026-11-22T19:57:00+02:00",
    "resolution": 64,
    "card_notes": {"own_pictures": "On a photo its answer is a guess."},
}


def canned(answers: dict[str, Any]) -> Client:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path not in answers:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, json=answers[request.url.path])

    return Client("http://127.0.0.1:1", transport=httpx.MockTransport(answer))


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    async def build() -> dict[str, Any]:
        return build_ui(canned({})).get_config_file()

    return asyncio.run(build())  # outside a loop Gradio creates one and leaves it open


def test_building_the_pages_sends_no_request(config: dict[str, Any]) -> None:
    assert [page[0] for page in config["pages"]] == ["", "gallery", "training", "runs", "checkpoints", "about"]


def test_no_tab_keeps_a_gradio_connection(config: dict[str, Any]) -> None:
    assert config["connect_heartbeat"] is False


def test_no_event_uses_gradios_queue(config: dict[str, Any]) -> None:
    assert [one["targets"] for one in config["dependencies"] if one["queue"] is not False] == []


async def test_gradios_queue_is_stopped() -> None:
    page = FastAPI()
    mount_ui(page, canned({}))
    async with page.router.lifespan_context(page):
        for _ in range(100):  # the queue's tasks take some milliseconds to notice that it is closed
            names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
            found = [name for name in names if name.startswith("Queue.")]
            if not found:
                break
            await asyncio.sleep(0.05)
        assert found == []


def test_studio_buttons_need_no_python(config: dict[str, Any]) -> None:
    named = {part["props"].get("elem_id"): part["id"] for part in config["components"]}
    for name in ("reason", "step", "pause", "continue", "finish", "stop"):
        events = [one for one in config["dependencies"] if [named[f"or-{name}"], "click"] in map(list, one["targets"])]
        assert len(events) == 1
        assert events[0]["backend_fn"] is False
        assert "window.omniR1" in events[0]["js"]


def test_building_the_pages_writes_no_files(config: dict[str, Any]) -> None:
    assert config
    import app.ui

    assert list(Path(app.ui.__file__).parents[1].glob("*.pyi")) == []


def test_fonts_come_from_the_system() -> None:
    css = theme()._get_theme_css()
    assert "system-ui" in css
    assert "url('http" not in css.replace('"', "'")
    assert "@import" not in css
    assert theme()._stylesheets == []


def test_about_shows_checkpoint_card_and_limits() -> None:
    ready = {"phase": "ready", "checkpoint": "nano-omni-r1", "weight_version": 1, "detail": ""}
    found = {"/readyz": ready, "/v1/checkpoints": {"data": [CHECKPOINT]}, "/v1/limits": LIMITS, "/v1/storage": STORAGE}
    reported = sections(canned(found))
    assert [section["title"] for section in reported] == ["Omni-R1 Studio", "nano-omni-r1", "Limits", "Storage"]
    rows = dict(reported[1]["rows"])
    assert rows["size"] == "30 MB"
    assert rows["created"] == "2026-11-22 17:57 UTC"
    assert rows["note"] == "On a photo its answer is a guess."
    assert "base" not in rows  # unknown, so not shown
    limits = dict(reported[2]["rows"])
    assert limits["context"] == "768 tokens"
    assert limits["images per question"] == "1"
    assert limits["largest image file"] == "20 MB"
    storage = dict(reported[3]["rows"])
    sizes = {"total": "2.0 MB", "images": "2.0 MB", "traces are kept": "30 days", "limit": "5,000 MB"}
    assert storage == sizes | {"object store": "s3://studio, 1,200 files wait"}


def test_about_suggests_a_remedy_without_a_server() -> None:
    (only,) = sections(canned({}))
    assert "make serve" in only["text"]


def test_card_notes_become_one_paragraph() -> None:
    assert words_of("a") == "a"
    assert words_of(["a", "b"]) == "a b"
    assert words_of({"x": "a", "y": "b"}) == "a b"
    assert words_of(None) == ""


def test_static_files_are_revalidated() -> None:
    client = TestClient(Starlette(routes=[Mount("/static", static_files())]))
    ours = client.get("/static/viewer/viewer.js")
    assert ours.headers["cache-control"] == "no-cache"
    assert "javascript" in ours.headers["content-type"]
    assert client.get("/static/viewer/viewer.js", headers={"if-none-match": ours.headers["etag"]}).status_code == 304
    assert client.get("/static/js/iframeResizer.contentWindow.min.js").status_code == 200


def test_addresses_of_the_build_are_kept() -> None:
    client = TestClient(Starlette(routes=[Mount("/static", static_files())]))
    ours = client.get(static_path("viewer/viewer.js"))
    assert ours.content == (STATIC / "viewer/viewer.js").read_bytes()
    assert "immutable" in ours.headers["cache-control"]
    earlier = client.get("/static/v-00000000/viewer/viewer.js")
    assert earlier.content == ours.content
    assert earlier.headers["cache-control"] == "no-cache"
    for path in (static_path("viewer/gone.js"), static_path("../README.md"), "/static/v-", "/static/v-00000000"):
        gone = client.get(path)
        assert gone.status_code == 404, path
        assert "immutable" not in gone.headers.get("cache-control", "")


def test_pages_name_the_build_in_every_address(config: dict[str, Any]) -> None:
    text = head() + json.dumps(config["components"])
    named = re.findall(r"/static/[\w./-]+", text)
    assert len(named) > 20
    assert all(address.startswith(static_path("")) for address in named), named


@pytest.mark.parametrize("prefix", ["", "/lab/studio"])
def test_pages_get_the_prefix_of_their_request(prefix: str) -> None:
    text = f'<a href="{ROOT}/gallery">{ROOT}'
    halves = (text[:12].encode(), text[12:].encode())  # the first one ends within the placeholder

    def answer(media_type: str) -> Any:
        body = Route("/", lambda _: StreamingResponse(iter(halves), 200, {}, media_type))
        pages = Starlette(routes=[body], middleware=[Middleware(RootMiddleware)])

        async def behind(scope: Any, receive: Any, send: Any) -> None:
            await pages(scope | {SCOPE_KEY: prefix}, receive, send)

        return TestClient(behind).get("/")

    for media_type in ("text/html", "application/json"):
        page = answer(media_type)
        assert page.text == f'<a href="{prefix}/gallery">{prefix}'
        assert page.headers["content-length"] == str(len(page.content))
    assert answer("text/javascript").text == text


def test_every_page_links_to_all_others(config: dict[str, Any]) -> None:
    headers = [part["props"]["html_template"] for part in config["components"] if "or-header" in str(part["props"])]
    assert len(headers) == len(config["pages"])
    for template in headers:
        assert re.findall(r'data-link="(\w+)"', template)[1:] == [
            "studio",
            "gallery",
            "training",
            "runs",
            "checkpoints",
            "about",
        ]
        assert template.count("aria-current=page") == 1


def test_offered_presets_are_valid() -> None:
    offered = json.loads(presets())
    assert [one["title"] for one in offered if one["card"]] == ["PeSFT", "PeRPO", "Zero"]
    for one in offered:
        assert parse_spec(one["spec"]).method == one["spec"]["method"]
