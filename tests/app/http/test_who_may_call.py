"""Host, Origin and Sec-Fetch-Site are checked before anything else; every response has nosniff."""

from __future__ import annotations

from typing import get_args

import pytest

from app.common.settings import Settings, SettingsError, read_settings
from tests.app.conftest import Serve, Server, is_problem


async def test_unknown_host_names_are_rejected(serve: Serve) -> None:
    async with serve(allowed_hosts=("studio.example",)) as server:
        for host in ("127.0.0.1", "localhost", "[::1]", "studio.example"):
            for suffix in ("", f":{server.port}", ":1"):
                answer = await server.client.get("/livez", headers={"host": host + suffix})
                assert answer.status_code == 200, host
        for path in ("/livez", "/", "/v1/traces", "/metrics", "/docs", "/static/logo.svg", "/gradio_api/info"):
            for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", ""):
                is_problem(await server.client.get(path, headers={"host": host}), 421, "wrong_host")


async def test_cross_site_unsafe_methods_are_rejected(server: Server) -> None:
    body = await server.body()
    foreign = (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": f"http://127.0.0.1:{server.port + 1}"},
        {"origin": "http://localhost"},
        {"sec-fetch-site": "cross-site"},
    )
    for headers in foreign:
        for method, path in (
            ("POST", "/v1/traces"),
            ("DELETE", "/v1/traces/x"),
            ("POST", "/gradio_api/queue/join"),
        ):
            answer = await server.client.request(method, path, json=body, headers=headers)
            is_problem(answer, 403, "forbidden_origin")
        assert (await server.client.get("/v1/traces", headers=headers)).status_code == 200
    own = f"http://127.0.0.1:{server.port}"
    for headers in ({"origin": own, "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}):
        assert (await server.client.post("/v1/traces", json=body, headers=headers)).status_code == 201


async def test_cors_is_off_by_default(serve: Serve) -> None:
    origin = {"origin": "http://friend.example"}
    async with serve() as server:
        assert "access-control-allow-origin" not in (await server.client.get("/v1/traces", headers=origin)).headers
    async with serve(cors_origins=("http://friend.example",)) as server:
        answer = await server.client.post("/v1/traces", json=await server.body(), headers=origin)
        assert answer.status_code == 201
        assert answer.headers["access-control-allow-origin"] == "http://friend.example"
        other = await server.client.get("/v1/traces", headers={"origin": "http://evil.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_every_response_has_nosniff(server: Server) -> None:
    image = f"/v1/images/{await server.image()}"
    paths = (
        "/livez",
        "/v1/traces",
        "/v1/nothing",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/",
        f"/v1/images/{image}",
    )
    for path in paths:
        assert (await server.client.get(path)).headers["x-content-type-options"] == "nosniff", path


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", ""])
def test_public_address_requires_a_key(host: str) -> None:
    with pytest.raises(SettingsError):
        read_settings(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_addresses_are_accepted(host: str) -> None:
    assert read_settings(host=host).host == host


@pytest.mark.parametrize("codes", ["-1", "1025", "10000"])
def test_setting_outside_its_bounds_names_both(codes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_SPECULATION", codes)
    with pytest.raises(SettingsError, match=rf"^OMNI_R1_SPECULATION: {codes} is outside 0 to 1024$"):
        read_settings()


def test_unknown_choice_is_rejected_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_QUANT", "int4")
    with pytest.raises(SettingsError, match=r"^OMNI_R1_QUANT: .*'int8' or 'fp8'$"):
        read_settings()


def test_unknown_settings_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_ALLOWED_HOSTS", "a.example, b.example")
    monkeypatch.setenv("OMNI_R1_MAX_QUEUE", "99")
    settings = read_settings()
    assert (settings.allowed_hosts, settings.max_queue) == (("a.example", "b.example"), 99)
    monkeypatch.setenv("OMNI_R1_MAX_QUEUE", "none")
    with pytest.raises(SettingsError, match="OMNI_R1_MAX_QUEUE"):
        read_settings()
    monkeypatch.setenv("OMNI_R1_MAX_QUEUE", "5")
    monkeypatch.setenv("OMNI_R1_MAX_QUEU", "5")
    with pytest.raises(SettingsError, match="OMNI_R1_MAX_QUEU"):
        read_settings()
    assert Settings.model_fields.keys() >= {"home", "host", "port", "device"}


BY_TYPE = {bool: "1 (yes) or 0 (no)", int: "a whole number", float: "a number"}
READ = [
    (name, words)
    for name, field in Settings.model_fields.items()
    for kind, words in BY_TYPE.items()
    if kind in {field.annotation, *get_args(field.annotation)}
]


@pytest.mark.parametrize("value", ["", " ", "maybe", "2x"])
@pytest.mark.parametrize(("name", "wanted"), READ)
def test_unreadable_setting_is_named_with_what_it_takes(
    name: str, wanted: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"OMNI_R1_{name.upper()}"
    monkeypatch.setenv(variable, value)
    said = f"{value!r} must be {wanted}" if value.strip() else f"is empty; set it to {wanted}, or unset it"
    with pytest.raises(SettingsError) as refusal:
        read_settings()
    assert str(refusal.value) == f"{variable}: {said}"


@pytest.mark.parametrize("value", ["http://a.example", "a.example/x", "a b", "*", "a@b", "a:b", "é.example", "[::1"])
def test_allowed_host_must_be_a_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_ALLOWED_HOSTS", f"a.example,{value}")
    with pytest.raises(SettingsError, match=r"^OMNI_R1_ALLOWED_HOSTS: [^\n]*, without http:// and path$"):
        read_settings()


@pytest.mark.parametrize("value", ["a.example", "10.0.0.7", "a-b.example:8080", "[::1]:80", "fe80::1", "LAB_1"])
def test_names_and_addresses_are_allowed_hosts(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_ALLOWED_HOSTS", value)
    assert read_settings().allowed_hosts == (value,)


@pytest.mark.parametrize(
    ("value", "fits"),
    [("https://a.example", True), ("http://[::1]:80/", True), ("*", True), ("a.example", False), ("http://a/x", False)],
)
def test_cors_origin_has_a_scheme_and_no_path(value: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_CORS_ORIGINS", value)
    if fits:
        assert read_settings().cors_origins == (value,)
    else:
        with pytest.raises(SettingsError, match=r"^OMNI_R1_CORS_ORIGINS: .* is not an origin"):
            read_settings()
