"""A real server with a key: the command line sends it, browsers sign in once, and everything works as usual."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from app.client import NotAllowed
from tests.e2e.axe import violations
from tests.e2e.browser import FakeServer, Open, becomes, status
from tests.e2e.layout import WRONG
from tests.e2e.real_server import ROOT, Server
from tests.patience import PATIENCE_S

KEY = "a-key-of-the-browser-test"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A scripted server with a key, listening on every address."""
    server = FakeServer(tmp_path_factory.mktemp("locked") / "home", {"OMNI_R1_API_KEY": KEY, "OMNI_R1_HOST": "0.0.0.0"})
    server.start()
    server.url = server.url.replace("0.0.0.0", "127.0.0.1")
    yield server
    server.kill()


def omni(server: Server, *argv: str, key: str | None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", *argv, "--url", server.url]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_R1_")}
    if key is not None:
        environment["OMNI_R1_API_KEY"] = key
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def test_command_line_sends_its_key(locked: Server) -> None:
    done = omni(locked, "checkpoints", key=KEY)
    assert done.returncode == 0, done.stderr
    assert "active" in done.stdout


@pytest.mark.parametrize("key", [None, "another-key"])
def test_wrong_key_names_the_setting(locked: Server, key: str | None) -> None:
    done = omni(locked, "checkpoints", key=key)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "OMNI_R1_API_KEY" in done.stderr
    assert not key or key not in done.stderr


def test_server_with_a_key_gets_ready_without_logging_it(locked: Server) -> None:
    with locked.client() as client:
        assert client.readiness()["phase"] == "ready"
        assert client.models()
        page = httpx.get(f"{locked.url}/gallery", headers={"Authorization": f"Bearer {KEY}"})
        assert page.status_code == 200
        assert "gradio" in page.text
    assert httpx.get(f"{locked.url}/gallery").status_code == 401
    with Server(locked.home, url=locked.url).client() as stranger, pytest.raises(NotAllowed):
        stranger.limits()
    assert KEY not in locked.log.read_text()


def test_browser_signs_in_once(studio: Open, locked: Server) -> None:
    window = studio(locked.url, alone=True)
    window.expected = ["401 (Unauthorized)"]  # the wrong key
    page = window.page("/?trace=", ready="#key")
    assert urlsplit(page.url).path == "/login"
    page.fill("#key", "wrong")
    with page.expect_console_message(lambda message: "401" in message.text):
        page.press("#key", "Enter")
    page.wait_for_selector("[role=alert]")
    assert urlsplit(page.url).path == "/login"
    window.expected = []
    window.errors.clear()
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    page.wait_for_selector("html[data-studio=ready]", state="attached")
    assert urlsplit(page.url).path == "/"

    page.click("#or-reason")
    assert status(page, "completed") == "completed"
    page.wait_for_selector(".or-viewer img")
    page.reload()
    assert status(page, "completed") == "completed"
    for path in ("/gallery", "/training", "/runs", "/checkpoints", "/about"):
        page.goto(locked.url + path)
        page.wait_for_selector("gradio-app", state="attached")
        assert urlsplit(page.url).path.rstrip("/") == path

    (cookie,) = window.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["secure"]) == (True, "Strict", False)
    assert KEY not in str(page.evaluate("[document.cookie, location.href, JSON.stringify(localStorage)]"))
    docs = window.page("/docs", ready=".swagger-ui .info .title")
    assert "Omni-R1 Studio" in docs.inner_text(".swagger-ui .info .title")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_login_fits_every_window(studio: Open, locked: Server, width: int, scheme: str) -> None:
    window = studio(locked.url, color_scheme=scheme)
    page: Any = window.context.new_page()
    page.set_viewport_size({"width": width, "height": 844})
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(f"{locked.url}/login?next=/gallery")
    page.wait_for_selector("#key")
    assert requested == [f"{locked.url}/login?next=/gallery"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    becomes(page, "() => document.activeElement.id", "key")
    assert page.locator("button").bounding_box()["height"] >= 44
    colours = [
        page.eval_on_selector(selector, "e => getComputedStyle(e)[name]".replace("name", f"'{name}'"))
        for selector, name in (("main", "backgroundColor"), ("h1", "color"))
    ]
    back, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (back > ink) is (scheme == "light")
    assert abs(back - ink) > 450
    assert page.evaluate(WRONG) == []
    assert violations(page) == []


def test_link_from_another_site_continues_without_the_key(studio: Open, locked: Server) -> None:
    """`SameSite=Strict` withholds the cookie on the first click from another site."""
    window = studio(locked.url, alone=True)
    page = window.page("/login?next=/gallery", ready="#key")
    window.context.request.post(f"{locked.url}/login", data={"key": KEY})
    page.click("text=Continue")
    page.wait_for_selector("gradio-app", state="attached")
    assert urlsplit(page.url).path.rstrip("/") == "/gallery"
