"""Style of the plots in docs/: small, on a white card that works on light and dark pages.

Colour-blind-safe colours (Okabe and Ito). matplotlib is a development dependency and imported on use.
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
    """A figure with that many panels (each ``width`` x ``height`` inches), row by row."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", facecolor="white")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def dress(axes: Axes, title: str, *, x: str = "", y: str = "", legend: bool = False) -> None:
    """Set title, labels and legend in the small size; remove the top and right frame."""
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
    """Legend above all panels."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=2) for k in range(len(names))]
    figure.legend(
        lines,
        list(names),
        loc="outside upper center",
        ncols=min(4, len(names)),
        fontsize=8,
        frameon=False,
        labelcolor=INK,
    )


def shares(
    axes: Axes,
    values: Sequence[float] | np.ndarray,
    edges: Sequence[float],
    colour: str,
    label: str,
    *,
    filled: bool = False,
) -> None:
    """A histogram of shares: a line, or an area for the baseline. Values beyond the range count as its end."""
    if not len(values):
        return
    inside = np.clip(values, edges[0], edges[-1])
    weights = np.full(len(inside), 1 / len(inside))
    if filled:
        axes.hist(inside, list(edges), weights=weights, histtype="stepfilled", color=colour, alpha=0.35, label=label)
    else:
        axes.hist(inside, list(edges), weights=weights, histtype="step", color=colour, linewidth=1.4, label=label)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of at most 128 colours: a third of the size, visually identical."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(drawn, formats=("PNG",)) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
