"""Exports of traces: what each format holds, what is left out, and bad input."""

from __future__ import annotations

import html
import io
import json
import re
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.app.conftest import Serve, Server, both_databases, is_problem, without_store
from tests.app.traces.test_curation import completed, patch
from tests.fakes import FakeGeneration, answer_items, held, png, step_items
from training.data.traces import read_traces

FORMATS = ("json", "jsonl", "zip", "html")
HOSTILE = (
    "<script>alert(1)</script> </style> </title> <!-- {{ 7 * 7 }} {% raw %} $\\frac{1}{2}$ =1+1 &amp; \" ' ` \u2028 "
    "<img src=x onerror=alert(1)> javascript:alert(1) http://example.com/a.png"
)


async def export(server: Server, format: str = "jsonl", **selection: Any) -> httpx.Response:
    answer = await server.client.post("/v1/exports", json={"format": format, **selection})
    assert answer.status_code == 200, answer.text
    return answer


async def export_one(server: Server, trace_id: str, format: str) -> httpx.Response:
    answer = await server.client.get(f"/v1/traces/{trace_id}/export", params={"format": format})
    assert answer.status_code == 200, answer.text
    return answer


def rows(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def row_ids(answer: httpx.Response) -> list[str]:
    return [row["trace_id"] for row in rows(answer)]


def without_answer(_request: Any) -> list[Any]:
    return [*step_items(1, "I look.", png(box=9)), *answer_items("")]


async def test_json_is_the_trace(server: Server) -> None:
    ids = await completed(server, 2, rating=1, tags=["keep"], note="n")
    traces = [await server.get(trace_id) for trace_id in ids]
    assert (await export_one(server, ids[0], "json")).json() == traces[0]
    assert (await export(server, "json", trace_ids=ids[:1])).json() == traces[:1]
    assert (await export(server, "json", trace_ids=ids)).json() == traces
    assert (await export(server, "json", filter={"tag": "nothing has it"})).json() == []


@pytest.mark.parametrize(
    ("format", "media_type"),
    [
        ("json", "application/json"),
        ("jsonl", "application/x-ndjson"),
        ("zip", "application/zip"),
        ("html", "text/html; charset=utf-8"),
    ],
)
async def test_headers_name_type_and_file(server: Server, format: str, media_type: str) -> None:
    (trace_id,) = await completed(server)
    for answer, name in (
        (await export_one(server, trace_id, format), trace_id),
        (await export(server, format, trace_ids=[trace_id]), "traces"),
    ):
        assert answer.headers["content-type"] == media_type
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}.{format}"'
        assert answer.headers["content-security-policy"].startswith("sandbox;")
        assert answer.headers["x-skipped"] == "0"
        assert "content-length" not in answer.headers  # a stream


async def test_jsonl_reads_back_as_the_trace(server: Server, tmp_path: Path) -> None:
    ids = await completed(server, 2)
    file = tmp_path / "traces.jsonl"
    file.write_bytes((await export(server, trace_ids=ids)).content)
    for trace_id, sample in zip(ids, list(read_traces(file)), strict=True):
        trace = await server.get(trace_id)
        assert sample.question == trace["question"]
        assert sample.answer == trace["answer"]
        assert [step.text for step in sample.steps] == [step["text"] for step in trace["steps"]]
        shown = [*trace["images"], *(step["image"] for step in trace["steps"])]
        read = [*sample.images, *(step.image for step in sample.steps)]
        for image, given in zip(read, shown, strict=True):
            stored = Image.open(io.BytesIO((await server.client.get(given["url"])).content))
            assert isinstance(image, Image.Image)
            assert image.tobytes() == stored.convert("RGB").tobytes()


@both_databases
async def test_filter_selects_and_counts_what_it_skips(serve: Serve, engine: FakeGeneration) -> None:
    async with serve() as server:
        good = await completed(server, 3, rating=1, tags=["keep"])
        engine.script = without_answer
        (empty,) = await completed(server, tags=["keep"])
        engine.script = held
        running = (await server.create())["id"]
        await server.until(running, "step.completed")
        await patch(server, running, tags=["keep"])
        found = await export(server, filter={"tag": "keep"})
        assert (row_ids(found), found.headers["x-skipped"]) == (good[::-1], "2")
        found = await export(server, "json", filter={"tag": "keep"})
        assert [trace["id"] for trace in found.json()] == [empty, *good[::-1]]
        assert found.headers["x-skipped"] == "1"
        assert row_ids(await export(server, filter={"rating": 1})) == good[::-1]
        assert row_ids(await export(server, filter={"tag": "keep", "rating": -1})) == []
        everything = await export(server, filter={})
        assert (row_ids(everything), everything.headers["x-skipped"]) == (good[::-1], "2")
        given = await export(server, trace_ids=[good[1], empty, good[0], good[1]])
        assert (row_ids(given), given.headers["x-skipped"]) == ([good[1], good[0]], "1")
        engine.go("end")
        await server.finished(running)


async def test_trace_that_is_no_training_data_is_refused_alone(server: Server) -> None:
    made = await server.create(mode="step")
    await server.until(made["id"], "trace.paused")
    found = await server.client.get(f"/v1/traces/{made['id']}/export?format=jsonl")
    is_problem(found, 422, "invalid", "query.format")
    assert (await export_one(server, made["id"], "json")).json()["status"] == "paused"
    assert "none: the trace is paused" in (await export_one(server, made["id"], "html")).text


async def test_live_traces_are_not_exported_by_id(server: Server, engine: FakeGeneration) -> None:
    (done,) = await completed(server)
    engine.script = held
    running = (await server.create())["id"]
    await server.until(running, "step.completed")
    for format in FORMATS:
        path = f"/v1/traces/{running}/export"
        is_problem(await server.client.get(path, params={"format": format}), 409, "trace_live")
        body = {"trace_ids": [done, running], "format": format}
        is_problem(await server.client.post("/v1/exports", json=body), 409, "trace_live")
    engine.go("end")
    await server.finished(running)


async def test_zip_holds_json_images_and_page(server: Server) -> None:
    ids = await completed(server, 2)
    with zipfile.ZipFile(io.BytesIO((await export(server, "zip", trace_ids=ids)).content)) as archive:
        assert archive.testzip() is None
        names = ("trace.json", "trace.html", "question-1.png", "step-1.png", "step-2.png")
        assert archive.namelist() == [f"{trace_id}/{name}" for trace_id in ids for name in names]
        for trace_id in ids:
            trace = await server.get(trace_id)
            assert json.loads(archive.read(f"{trace_id}/trace.json")) == trace
            drawn = await server.client.get(trace["steps"][1]["image"]["url"])
            assert archive.read(f"{trace_id}/step-2.png") == drawn.content
            page = (await export_one(server, trace_id, "html")).content
            assert archive.read(f"{trace_id}/trace.html") == page
            assert archive.getinfo(f"{trace_id}/trace.json").date_time[0] >= 2026


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_page_shows_everything_and_needs_nothing(server: Server) -> None:
    (trace_id,) = await completed(server, rating=-1, tags=["a", "b"], note="Look at step 2.")
    trace = await server.get(trace_id)
    page = Page((await export_one(server, trace_id, "html")).text)
    sampling = trace["sampling"]
    for word in (
        *(trace[name] for name in ("question", "answer", "note", "id", "created_at")),
        *(step["text"] for step in trace["steps"]),
        "a, b",
        "bad",
        f"{trace['checkpoint']}, version {trace['weight_version']}",
        f"temperature {sampling['temperature']}, top-p {sampling['top_p']}, seed {sampling['seed']}",
    ):
        assert word in page.text, word
    images = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 3
    assert all(source.startswith("data:image/png;base64,") for source in images)
    assert_needs_nothing(page)


def assert_needs_nothing(page: Page) -> None:
    assert {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base", "form", "a"} == set()
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith("data:"), (tag, attrs)
        assert not [name for name in attrs if name.startswith("on")]
    (style,) = page.style
    assert "url(" not in style
    assert "@import" not in style


async def test_hostile_text_stays_text(server: Server, engine: FakeGeneration) -> None:
    engine.script = lambda _request: [*step_items(1, HOSTILE, png(box=5)), *answer_items(HOSTILE)]
    made = await server.create(question=HOSTILE)
    await server.finished(made["id"])
    await patch(server, made["id"], note=HOSTILE, tags=["<b>bold</b>", "</style><script>"])
    text = (await export_one(server, made["id"], "html")).text
    page = Page(text)
    assert_needs_nothing(page)
    assert [attrs.get("src", "")[:10] for tag, attrs in page.tags if tag == "img"] == ["data:image"] * 2
    assert page.text.count(HOSTILE) == 4
    assert "</style><script>, <b>bold</b>" in page.text
    assert html.escape("<script>") in text
    (row,) = rows(await export_one(server, made["id"], "jsonl"))
    assert row["Final Answer"] == HOSTILE.strip()


async def test_page_of_more_than_twenty_traces_is_rejected(server: Server) -> None:
    ids = await completed(server, 21)
    assert len(Page((await export(server, "html", trace_ids=ids[:20])).text).tags) > 20
    for selection in ({"trace_ids": ids}, {"filter": {}}):
        answer = await server.client.post("/v1/exports", json={"format": "html", **selection})
        is_problem(answer, 422, "invalid", "body.format")
    assert len(zipfile.ZipFile(io.BytesIO((await export(server, "zip", filter={})).content)).namelist()) == 21 * 5


BAD: list[tuple[dict[str, Any], str]] = [
    ({"format": "jsonl"}, "body"),
    ({"format": "jsonl", "trace_ids": ["tr_x"], "filter": {}}, "body"),
    ({"format": "pdf", "filter": {}}, "body.format"),
    ({"filter": {}}, "body.format"),
    ({"format": "jsonl", "trace_ids": []}, "body.trace_ids"),
    ({"format": "jsonl", "trace_ids": ["tr_nobody"]}, "body.trace_ids.0"),
    ({"format": "jsonl", "trace_ids": ["a\0"]}, "body.trace_ids.0"),
    ({"format": "jsonl", "trace_ids": ["x"] * 10_001}, "body.trace_ids"),
    ({"format": "jsonl", "trace_ids": "tr_x"}, "body.trace_ids"),
    ({"format": "jsonl", "filter": {"rating": 2}}, "body.filter.rating"),
    ({"format": "jsonl", "filter": {"tag": ""}}, "body.filter.tag"),
    ({"format": "jsonl", "filter": {"colour": "red"}}, "body.filter.colour"),
    ({"format": "jsonl", "filter": {"status": "done"}}, "body.filter.status"),
]


async def test_invalid_exports_name_the_field(server: Server) -> None:
    for body, path in BAD:
        is_problem(await server.client.post("/v1/exports", json=body), 422, "invalid", path)
    (trace_id,) = await completed(server)
    for params in ({}, {"format": "pdf"}, {"format": "json", "as": "file"}):
        is_problem(await server.client.get(f"/v1/traces/{trace_id}/export", params=params), 422, "invalid")
    missing = await server.client.get("/v1/traces/tr_nothing/export", params={"format": "json"})
    is_problem(missing, 404, "trace_not_found")


@without_store
async def test_missing_image_is_a_problem_not_half_a_file(server: Server) -> None:
    (trace_id,) = await completed(server)
    step = (await server.get(trace_id))["steps"][0]
    server.services.images.path(step["image"]["image_id"]).unlink()
    for format in ("jsonl", "zip", "html"):
        answer = await server.client.get(f"/v1/traces/{trace_id}/export", params={"format": format})
        is_problem(answer, 404, "image_not_found")
    assert (await export_one(server, trace_id, "json")).json()["id"] == trace_id


async def test_trace_deleted_meanwhile_is_left_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = await completed(server, 3)
    monkeypatch.setattr("app.traces.records.exports._PIECE", 1)
    async with server.client.stream("POST", "/v1/exports", json={"trace_ids": ids, "format": "jsonl"}) as answer:
        # The first piece is made before the headers.
        await server.client.delete(f"/v1/traces/{ids[2]}")
        lines = [line async for line in answer.aiter_lines()]
    assert [json.loads(line)["trace_id"] for line in lines][:2] == ids[:2]
    assert len(lines) in (2, 3)  # the stream may have been faster


async def test_same_key_gives_the_same_file(server: Server) -> None:
    ids = await completed(server, 2)
    body = {"trace_ids": ids, "format": "zip"}
    files = [await server.client.post("/v1/exports", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert files[0].content == files[1].content
    bad = await server.client.post("/v1/exports", json=body, headers={"Idempotency-Key": "a b"})
    is_problem(bad, 422, "invalid", "header.Idempotency-Key")


async def test_head_of_an_export_has_no_body(server: Server) -> None:
    (trace_id,) = await completed(server)
    answer = await server.client.head(f"/v1/traces/{trace_id}/export", params={"format": "jsonl"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["x-skipped"] == "0"
