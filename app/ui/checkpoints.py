"""The Checkpoints page: a container for `static/checkpoints/checkpoints.js`, which uses the REST API."""

from __future__ import annotations

from app.ui.components import header, module_html


def checkpoints_page() -> None:
    """Builds the page inside the current Blocks."""
    header("checkpoints")
    module_html(
        "checkpoints/checkpoints.js",
        "mountCheckpoints(element)",
        '<div data-checkpoints class="or-checkpoints"><div class="or-skeleton or-page-skeleton"></div></div>',
        elem_id="or-checkpoints",
    )
