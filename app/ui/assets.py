"""The static files: viewer, pages' modules and styles, and, behind them, the few that Gradio asks for at the root.

Imports no gradio. ``static_files()`` is mounted at `/static`.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.common.locations import STATIC


class _Revalidated(StaticFiles):
    """Asks the browser to check back each time (a 304 when nothing changed): modules of two versions never mix."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def static_files() -> StaticFiles:
    """Our files first; what Gradio's page loads from `/static` (its frame script, icons) comes from its package."""
    return _Revalidated(directory=STATIC, packages=[("gradio", "templates/frontend/static")])
