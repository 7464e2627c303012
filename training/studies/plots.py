"""How the plots of docs/ look: small, on a white card that reads on a light and on a dark page alike.

Colours that the colour-blind tell apart (Okabe and Ito). Knows no numbers. matplotlib is a development dependency and
imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":", "-.")
INK, GREY = "#222222", "#8a8a8a"
DPI = 110


def panels(count: int, *, columns: int = 3, width: float = 3.1, height: float = 2.3) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels (each ``width`` x ``height`` inches), row by row."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def dress(axes: Axes, title: str, *, x: str = "", y: str = "", legend: bool = False) -> None:
    """Title, labels and legend in the small size, and no frame above and to the right."""
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.tick_params(labelsize=7, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(fontsize=7, labelcolor=INK, framealpha=0.4, edgecolor="none")


def name_lines(figure: Figure, names: Sequence[str]) -> None:
    """Above all panels: which colour is whose."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=2) for k in range(len(names))]
    figure.legend(
        lines, list(names), loc="outside upper center", ncols=min(4, len(names)), fontsize=8, frameon=False,
        labelcolor=INK,
    )  # fmt: skip


def shares(
    axes: Axes,
    values: Sequence[float] | np.ndarray,
    edges: Sequence[float],
    colour: str,
    label: str,
    *,
    filled: bool = False,
) -> None:
    """A histogram of shares: a line, an area for what others are compared with. What lies beyond counts as the end."""
    if not len(values):
        return
    inside = np.clip(values, edges[0], edges[-1])
    weights = np.full(len(inside), 1 / len(inside))
    if filled:
        axes.hist(inside, list(edges), weights=weights, histtype="stepfilled", color=colour, alpha=0.35, label=label)
    else:
        axes.hist(inside, list(edges), weights=weights, histtype="step", color=colour, linewidth=1.4, label=label)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of at most 128 colours: a third of the size, and the same to look at."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(drawn, formats=("PNG",)) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
