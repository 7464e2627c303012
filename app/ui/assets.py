"""Static files: the pages' modules and styles, then the few that Gradio loads from `/static`.

Imports no gradio. ``static_files()`` is mounted at `/static`.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.common.locations import STATIC


class _Revalidated(StaticFiles):
    """Makes browsers revalidate every time (304 if unchanged), so that modules of two versions never mix."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def static_files() -> StaticFiles:
    """Our files first; files that Gradio loads from `/static` (frame script, icons) come from its package."""
    return _Revalidated(directory=STATIC, packages=[("gradio", "templates/frontend/static")])
