"""The login page for browsers without the key, and its content security policy.

The page is self-contained: inline styles, no script.
"""

from __future__ import annotations

import html

from starlette.responses import HTMLResponse

from app.common.locations import STATIC
from app.contract.problems import Problem

PAGE = STATIC / "login.html"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
}


def login_page(next_: str, *, prefix: str, problem: Problem | None = None) -> HTMLResponse:
    """The page that asks for the key and then redirects to `next_` (a local path); shows `problem`, with its status.

    `prefix` is the proxy's; `next_` is relative to it.
    """
    page = PAGE.read_text("utf-8").replace("{prefix}", prefix).replace("{next}", html.escape(local_path(next_)))
    if problem is not None:
        shown = html.escape(problem.detail.capitalize())
        page = page.replace("<!-- message -->", f'<p class="bad" role="alert">{shown}</p>')
    return HTMLResponse(page, problem.status if problem else 200, _HEADERS | (problem.headers if problem else {}))


def local_path(wanted: str) -> str:
    """`wanted` if it is a path on this server, else `/`: no open redirects."""
    local = wanted.startswith("/") and not wanted.startswith(("//", "/\\"))
    plain = wanted.isascii() and wanted.isprintable() and " " not in wanted
    return wanted if local and plain and wanted.partition("?")[0] != "/login" else "/"
