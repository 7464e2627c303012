"""Static files: the pages' modules and styles, then the few that Gradio loads from `/static`.

Imports no gradio. ``static_files()`` is mounted at `/static`.
"""

from __future__ import annotations

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.common.build import STATIC_VERSION, static_path
from app.common.locations import STATIC

FOREVER = "public, max-age=31536000, immutable"


class _Static(StaticFiles):
    """Files by their plain address, revalidated every time (304 if unchanged), or by one that names the build.

    The latter (:func:`app.common.build.static_path`) are kept for a year. A page of an earlier build still gets this
    build's files by its addresses, but only for now.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        version, _, name = path.partition("/")
        named = version.startswith(STATIC_VERSION)
        response = await super().get_response(name if named else path, scope)
        current = named and f"/static/{path}" == static_path(name)
        response.headers["Cache-Control"] = FOREVER if current and response.status_code < 400 else "no-cache"
        return response


def static_files() -> StaticFiles:
    """Our files first; files that Gradio loads from `/static` (frame script, icons) come from its package."""
    return _Static(directory=STATIC, packages=[("gradio", "templates/frontend/static")])
