"""HTTP behaviour of all routes: HEAD, ETags, compression, known parameters, no 5xx for bad requests."""

from __future__ import annotations

import gzip
import json
import logging
import re
from typing import Any

import pytest

from app.common.logs import LineFormatter
from app.contract.problems import speaks_openai
from app.http.compression import accepts_gzip
from app.http.conditional import matches
from tests.app.conftest import Serve, Server, is_problem
from tests.fakes import png

AWKWARD = (
    "[",
    "http://[",
    "http://[::1",
    "\x00",
    "é",
    "null",
    "a" * 5000,
    "-1",
    "9" * 400,
    "[" * 2000,
    '"',
    ";;=;",
    "%",
)


async def concrete(server: Server) -> dict[str, str]:
    """A path for every GET route of the schema, with existing ids where possible."""
    image = await server.image()
    trace = await server.create(partial_images=8)
    events = await server.stream(trace["id"])
    partial = next(event.data["url"] for event in events if event.type == "image.partial" and event.data["url"])
    known = {"trace_id": trace["id"], "image_id": image, "checkpoint_id": "nano-omni-r1", "job_id": "job_" + "0" * 20}
    schema = (await server.client.get("/openapi.json")).json()
    paths = {}
    for path, operations in schema["paths"].items():
        if "get" in operations:
            paths[path] = re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], "log.txt"), path)
    paths["/v1/traces/{trace_id}/partials/{name}"] = partial
    paths["/v1/tasks"] += "?slice=natural&seed=1000000000"
    return paths


async def test_every_get_route_answers_head(server: Server) -> None:
    paths = await concrete(server)
    for path in [*paths.values(), "/docs", "/openapi.json", "/static/logo.svg", "/nowhere", "/v1/nowhere"]:
        if path == "/metrics":  # its values change
            continue
        get = await server.client.get(path)
        head = await server.client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        for name in ("content-type", "content-length", "etag", "cache-control"):
            assert head.headers.get(name) == get.headers.get(name), (path, name)


async def test_head_never_starts_an_event_stream(server: Server) -> None:
    trace = await server.create()
    head = await server.client.head(f"/v1/traces/{trace['id']}/events")
    assert head.status_code == 200
    assert head.headers["content-type"].startswith("text/event-stream")
    assert server.services.events.open_streams == 0


async def test_known_etag_returns_304(server: Server) -> None:
    paths = await concrete(server)
    tagged = 0
    for path in [*paths.values(), "/static/logo.svg", "/static/viewer/viewer.js"]:
        etag = (await server.client.get(path)).headers.get("etag")
        if etag is None:
            continue
        tagged += 1
        for value in (etag, f"W/{etag}", f'"other", {etag}', "*", f'"a,b",{etag}'):
            answer = await server.client.get(path, headers={"if-none-match": value})
            assert (answer.status_code, answer.content) == (304, b""), (path, value)
            assert answer.headers["etag"] == etag
            assert (await server.client.head(path, headers={"if-none-match": value})).status_code == 304
        for value in ('"other"', etag.strip('"'), "", '"'):
            assert (await server.client.get(path, headers={"if-none-match": value})).status_code == 200, value
    assert tagged >= 4


async def test_unsafe_method_ignores_if_none_match(server: Server) -> None:
    answer = await server.client.post("/v1/traces", json=await server.body(), headers={"if-none-match": "*"})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("header", "etag", "same"),
    [
        ('"a"', '"a"', True),
        ('W/"a"', '"a"', True),
        ('"a"', 'W/"a"', True),
        ('"x", "a"', '"a"', True),
        ("*", '"a"', True),
        ("*", None, False),
        ('"ab"', '"a"', False),
        ("a", '"a"', False),
        ("", '"a"', False),
    ],
)
def test_etags_are_compared_weakly(header: str, etag: str | None, same: bool) -> None:
    assert matches(header, etag) is same


async def test_json_is_compressed_event_streams_are_not(server: Server) -> None:
    async def raw(server: Server, path: str, accept: str) -> tuple[Any, bytes]:
        async with server.client.stream("GET", path, headers={"accept-encoding": accept}) as answer:
            return answer, b"".join([chunk async for chunk in answer.aiter_raw()])

    trace = await server.create()
    await server.stream(trace["id"])
    plain, expected = await raw(server, "/openapi.json", "identity")
    packed, body = await raw(server, "/openapi.json", "gzip, br")
    assert packed.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(body)) == json.loads(expected)
    assert len(body) < len(expected) / 3
    for answer in (plain, packed):
        assert "accept-encoding" in answer.headers["vary"].lower()
    rejected, body = await raw(server, "/openapi.json", "gzip;q=0, identity")
    assert "content-encoding" not in rejected.headers
    assert body == expected
    stream, _ = await raw(server, f"/v1/traces/{trace['id']}/events", "gzip")
    assert "content-encoding" not in stream.headers
    assert "no-transform" in stream.headers["cache-control"]
    image, body = await raw(server, f"/v1/images/{await server.image()}", "gzip")
    assert "content-encoding" not in image.headers
    assert body.startswith(b"\x89PNG")
    small, _ = await raw(server, "/livez", "gzip")
    assert "content-encoding" not in small.headers


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("*", True),
        ("x-gzip", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*;q=0", False),
        ("gzip;q=nan", False),
        ("gzip;q=no", False),
        ("gzipped", False),
    ],
)
def test_accept_encoding_weights_are_respected(header: str, accepted: bool) -> None:
    assert accepts_gzip([header]) is accepted


async def test_unknown_query_parameters_are_rejected(server: Server) -> None:
    schema = (await server.client.get("/openapi.json")).json()
    for path, operations in schema["paths"].items():
        if not path.startswith("/v1/"):
            continue
        for method in operations:
            url = re.sub(r"\{\w+\}", "nano-omni-r1", path)
            for query in ("no_such_parameter=1", "Limit=5", "no_such_parameter="):
                answer = await server.client.request(method.upper(), f"{url}?{query}", json={})
                if speaks_openai(path):
                    error = answer.json()["error"]
                    assert (answer.status_code, error["param"]) == (400, query.partition("=")[0]), (method, path, error)
                    continue
                found = is_problem(answer, 422, "invalid")
                assert any(error["path"].startswith("query.") for error in found["errors"]), (method, path, found)


@pytest.mark.parametrize("kind", ["traces", "jobs"])
async def test_malformed_after_is_rejected(server: Server, kind: str) -> None:
    prefix = {"traces": "tr_", "jobs": "job_"}[kind]
    for after in ("x", "", "0", prefix, prefix + "0" * 19, prefix + "0" * 21, prefix.upper() + "0" * 20, "\x00"):
        is_problem(await server.client.get(f"/v1/{kind}", params={"after": after}), 422, "invalid", "query.after")
    answer = await server.client.get(f"/v1/{kind}", params={"after": prefix + "0" * 20})
    assert answer.json() == {"data": [], "has_more": False}


async def test_deleted_trace_id_still_pages(server: Server) -> None:
    ids = [(await server.create())["id"] for _ in range(3)]
    for trace_id in ids:
        await server.stream(trace_id)
    await server.client.delete(f"/v1/traces/{ids[1]}")
    page = (await server.client.get("/v1/traces", params={"after": ids[1]})).json()
    assert [trace["id"] for trace in page["data"]] == [ids[0]]


async def test_metric_types_match_their_names(server: Server) -> None:
    before = (await server.client.get("/metrics")).text
    await server.finished((await server.create())["id"])
    after = (await server.client.get("/metrics")).text
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", after, re.MULTILINE))
    assert types["omni_r1_events_total"] == types["omni_r1_event_commits_total"] == "counter"
    assert all(name.endswith("_total") for name, kind in types.items() if kind == "counter")
    assert not [name for name, kind in types.items() if name.endswith("_total") and kind != "counter"]

    def value(text: str, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    assert value(after, "omni_r1_events_total") > value(before, "omni_r1_events_total")


async def test_unknown_page_links_back(server: Server) -> None:
    for path in ("/nowhere", "/studio/x", "/<script>alert(1)</script>", "/pwa_icon/999", "/gradio_api/upload"):
        page = await server.client.get(path, headers={"accept": "text/html,*/*;q=0.8"})
        assert page.status_code == 404
        assert page.headers["content-type"].startswith("text/html")
        assert 'href="/"' in page.text
        assert "<script>alert" not in page.text
        is_problem(await server.client.get(path), 404, "not_found")


async def test_pages_cannot_be_framed(server: Server) -> None:
    for path in ("/", "/docs", "/nowhere", "/v1/nowhere", "/v1/traces", "/static/logo.svg", "/livez"):
        answer = await server.client.get(path, headers={"accept": "text/html"})
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], path
        assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("key", [None, "a-key-that-nobody-knows"])
async def test_awkward_headers_never_cause_5xx(serve: Serve, key: str | None) -> None:
    names = (
        "origin",
        "referer",
        "cookie",
        "range",
        "authorization",
        "accept",
        "content-type",
        "if-none-match",
        "last-event-id",
        "idempotency-key",
        "sec-fetch-site",
        "accept-encoding",
        "x-forwarded-for",
    )
    async with serve(**({"api_key": key} if key else {})) as server:
        for name in names:
            for value in AWKWARD:
                for method, path in (
                    ("GET", "/v1/traces"),
                    ("POST", "/v1/traces"),
                    ("POST", "/login"),
                    ("POST", "/v1/images"),
                ):
                    header = {name: value.replace("\x00", "\x01").encode("utf-8")}
                    answer = await server.client.request(method, path, content=b"{}", headers=header)
                    assert answer.status_code < 500, (name, value[:20], method, path, answer.text)


@pytest.mark.parametrize("path", ["/login", "/v1/traces", "/v1/jobs", "/v1/checkpoints", "/v1/limits"])
async def test_awkward_bodies_never_cause_5xx(serve: Serve, path: str) -> None:
    bodies = (
        b"[" * 2000,
        b'{"a":' * 3000,
        b"\xff\xfe{}",
        b"NaN",
        b'"\\ud800"',
        b"9" * 10_000,
        b"",
        b"\x00",
        b"[1e999]",
    )
    kinds = (
        "application/json",
        "application/json; charset=nonsense",
        "multipart/form-data; boundary=" + "b" * 5000,
        "multipart/form-data",
        "application/x-www-form-urlencoded",
        "text/plain",
        "",
    )
    async with serve(**({"api_key": "a-key-that-nobody-knows"} if path == "/login" else {})) as server:
        for body in bodies:
            for kind in kinds:
                answer = await server.client.post(path, content=body, headers={"content-type": kind})
                assert 400 <= answer.status_code < 500, (body[:20], kind, answer.text)


@pytest.mark.parametrize("field", ["file", "files", ""])
async def test_form_with_long_boundary_is_rejected(server: Server, field: str) -> None:
    for length in (1, 70, 71, 5000, 60_000):
        boundary = "b" * length
        body = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="x"\r\n\r\n'.encode()
        body += png() + f"\r\n--{boundary}--\r\n".encode()
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        for path in ("/v1/images", "/v1/datasets"):
            answer = await server.client.post(path, content=body, headers=headers)
            assert answer.status_code < 500, (length, answer.text)


def test_log_lines_have_no_control_characters() -> None:
    record = logging.LogRecord(
        "omni_r1.x", logging.INFO, "x.py", 1, "path /%s", ("\x1b[31m\r\n\x9b\x00\u2028\u202e\x7f",), None
    )
    line = LineFormatter(as_json=False).format(record)
    assert "\\x1b[31m" in line
    assert all(char.isprintable() or char == " " for char in line), line
    assert all(char.isprintable() or char == " " for char in LineFormatter(as_json=True).format(record))


async def test_server_without_pages_leads_to_its_documentation(server: Server) -> None:
    """As with `OMNI_R1_PAGES=0`."""
    assert (await server.client.get("/")).headers["location"] == "docs"
    assert (await server.client.get("/", follow_redirects=True)).status_code == 200
    for path in ("/gallery", "/config", "/nowhere"):
        is_problem(await server.client.get(path), 404, "not_found")
