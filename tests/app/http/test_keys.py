"""With OMNI_R1_API_KEY, all but three paths require the key or the cookie of a login."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.routing import Mount, Route

from app.common.settings import Settings, SettingsError, read_settings
from app.http.auth import COOKIE_S, OPEN, ApiKey
from app.http.login import local_path
from app.main import build_page, create_app
from tests.app.conftest import Serve, Server, is_problem, parse_sse
from tests.fakes import FakeGeneration, png
from tests.patience import PATIENCE_S

KEY = "correct-horse-battery-staple"
BEARER = {"Authorization": f"Bearer {KEY}"}
PAGE = {"Accept": "text/html,application/xhtml+xml"}


def walk(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every (method, path) of these routes, with parameters filled in, including mounts and their pages."""
    for route in routes:
        path = prefix + re.sub(r"\{[^}]*\}", "x", getattr(route, "path", ""))
        if isinstance(route, Mount):
            yield "GET", f"{path}/x"
            inner = getattr(route.app, "page", route.app)  # the slot at / forwards to the pages
            yield from walk(getattr(inner, "routes", ()), path)
        elif isinstance(route, Route):
            yield from ((method, path or "/") for method in route.methods or ())
        elif hasattr(route, "original_router"):  # an included router in FastAPI
            yield from walk(route.original_router.routes, prefix)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """The app including Gradio's pages, as served."""
    app = create_app(
        Settings(home=tmp_path_factory.mktemp("home"), api_key=KEY),  # type: ignore[arg-type]
        generation=FakeGeneration(),
    )
    slot = next(route.app for route in app.routes if isinstance(route, Mount) and route.name == "page")

    async def build() -> Any:
        return build_page("http://127.0.0.1:1", KEY)

    slot.page = asyncio.run(build())  # type: ignore[attr-defined]  # outside a loop Gradio makes one and leaves it open
    return app


async def test_all_routes_but_three_require_the_key(built: FastAPI) -> None:
    routes = sorted(set(walk(built.routes)))
    paths = {path for _, path in routes}
    assert {re.sub(r"\{[^}]*\}", "x", path) for path in built.openapi()["paths"]} <= paths
    assert {"/v1/traces", "/metrics", "/docs", "/openapi.json", "/static/x", "/", "/gradio_api/queue/join"} <= paths
    assert len(routes) > 80
    transport = httpx.ASGITransport(built)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        for method, path in [*routes, ("GET", "/no-such-page"), ("PUT", "/v1/traces"), ("GET", "//readyz")]:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "omni_r1=1; omni_r1_key=x"}):
                answer = await client.request(method, path, headers=headers, params={"key": KEY, "api_key": KEY})
                if path in OPEN:
                    assert answer.status_code != 401 or method == "POST", (method, path)
                    continue
                assert answer.status_code == 401, (method, path, headers)
                assert answer.headers["www-authenticate"].startswith("Bearer")
                assert answer.headers["cache-control"] == "no-store"
                assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await client.get("/livez")).status_code == 200


async def test_websockets_require_the_key(built: FastAPI) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1")]
    scope = {
        "type": "websocket",
        "path": "/queue/join",
        "query_string": b"",
        "headers": headers,
        "subprotocols": [],
    }
    await built(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_only_the_key_opens_everything(serve: Serve) -> None:
    async with serve(api_key=KEY) as server:
        for path in ("/livez", "/readyz", "/login"):
            assert (await server.client.get(path)).status_code == 200
        for given in (KEY, KEY):
            answer = await server.client.get("/v1/traces", headers={"Authorization": f"bearer  {given}"})
            assert answer.status_code == 200
        for wrong in (
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            "Bearer",
            f"Basic {KEY}",
            KEY,
            f"Bearer é{KEY}",
        ):
            answer = await server.client.get("/v1/traces", headers={"Authorization": wrong.encode("latin-1")})
            is_problem(answer, 401, "wrong_key")
        is_problem(await server.client.get("/v1/traces"), 401, "key_required")
        is_problem(await server.client.get("/v1/traces", params={"key": KEY}), 401, "key_required")
        server.client.headers.update(BEARER)
        trace = await server.finished((await server.create())["id"])
        assert trace["status"] == "completed"
        assert (await server.client.get("/metrics")).status_code == 200
        assert (await server.client.get("/docs")).status_code == 200
        schema = (await server.client.get("/openapi.json")).json()
        assert schema["paths"]["/v1/traces"]["get"]["responses"]["401"]
        assert schema["security"] == [{"key": []}]


async def test_login_cookie_works_for_images_and_streams(serve: Serve) -> None:
    async with serve(api_key=KEY) as server:
        answer = await server.client.post("/login", json={"key": KEY})
        assert (answer.status_code, answer.content) == (204, b"")
        name, _, rest = answer.headers["set-cookie"].partition("=")
        flags = {flag.strip().lower() for flag in rest.split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/", f"max-age={COOKIE_S}"} <= flags
        assert COOKIE_S == 7 * 24 * 3600
        assert "secure" not in flags
        assert KEY not in answer.headers["set-cookie"]

        assert list(server.client.cookies) == [name]  # the client keeps it, as browsers do
        trace = await server.create()
        assert (await server.client.get(f"/v1/images/{trace['images'][0]['image_id']}")).content[:4] == b"\x89PNG"
        assert (await server.stream(trace["id"]))[-1].type == "trace.completed"
        assert (await server.client.post("/v1/images", content=png())).status_code != 401
        foreign = {"Origin": "http://evil.example"}
        is_problem(await server.client.delete(f"/v1/traces/{trace['id']}", headers=foreign), 403, "forbidden_origin")

        secure = await server.client.post("/login", json={"key": KEY}, headers={"X-Forwarded-Proto": "https"})
        assert "; secure" in secure.headers["set-cookie"].lower()


def test_cookie_is_signed_and_expires() -> None:
    time = 1_000_000.0
    key = ApiKey(KEY, clock=lambda: time)
    cookie = key.new_cookie()
    assert key.is_cookie(cookie)
    assert KEY not in cookie
    end, _, signature = cookie.partition(".")
    assert int(end) == 1_000_000 + 7 * 24 * 3600
    for forged in (
        "",
        ".",
        end,
        f"{int(end) + 1}.{signature}",
        f"{end}.{signature[:-1]}",
        f"{end}.",
        f"x.{signature}",
        "ü.ü",
    ):
        assert not key.is_cookie(forged), forged
    time += 7 * 24 * 3600 - 1
    assert key.is_cookie(cookie)
    time += 1
    assert not key.is_cookie(cookie)
    other = ApiKey(KEY + "2", clock=lambda: time)
    assert not other.is_cookie(key.new_cookie())
    assert other.cookie_name != key.cookie_name
    assert ApiKey(KEY, clock=lambda: time).is_cookie(key.new_cookie())  # valid after a restart


async def test_browser_is_redirected_to_the_login_and_back(serve: Serve) -> None:
    async with serve(api_key=KEY) as server:
        answer = await server.client.get("/gallery?q=a%20b&trace=tr_1", headers=PAGE)
        assert (answer.status_code, answer.headers["location"]) == (
            303,
            "/login?next=/gallery%3Fq%3Da%2520b%26trace%3Dtr_1",
        )
        page = await server.client.get(answer.headers["location"], headers=PAGE)
        assert page.status_code == 200
        assert 'value="/gallery?q=a%20b&amp;trace=tr_1"' in page.text
        assert (await server.client.get("/", headers=PAGE)).headers["location"] == "/login"
        fetched = await server.client.get("/v1/traces", headers=PAGE | {"Sec-Fetch-Mode": "cors"})
        is_problem(fetched, 401, "key_required")
        is_problem(await server.client.post("/v1/traces", headers=PAGE, json={}), 401, "key_required")

        form = {"key": "wrong", "next": "/gallery?q=<b>"}
        wrong = await server.client.post("/login", data=form)
        assert wrong.status_code == 401
        assert "That is not the key." in wrong.text
        assert "<b>" not in wrong.text
        assert "set-cookie" not in wrong.headers
        right = await server.client.post("/login", data={"key": f" {KEY} ", "next": "/gallery?q=a%20b"})
        assert (right.status_code, right.headers["location"]) == (303, "/gallery?q=a%20b")
        assert (await server.client.get("/v1/traces")).status_code == 200
        again = await server.client.get("/login?next=/gallery", headers=PAGE)
        assert (again.status_code, again.headers["location"]) == (303, "/gallery")
        elsewhere = await server.client.post("/login", data={"key": KEY, "next": "//evil.example/"})
        assert elsewhere.headers["location"] == "/"


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "evil",
        "",
        "/\t/evil.example",
        "/a\nb",
        "/ü",
        "/login?next=/",
    ],
)
def test_login_redirects_to_local_paths_only(wanted: str) -> None:
    assert local_path(wanted) == "/"
    assert local_path("/?trace=tr_1#x") == "/?trace=tr_1#x"


async def test_login_page_is_self_contained(serve: Serve) -> None:
    async with serve(api_key=KEY) as server:
        page = await server.client.get("/login")
        assert page.headers["content-type"].startswith("text/html")
        links = re.findall(r'(?:src|href|action)\s*=\s*"([^"]*)"|url\(([^)]*)\)', page.text)
        assert {link or url for link, url in links} == {"data:,", "/login", "/"}
        assert "<script" not in page.text
        assert "@import" not in page.text
        assert "script-src" not in page.headers["content-security-policy"]
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert page.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("application/json", b"{", 400, "malformed"),
        ("application/json", b"[]", 422, "invalid"),
        ("application/json", b'{"key": 1}', 422, "invalid"),
        ("application/json", b'{"key": "k", "more": 1}', 422, "invalid"),
        ("application/json", b'{"key": "\\ud800"}', 401, "wrong_key"),
        ("application/json", json.dumps({"key": "k" * 20_000}).encode(), 413, "body_too_large"),
        ("text/plain", KEY.encode(), 415, "not_json"),
        ("", KEY.encode(), 415, "not_json"),
    ],
)
async def test_invalid_login_is_rejected(built: FastAPI, kind: str, body: bytes, status: int, code: str) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(built), base_url="http://127.0.0.1") as client:
        answer = await client.post("/login", content=body, headers={"Content-Type": kind})
        is_problem(answer, status, code)
        assert "set-cookie" not in answer.headers


async def test_login_without_a_key_redirects(server: Server) -> None:
    assert (await server.client.get("/login?next=/gallery")).headers["location"] == "/gallery"
    answer = await server.client.post("/login", json={"key": "anything"})
    assert answer.status_code == 204
    assert "set-cookie" not in answer.headers


async def test_cors_preflight_needs_no_key(serve: Serve) -> None:
    async with serve(api_key=KEY, cors_origins=("http://friend.example",)) as server:
        friend = {"Origin": "http://friend.example"}
        ask = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        allowed = await server.client.options("/v1/traces", headers=friend | ask)
        assert allowed.status_code == 200
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        rejected = await server.client.get("/v1/traces", headers=friend)
        is_problem(rejected, 401, "key_required")
        assert rejected.headers["access-control-allow-origin"] == "http://friend.example"
        assert (await server.client.get("/v1/traces", headers=friend | BEARER)).status_code == 200


async def test_large_body_without_the_key_is_not_stored(serve: Serve) -> None:
    async with serve(api_key=KEY) as server:
        answer = await server.client.post("/v1/images", content=bytes(5_000_000), headers={"Content-Type": "image/png"})
        is_problem(answer, 401, "key_required")
        assert not list(server.home.glob("images/*"))


async def test_key_never_appears_in_logs_or_metrics(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(api_key=KEY) as server:
        with caplog.at_level(logging.DEBUG, logger="omni_r1"):
            await server.client.post("/login", json={"key": KEY})
            await server.client.post("/login", json={"key": KEY + "-mistyped"})
            await server.client.get("/v1/traces", headers={"Authorization": f"Bearer {KEY}-mistyped"})
            trace = await server.create()
            await server.stream(trace["id"])
        assert "wrong key at /login" in caplog.text
        metrics = (await server.client.get("/metrics")).text
        reported = [caplog.text, metrics, repr(server.settings), str(server.settings), repr(server.services.settings)]
        assert [text for text in reported if KEY in text] == []


def test_key_allows_binding_any_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="OMNI_R1_API_KEY"):
        read_settings(host="0.0.0.0")
    monkeypatch.setenv("OMNI_R1_API_KEY", KEY)
    settings = read_settings(host="0.0.0.0")
    assert settings.host == "0.0.0.0"
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == KEY


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\n", "k" * 1001])
def test_unsendable_key_is_rejected_without_showing_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OMNI_R1_API_KEY", key)
    with pytest.raises(SettingsError, match="OMNI_R1_API_KEY") as refusal:
        read_settings()
    assert not key or key not in str(refusal.value)
    with pytest.raises(ValidationError):
        Settings(api_key=key)  # type: ignore[arg-type]


def test_server_on_all_addresses_reaches_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import app.main as main_module

    seen: list[str] = []

    def run(self: Any, sockets: list[Any]) -> None:
        seen.append(self._runtime.base_url)
        sockets[0].close()

    monkeypatch.setattr(main_module.StudioServer, "run", run)
    for host, reached in (("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "127.0.0.1")):
        settings = Settings(home=tmp_path / host, host=host, api_key=KEY)  # type: ignore[arg-type]
        app = create_app(settings, generation=FakeGeneration())
        sock = main_module.bind(host, 0)
        port = sock.getsockname()[1]
        main_module.run_app(app, sock)
        assert seen.pop() == f"http://{reached}:{port}"


async def body_sent_with_the_key(server: Server) -> dict[str, Any]:
    headers = BEARER | {"Content-Type": "image/png"}
    image = (await server.client.post("/v1/images", content=png(), headers=headers)).json()["image_id"]
    return {"question": "Where is the red star?", "images": [{"image_id": image}]}


async def test_event_streams_end_normally_with_a_key(serve: Serve) -> None:
    async with serve(api_key=KEY) as server:
        body = await body_sent_with_the_key(server)
        headers = BEARER | {"Accept": "text/event-stream"}
        async with server.client.stream("POST", "/v1/traces", json=body, headers=headers) as answer:
            assert answer.status_code == 201
            events = parse_sse(await answer.aread())
        assert events[-1].type == "trace.completed"
        async with (
            asyncio.timeout(PATIENCE_S),
            server.client.stream("GET", f"{answer.headers['location']}/events") as rejected,
        ):
            assert rejected.status_code == 401
