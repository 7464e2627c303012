"""The Gallery page: filters by Gradio, paginated cards by `static/studio/gallery.js`."""

from __future__ import annotations

from typing import get_args

import gradio as gr

from app.client import Client, OmniError
from app.ui.components import header, module_html
from training.spec.spec import Slice

SLICES = [("any slice", ""), *((name, name) for name in get_args(Slice))]
VERDICTS = [("any verdict", ""), ("right", "right"), ("wrong", "wrong")]


def _choice(label: str, choices: list[tuple[str, str]]) -> gr.Dropdown:
    return gr.Dropdown(choices, value="", label=label, elem_id=f"or-filter-{label.lower()}", filterable=False)


def gallery_page(blocks: gr.Blocks, client: Client) -> None:
    """Builds the page inside the current Blocks."""

    def checkpoints() -> gr.Dropdown:
        try:
            names = [str(one["id"]) for one in client.checkpoints()]
        except OmniError:
            names = []  # the cards report the unavailable server
        return gr.Dropdown(choices=[("any checkpoint", ""), *((name, name) for name in names)], value="")

    header("gallery")
    with gr.Row(elem_id="or-filters"):
        gr.Textbox(label="Words", placeholder="any words", elem_id="or-filter-words")
        slice_ = _choice("Slice", SLICES)
        verdict = _choice("Verdict", VERDICTS)
        checkpoint = _choice("Checkpoint", [("any checkpoint", "")])
    module_html(
        "studio/gallery.js",
        "gallery.mount(element.querySelector('.or-part-gallery'))",
        '<div class="or-part-gallery"></div>',
        elem_id="or-gallery",
    )
    # the module listens to the text field itself: Gradio reports keys, but not pasted text
    choices = [slice_, verdict, checkpoint]
    js = "(slice, verdict, checkpoint) => { window.omniGallery?.filter({slice, verdict, checkpoint}); }"
    for choice in choices:
        choice.input(None, choices, None, js=js, show_progress="hidden", queue=False, api_visibility="private")
    blocks.load(checkpoints, None, checkpoint, show_progress="hidden", queue=False, api_visibility="private")
