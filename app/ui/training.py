"""The Training page: a container for `static/training/training.js`, and the shipped presets.

Its module loads everything else (jobs, metrics, images) from the REST API.
"""

from __future__ import annotations

import dataclasses
import json

from app.ui.components import header, module_html
from training.spec.spec import PRESETS


def presets() -> str:
    """The presets for the page: a JSON list of `{name, title, what, spec, card}`."""
    return json.dumps([dataclasses.asdict(preset) for preset in PRESETS.values()])


def training_page() -> None:
    """Builds the page inside the current Blocks."""
    header("training")
    module_html(
        "training/training.js",
        "mountTraining(element, props)",
        '<div data-training class="or-training"><div class="or-skeleton or-page-skeleton"></div></div>',
        elem_id="or-training",
        value=presets(),
    )
