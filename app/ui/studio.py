"""The Studio page: question, image, buttons and the trace.

Gradio renders the question, the sampling fields and the buttons. A button calls the page's own module in the browser,
which POSTs the trace: within milliseconds of the click, however busy Gradio's queue is, and the same trace with one tab
open or six.
"""

from __future__ import annotations

import gradio as gr

from app.ui.components import call, header, studio_part

LINE = (
    '<p class="or-samples-note" role="status" hidden></p>'
    '<div class="or-counts"><p class="or-budget" aria-live="polite"></p><p class="or-repeats" hidden></p></div>'
    '<p class="or-outside" role="status" hidden></p><p class="or-error" role="alert" hidden></p>'
)
SAMPLING = ("temperature", "top_p", "seed", "max_images", "max_new_tokens", "candidates")


def _sampling_fields() -> list[gr.Textbox]:
    """Empty fields use the defaults of checkpoint and server. In the order of ``SAMPLING``.

    Text instead of gr.Number, which turns an empty field into 0.
    """
    rows = (
        ("Temperature", "0 = most likely", "or-temperature"),
        ("Top-p", "share of likely tokens", "or-top-p"),
        ("Seed", "same seed, same trace", "or-seed"),
        ("Max images", "empty: as many as fit", "or-max-images"),
        ("Max tokens", "empty: remaining context", "or-max-new-tokens"),
        ("Candidates", "images drawn per step", "or-candidates-count"),
    )
    return [
        gr.Textbox(value="", label=label, info=info, elem_id=elem_id, placeholder="default", max_lines=1)
        for label, info, elem_id in rows
    ]


def studio_page() -> None:
    """Builds the page inside the current Blocks."""
    header("studio")
    with gr.Row(elem_id="or-studio"):
        with gr.Column(elem_id="or-ask", min_width=0):
            studio_part("well", '<div class="or-well or-skeleton"></div>')
            gr.Textbox(
                label="Question",
                placeholder="What do you want to know about the image?",
                elem_id="or-question",
                lines=2,
                max_lines=6,
                container=False,
            )
            studio_part("examples", '<div class="or-examples or-skeleton"></div>')
            with gr.Row(elem_id="or-actions"):
                buttons: dict[str, gr.Button] = {}
                for name, label, variant in (
                    ("reason", "Reason", "primary"),
                    ("step", "Step", "secondary"),
                    ("pause", "Pause", "secondary"),
                    ("continue", "Continue", "primary"),
                    ("finish", "Finish", "secondary"),
                    ("stop", "Stop", "stop"),
                ):
                    if name == "step":
                        studio_part("samples")
                    buttons[name] = gr.Button(label, elem_id=f"or-{name}", variant=variant, min_width=0)
            studio_part("line", LINE)
            with gr.Accordion("Sampling", open=False, elem_id="or-sampling"), gr.Row():
                fields = _sampling_fields()
        with gr.Column(elem_id="or-trace", min_width=0):
            studio_part("viewer", '<div class="or-viewer or-skeleton"></div>')
    names = ", ".join(SAMPLING)
    for name, mode in (("reason", "auto"), ("step", "step")):
        js = call("studio", "start", f"'{mode}'", f"{{{names}}}", fields=names)
        buttons[name].click(None, fields, None, js=js, show_progress="hidden", queue=False, api_visibility="private")
    for name, action in (("pause", "pause"), ("continue", "proceed"), ("finish", "finish"), ("stop", "stop")):
        js = call("studio", action)
        buttons[name].click(None, None, None, js=js, show_progress="hidden", queue=False, api_visibility="private")
