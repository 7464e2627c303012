"""The Gallery page: a container for `static/studio/gallery.js`, which uses the REST API."""

from __future__ import annotations

from app.ui.components import header, module_html


def gallery_page() -> None:
    """Builds the page inside the current Blocks."""
    header("gallery")
    module_html(
        "studio/gallery.js",
        "gallery.mount(element.querySelector('.or-part-gallery'))",
        '<div class="or-part-gallery"><div class="or-skeleton or-page-skeleton"></div></div>',
        elem_id="or-gallery",
    )
