"""The Studio page: question, picture, buttons and the trace beside them.

Gradio owns the question, the sampling and the buttons. A button calls the page's own module in the browser with the
values of the sampling fields (`js=`, no Python in between), which POSTs the trace: from click to request in a few
milliseconds, whatever Gradio's queue is doing, and the same trace whether one tab is open or six.
"""

from __future__ import annotations

import gradio as gr

from app.ui.components import header, studio_part

LINE = '<p class="or-budget" aria-live="polite"></p><p class="or-error" role="alert" hidden></p>'
SAMPLING = ("temperature", "top_p", "seed", "max_images", "max_new_tokens")


def _sampling_fields() -> list[gr.Textbox]:
    """Empty fields leave the decision to the checkpoint and the server. In the order of ``SAMPLING``.

    Text, not gr.Number: that turns an empty field into 0, which is a decision.
    """
    rows = (
        ("Temperature", "0 takes the likeliest", "or-temperature"),
        ("Top-p", "share of likely tokens", "or-top-p"),
        ("Seed", "same seed, same trace", "or-seed"),
        ("Most pictures", "empty: what fits", "or-max-images"),
        ("Most tokens", "empty: the room left", "or-max-new-tokens"),
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
                placeholder="What do you want to know about the picture?",
                elem_id="or-question",
                lines=2,
                max_lines=6,
                container=False,
            )
            studio_part("examples", '<div class="or-examples or-skeleton"></div>')
            with gr.Row(elem_id="or-actions"):
                buttons = {
                    name: gr.Button(label, elem_id=f"or-{name}", variant=variant, min_width=0)
                    for name, label, variant in (
                        ("reason", "Reason", "primary"),
                        ("step", "Step", "secondary"),
                        ("pause", "Pause", "secondary"),
                        ("continue", "Continue", "primary"),
                        ("finish", "Finish", "secondary"),
                        ("stop", "Stop", "stop"),
                    )
                }
            studio_part(
                "line", '<p class="or-budget" aria-live="polite"></p><p class="or-error" role="alert" hidden></p>'
            )
            with gr.Accordion("Sampling", open=False, elem_id="or-sampling"), gr.Row():
                fields = _sampling_fields()
        with gr.Column(elem_id="or-trace", min_width=0):
            studio_part("viewer", '<div class="or-viewer or-skeleton"></div>')
    names = ", ".join(SAMPLING)
    for name, mode in (("reason", "auto"), ("step", "step")):
        js = f"({names}) => {{ window.omniStudio?.start('{mode}', {{{names}}}); }}"
        buttons[name].click(None, fields, None, js=js, show_progress="hidden", queue=False, api_visibility="private")
    for name, call in (("pause", "pause"), ("continue", "proceed"), ("finish", "finish"), ("stop", "stop")):
        js = f"() => {{ window.omniStudio?.{call}(); }}"
        buttons[name].click(None, None, None, js=js, show_progress="hidden", queue=False, api_visibility="private")
