"""Behind a proxy that shows the studio below a path prefix; it may strip the prefix, and may name it in a header."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from app.cli.main import main
from app.client import Client
from app.common.prefix import OWN, checked_prefix
from app.common.settings import SettingsError, read_settings
from app.contract.words import PAGES
from tests.app.conftest import Serve, Server, is_problem
from tests.app.proxy import running_proxy
from tests.fakes import png
from tests.patience import PATIENCE_S

HTML = {"accept": "text/html", "sec-fetch-mode": "navigate"}
# How the server learns the prefix, and whether the proxy strips it.
both_proxies = pytest.mark.parametrize(("root_path", "strip"), [("/studio", False), ("", True)])


def web(base: str) -> httpx.AsyncClient:
    """A client whose paths are below `base`."""
    return httpx.AsyncClient(base_url=base, timeout=PATIENCE_S)


def calls(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Method and path of every operation of an OpenAPI document; no id in a path exists."""
    for path, operations in document["paths"].items():
        for method in operations:
            yield method.upper(), re.sub(r"\{(\w+)\}", "none", path)


@both_proxies
async def test_every_route_is_reachable(serve: Serve, root_path: str, strip: bool) -> None:
    async with serve(root_path=root_path) as server:
        with running_proxy(f"http://127.0.0.1:{server.port}", strip=strip, named=not root_path) as base:
            async with web(base) as client:
                document = (await client.get("/openapi.json")).json()
                assert document["servers"] == [{"url": "/studio"}]
                operations = list(calls(document))
                assert len(operations) > 50
                for method, path in operations:
                    there = await client.request(method, path)
                    here = await server.client.request(method, path)
                    assert there.status_code == here.status_code, (method, path, there.text)
                    kind = there.headers.get("content-type")
                    assert kind == here.headers.get("content-type")
                    if kind == "application/problem+json":
                        assert there.json()["code"] == here.json()["code"] != "method_not_allowed"
                        assert there.json()["instance"] == f"/studio{path}"


@both_proxies
async def test_addresses_in_headers_have_the_prefix_and_those_in_json_do_not(
    serve: Serve, root_path: str, strip: bool
) -> None:
    async with serve(root_path=root_path) as server:
        with running_proxy(f"http://127.0.0.1:{server.port}", strip=strip, named=not root_path) as base:
            async with web(base) as client:
                stored = await client.post("/v1/images", content=png(), headers={"content-type": "image/png"})
                url = stored.json()["url"]
                assert url.startswith("/v1/images/")
                assert stored.headers["location"] == f"/studio{url}"
                asked = {"question": "Where?", "images": [{"image_id": stored.json()["image_id"]}]}
                created = await client.post("/v1/traces", json=asked)
                where = urljoin(f"{base}/", created.headers["location"])
                assert (await client.get(where)).json()["id"] == created.json()["id"]
                assert (await client.get(url)).content == (await client.get(stored.headers["location"][7:])).content

                gone = await client.get("/nothing", headers=HTML)
                assert gone.status_code == 404
                assert set(re.findall(r'href="([^"]+)"', gone.text)) == {"/studio/static/logo.svg", "/studio/"}
                if not strip:
                    start = await client.get(f"{base}?trace=a%26b")
                    assert start.status_code == 307
                    assert start.headers["location"] == "/studio/?trace=a%26b"


@both_proxies
async def test_api_page_loads_from_below_the_prefix(serve: Serve, root_path: str, strip: bool) -> None:
    async with serve(root_path=root_path) as server:
        with running_proxy(f"http://127.0.0.1:{server.port}", strip=strip, named=not root_path) as base:
            async with web(base) as client:
                page = (await client.get("/docs")).text
                wanted = re.findall(r"""(?:href|src)=["']([^"']+)|url: ["']([^"']+)""", page)
                addresses = ["".join(found) for found in wanted]
                assert len(addresses) >= 4
                for address in addresses:
                    found = await client.get(urljoin(f"{base}/docs", address), headers={"accept-encoding": "identity"})
                    assert found.status_code == 200, address


@both_proxies
async def test_login_stays_below_the_prefix(serve: Serve, root_path: str, strip: bool) -> None:
    async with serve(root_path=root_path, api_key="secret") as server:
        with running_proxy(f"http://127.0.0.1:{server.port}", strip=strip, named=not root_path) as base:
            async with web(base) as client:
                assert (await client.get("/livez")).status_code == 200
                is_problem(await client.get("/v1/traces"), 401, "key_required")
                sent_away = await client.get("/?trace=t1", headers=HTML)
                assert sent_away.status_code == 303
                assert sent_away.headers["location"] == f"/studio/login?next={quote('/?trace=t1', safe='/')}"
                page = await client.get(urljoin(base, sent_away.headers["location"]))
                assert 'action="/studio/login"' in page.text
                assert 'href="/studio/?trace=t1"' in page.text
                next_ = unescape(re.findall(r'name="next" value="([^"]*)"', page.text)[0])
                wrong = await client.post("/login", data={"key": "wrong", "next": next_})
                assert wrong.status_code == 401
                assert 'action="/studio/login"' in wrong.text
                right = await client.post("/login", data={"key": "secret", "next": next_})
                assert right.status_code == 303
                assert right.headers["location"] == "/studio/?trace=t1"
                assert "; Path=/studio;" in right.headers["set-cookie"]
                assert (await client.get("/v1/traces")).status_code == 200  # with the cookie
                again = await client.get("/login", params={"next": "//evil.example"}, headers=HTML)
                assert again.headers["location"] == "/studio/"


@pytest.mark.parametrize("strip", [True, False])
async def test_client_and_command_line_take_an_address_with_a_path(
    serve: Serve, strip: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(base: str) -> None:
        with Client(base + "/") as client:
            assert client.alive()
            image = client.upload_image(png())
            assert client.fetch(image["url"]) == client.image(image["image_id"])
            trace = client.create_trace("Where is the red star?", [image["image_id"]])
            assert [event.type for event in client.events(trace["id"])][-1] == "trace.completed"
            with client.export(trace["id"], format="jsonl") as file:
                assert b"".join(file.chunks)
        monkeypatch.setenv("OMNI_R1_URL", base)
        assert main(["ask", "asked.png", "Where?", "--out", "answer"]) == 0
        assert list((tmp_path / "answer").glob("step-*.png"))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "asked.png").write_bytes(png())
    async with serve(root_path="/studio") as server:
        with running_proxy(f"http://127.0.0.1:{server.port}", strip=strip) as base:
            await asyncio.to_thread(ask, base)
    assert "Answer" in capsys.readouterr().out


async def header_gives(server: Server, value: str) -> str:
    """The prefix that the server takes from this `X-Forwarded-Prefix`."""
    answer = await server.client.get("/v1/traces/none", headers={"x-forwarded-prefix": value.encode()})
    return str(is_problem(answer, 404, "trace_not_found")["instance"]).removesuffix("/v1/traces/none")


async def test_prefix_in_a_header_must_be_one(server: Server) -> None:
    assert await header_gives(server, "/lab/studio") == "/lab/studio"
    assert await header_gives(server, "/studio/") == "/studio"
    for value in (
        "",
        "/",
        "studio",
        "/a/../b",
        "/a?b",
        "/a, /b",
        "//evil.example",
        "/a//b",
        "/é",
        "/v1",
        "/" + "a" * 999,
    ):
        assert await header_gives(server, value) == "", value


async def test_setting_goes_before_the_header(serve: Serve) -> None:
    async with serve(root_path="/studio") as server:
        assert await header_gives(server, "/other") == "/studio"


async def test_header_of_a_stranger_is_ignored(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "192.0.2.1")
    async with serve() as server:
        assert await header_gives(server, "/studio") == ""


async def test_nothing_changes_without_a_prefix(server: Server) -> None:
    assert "servers" not in (await server.client.get("/openapi.json")).json()
    answer = await server.client.get("/studio/v1/traces")
    assert is_problem(answer, 404, "not_found")["instance"] == "/studio/v1/traces"


@pytest.mark.parametrize(
    "value",
    [
        "studio",
        "/",
        "/studio/",
        "/a//b",
        "/a/../b",
        "/a.b",
        "/a?b",
        "/a#b",
        "/a b",
        "/é",
        "/gallery/x",
        "/" + "a" * 200,
    ],
)
def test_bad_prefix_is_rejected(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_ROOT_PATH", value)
    with pytest.raises(SettingsError, match=r"^OMNI_R1_ROOT_PATH: [^\n]*$"):
        read_settings()


async def test_no_prefix_begins_like_an_address_of_the_server(server: Server) -> None:
    routes = [route.path for route in server.app.routes if isinstance(route, APIRoute | Route)]
    ours = {urlsplit(path).path.split("/")[1] for path in routes} | set(PAGES) | {"static"}
    for first in ours - {""}:
        if "." not in first:  # no prefix has a dot
            assert first in OWN
            with pytest.raises(ValueError, match="own address"):
                checked_prefix(f"/{first}/x")


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/login", "/", "/v1/traces", "/v1/none", "/static/logo.svg"]
)
async def test_caches_keep_one_answer_per_prefix(serve: Serve, path: str) -> None:
    async with serve() as server:
        vary = (await server.client.get(path)).headers["vary"].lower()
        assert "x-forwarded-prefix" in [name.strip() for name in vary.split(",")]
    async with serve(root_path="/studio") as server:
        assert "x-forwarded-prefix" not in (await server.client.get(path)).headers.get("vary", "").lower()
