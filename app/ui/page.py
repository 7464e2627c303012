"""The pages at `/`: `build_ui(client)` builds them, `mount_ui(app, client)` mounts them after the API's routes.

They use the backend over HTTP only: the modules in `static/` in the browser, `app.client` here. They store no traces.
Importing this module imports gradio (seconds): do it late.
"""

from __future__ import annotations

import warnings

import gradio as gr
from fastapi import FastAPI

from app.client import Client
from app.common.build import static_path
from app.common.locations import STATIC
from app.common.prefix import ROOT
from app.ui.about import about_page
from app.ui.checkpoints import checkpoints_page
from app.ui.components import SITE
from app.ui.gallery import gallery_page
from app.ui.runs import runs_page
from app.ui.studio import studio_page
from app.ui.training import training_page

SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO_FONTS = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

STYLES = (
    "styles.css",
    "viewer/viewer.css",
    "pages.css",
    "branches/branches.css",
    "wall/wall.css",
    "compare/compare.css",
    "curate/curate.css",
    "tour/tour.css",
    "why/why.css",
    "training/training.css",
    "runs/runs.css",
    "checkpoints/checkpoints.css",
)

_THEME = """<script>
try {
  const theme = localStorage.getItem('omni-r1-theme');
  if (theme) document.body.classList.toggle('dark', theme === 'dark');
} catch {}
</script>
"""


def head() -> str:
    """Styles, icon, the largest module, and the chosen theme before the first paint, so that no dark page is white."""
    lines = [f'<link rel="stylesheet" href="{ROOT}{static_path(name)}">' for name in STYLES]
    lines.append(f'<link rel="icon" type="image/svg+xml" href="{ROOT}{static_path("logo.svg")}">')
    lines.append(f'<link rel="modulepreload" href="{ROOT}{static_path("viewer/viewer.js")}">')
    return "\n".join([*lines, _THEME])


def build_ui(client: Client) -> gr.Blocks:
    """Studio, Gallery, Training, Runs, Checkpoints and About. ``client`` is not used before a page is opened."""
    with gr.Blocks(title=SITE, fill_width=True, analytics_enabled=False) as blocks:
        studio_page()
    with blocks.route("Gallery", "gallery", show_in_navbar=False):
        gallery_page()
    with blocks.route("Training", "training", show_in_navbar=False):
        training_page()
    with blocks.route("Runs", "runs", show_in_navbar=False):
        runs_page()
    with blocks.route("Checkpoints", "checkpoints", show_in_navbar=False):
        checkpoints_page()
    with blocks.route("About", "about", show_in_navbar=False):
        about_page(client)
    return blocks


def theme() -> gr.themes.Base:
    """Gradio's plainest theme with system fonts: nothing is fetched from other hosts."""
    return gr.themes.Base(font=SYSTEM_FONTS, font_mono=MONO_FONTS, primary_hue="indigo", neutral_hue="zinc")


def mount_ui(app: FastAPI, client: Client) -> None:
    """Mounts the pages at `/`, behind every route that ``app`` has by now; its lifespan takes in Gradio's."""
    blocks = build_ui(client)
    with warnings.catch_warnings():
        # it warns that several pages exclude server-side rendering, although none was requested
        warnings.filterwarnings("ignore", message="SSR mode is not supported", category=UserWarning)
        gr.mount_gradio_app(
            app,
            blocks,
            path="/",
            theme=theme(),
            head=head(),
            favicon_path=str(STATIC / "logo.svg"),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            show_error=True,
        )
    blocks.extra_startup_events.append(lambda: _stop_queue(blocks))


async def _stop_queue(blocks: gr.Blocks) -> None:
    """Stop Gradio's queue: it polls a thousand times a second, which costs an idle server 6 % of a core.

    The pages queue no events, and Gradio has no setting for it.
    """
    blocks._queue.close()
