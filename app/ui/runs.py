"""The Runs page: a container for `static/runs/runs.js`, which loads everything from the REST API."""

from __future__ import annotations

from app.ui.components import header, module_html


def runs_page() -> None:
    """Builds the page inside the current Blocks."""
    header("runs")
    module_html(
        "runs/runs.js",
        "mountRuns(element)",
        '<div data-runs class="or-runs"><div class="or-skeleton or-page-skeleton"></div></div>',
        elem_id="or-runs",
    )
