"""Tables and plots of the score study, from its numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from training.studies.plots import COLOURS, GREY, dress, panels, save, shares


def tables(result: dict[str, Any]) -> str:
    """The study in Markdown: images of every kind, the tau sweep, the score against the verdict."""
    lines = ["| image | n | E_2D | score | R_Pe with guards |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {row['pictures']} | {row['energy']:.2f} | {row['score']:.3f} | {row['guarded']:.3f} |"
        for name, row in result["kinds"].items()
    ]
    lines += ["", "| tau | mean score | 5 % | 95 % | spread | spread within a step |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['tau']:.2f} | {row['mean']:.3f} | {row['p05']:.3f} | {row['p95']:.3f} | {row['std']:.3f} "
        f"| {row['std_within_a_step']:.3f} |"
        for row in result["sweep"]
    ]
    lines += ["", "| drawings | n | tasks | right | correlation | AUC |", "|---|---|---|---|---|---|"]
    for name, row in result["verdict"].items():
        cells = [f"{row['drawings']}", f"{row['tasks']}", f"{row['right']}"]
        cells += [_interval(row[key]) for key in ("correlation", "auc")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| right and wrong drawing of one step | pairs | tasks | right one scores higher |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['pairs']} | {row['tasks']} | {_interval(row['right_higher'])} |"
        for name, row in result["same_step"].items()
    ]
    return "\n".join(lines)


def _interval(values: list[float] | None) -> str:
    return "–" if values is None else f"{values[0]:.2f} ({values[1]:.2f} … {values[2]:.2f})"


def plot(result: dict[str, Any], out: Path) -> None:
    """`tau.png`: the scores under each tau; `verdict.png`: energies of right and wrong drawings, and AUC by family."""
    energy = {name: np.array(values) for name, values in result["energies"].items()}
    _plot_tau(result, np.concatenate([energy["right"], energy["wrong"]]), energy["reference"], out / "tau.png")
    figure, (left, right) = panels(2, columns=2, width=3.9, height=3.0)
    top = max(float(np.quantile(np.concatenate(list(energy.values())), 0.99)), 1e-6)
    edges = np.linspace(0, top, 31).tolist()
    for name, colour in (("reference", GREY), ("right", COLOURS[0]), ("wrong", COLOURS[1])):
        label = f"{name} ({len(energy[name])})"
        shares(left, energy[name], edges, colour, label, filled=name == "reference")
    blank = result["kinds"]["one colour"]["energy"]
    left.axvline(blank, color=COLOURS[3], linestyle="--", linewidth=1.2, label="canvas of one colour")
    dress(left, "energy of the images", x="E_2D (small: smooth, high score)", y="share of the images", legend=True)
    _plot_auc(result["verdict"], right)
    save(figure, out / "verdict.png")


def _plot_tau(result: dict[str, Any], drawn: np.ndarray, reference: np.ndarray, path: Path) -> None:
    figure, all_axes = panels(len(result["sweep"]), columns=3, height=1.7)
    edges = np.linspace(0, 1, 51).tolist()
    for row, axes in zip(result["sweep"], all_axes, strict=True):
        tau = row["tau"]
        shares(axes, 1 / (1 + reference / tau), edges, GREY, "reference", filled=True)
        shares(axes, 1 / (1 + drawn / tau), edges, COLOURS[0], "drawn")
        chosen = " (the checkpoint's own)" if abs(tau - result["tau"]) < 1e-3 else ""
        axes.set_xlim(0, 1)
        dress(axes, f"tau {tau:.2f}{chosen}, spread {row['std']:.3f}", legend=axes is all_axes[0])
    for axes in all_axes[-3:]:
        axes.set_xlabel("score 1 / (1 + E_2D / tau)", fontsize=8)
    save(figure, path)


def _plot_auc(verdict: dict[str, Any], axes: Any) -> None:
    rows = [(name, row["auc"]) for name, row in verdict.items() if row["auc"] is not None]
    for place, (name, (value, low, high)) in enumerate(reversed(rows)):
        whole = name in ("all", "all, guarded", "within families")
        colour = COLOURS[1] if whole else COLOURS[0]
        axes.plot([low, high], [place, place], color=colour, linewidth=1.4)
        axes.plot([value], [place], "o", color=colour, markersize=4)
    axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1.0)
    axes.set_xlim(0, 1)
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    dress(axes, "does the score rank right above wrong? (.5: no)", x="AUC, 95 % interval")
