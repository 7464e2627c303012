"""The Gallery page: filters by Gradio, cards by `static/studio/gallery.js`, a page of traces at a time."""

from __future__ import annotations

import gradio as gr

from app.client import Client, OmniError
from app.ui.components import ModuleHTML, header

SLICES = [("any slice", ""), *((name, name) for name in ("natural", "structured", "diagrammatic", "operational"))]
VERDICTS = [("any verdict", ""), ("right", "right"), ("wrong", "wrong")]


def gallery_page(client: Client) -> None:
    """Builds the page inside the current Blocks."""

    def checkpoints() -> gr.Dropdown:
        try:
            names = [str(one["id"]) for one in client.checkpoints()]
        except OmniError:
            names = []  # the cards themselves say that the server is gone
        return gr.Dropdown(choices=[("any checkpoint", ""), *((name, name) for name in names)], value="")

    header("gallery")
    with gr.Row(elem_id="or-filters"):
        words = gr.Textbox(
            placeholder="words of the question or answer", label="Words", elem_id="or-filter-words", min_width=160, type="text"
        )
        slice_ = gr.Dropdown(SLICES, value="", label="Slice", elem_id="or-filter-slice", min_width=120, filterable=False)
        verdict = gr.Dropdown(
            VERDICTS, value="", label="Verdict", elem_id="or-filter-verdict", min_width=120, filterable=False
        )
        checkpoint = gr.Dropdown(
            [("any checkpoint", "")], value="", label="Checkpoint", elem_id="or-filter-checkpoint", min_width=120,
            filterable=False,
        )  # fmt: skip
    ModuleHTML(
        "studio/gallery.js",
        "gallery.mount(element.querySelector('.or-part-gallery'))",
        '<div class="or-part-gallery"></div>',
        elem_id="or-gallery",
    )
    js = "(q, slice, verdict, checkpoint) => { window.omniGallery?.filter({q, slice, verdict, checkpoint}); }"
    for part in (words, slice_, verdict, checkpoint):
        part.input(
            None, [words, slice_, verdict, checkpoint], None, js=js, show_progress="hidden", queue=False,
            api_visibility="private",
        )  # fmt: skip
    blocks = gr.context.Context.root_block
    assert blocks is not None
    blocks.load(checkpoints, None, checkpoint, show_progress="hidden", api_visibility="private")
