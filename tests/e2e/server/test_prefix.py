"""The pages behind a proxy that shows the studio below a path: everything they name or request lies below it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from app.common.locations import STATIC
from app.contract.words import PAGES
from tests.app.proxy import running_proxy
from tests.e2e.browser import FakeServer, Open, asked_in_address, status
from tests.e2e.real_server import Server
from tests.patience import PATIENCE_S

KEY = "a-key-behind-a-proxy"
PREFIX = "/lab/studio"
NAMED = re.compile(
    r"""(?:href|src)=\\?["']([^"'\\]+)"""  # in markup, also within JSON
    r"""|\bimport\((?:new URL\()?\\?["']([^"'\\]+)\\?["'][,)]"""
    r"""|^(?:import|export)\b[^=\n]*["']([^"'\n]+)["'];|\} from ["']([^"']+)["'];""",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A scripted server with a key, told its prefix."""
    server = FakeServer(
        tmp_path_factory.mktemp("hidden") / "home", {"OMNI_R1_ROOT_PATH": PREFIX, "OMNI_R1_API_KEY": KEY}
    )
    yield server.start()
    server.kill()


def addresses(text: str) -> set[str]:
    """What a page or module of ours names."""
    plain = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), text)  # JSON within a page
    found = {"".join(names) for names in NAMED.findall(plain)}
    return {address for address in found if not address.startswith(("#", "data:", "$"))}


@pytest.mark.parametrize("strip", [True, False])
def test_everything_that_the_pages_name_is_there(hidden: Server, strip: bool) -> None:
    with running_proxy(hidden.url, PREFIX, strip=strip) as base, httpx.Client(timeout=PATIENCE_S) as browser:
        assert browser.post(f"{base}/login", json={"key": KEY}).status_code == 204
        waiting = [f"{base}/", *(f"{base}/{name}" for name in PAGES), f"{base}/gallery/", f"{base}/config"]
        found: dict[str, str] = {}
        while waiting:
            url = waiting.pop()
            if url in found:
                continue
            answer = browser.get(url, follow_redirects=True, headers={"accept-encoding": "identity"})
            assert answer.status_code == 200, (url, answer.status_code)
            assert str(answer.url).startswith(base), (url, answer.url)
            kind = answer.headers["content-type"]
            found[url] = kind
            ours = "/assets/" not in url and "/swagger/" not in url  # Gradio's own files name each other relatively
            if ours and re.search("html|json|javascript", kind):
                waiting += [urljoin(str(answer.url), address).partition("#")[0] for address in addresses(answer.text)]
        modules = {
            path.relative_to(STATIC).as_posix() for path in STATIC.glob("*/*.js") if path.parent.name != "swagger"
        }
        named = {"/".join(url.split("/")[-2:]) for url in found if url.endswith(".js")}
        assert modules <= named, modules - named
        assert sum(url.endswith(".css") for url in found) >= len(list(STATIC.glob("**/*.css"))) - 1  # but Swagger's
        config = json.loads(browser.get(f"{base}/config").text)
        assert urlsplit(config["root"]).path == PREFIX


def test_browser_stays_below_the_prefix(studio: Open, hidden: Server) -> None:
    with running_proxy(hidden.url, PREFIX, strip=True) as base:
        window = studio(base)
        requested: list[str] = []
        window.context.on("request", lambda request: requested.append(request.url))
        page = window.page("/gallery", ready="#key")
        assert urlsplit(page.url).path == f"{PREFIX}/login"
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        page.wait_for_selector(".or-gallery-word:not(:empty)", state="attached")
        assert urlsplit(page.url).path.rstrip("/") == f"{PREFIX}/gallery"
        assert {cookie["path"] for cookie in window.context.cookies()} == {PREFIX}

        page.click("nav a[data-link=studio]")
        page.wait_for_selector("html[data-studio=ready]", state="attached")
        page.click("#or-reason")
        assert status(page, "completed") == "completed"
        page.wait_for_selector(".or-viewer img")
        trace_id = asked_in_address(page, "trace")
        page.reload()
        assert status(page, "completed") == "completed"
        assert urlsplit(page.url).path == f"{PREFIX}/"

        again = window.page(f"/?trace={trace_id}")
        assert status(again, "completed") == "completed"
        again.wait_for_selector(".or-viewer img")
        again.close()
        page.click("nav a[data-link=gallery]")
        page.click(f".or-card[data-trace={trace_id}] .or-card-open")
        page.click(f"a:text('open in the Studio')[href='{PREFIX}/?trace={trace_id}']")
        assert status(page, "completed") == "completed"
        page.click("nav a[data-link=training]")
        page.wait_for_selector("html[data-training=ready]", state="attached")
        page.goto(f"{base}/docs")
        page.wait_for_selector(".swagger-ui .info .title")
        outside = [
            url for url in requested if url.startswith("http") and not urlsplit(url).path.startswith(f"{PREFIX}/")
        ]
        assert outside == []
        assert len(requested) > 100
