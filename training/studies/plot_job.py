"""Plots training curves: rewards, KL, entropy and dropped groups of PeRPO, losses of PeSFT.

    python -m training.studies.plot_job JOB_DIR [JOB_DIR ...] --out curves.png

A folder is a job's (its ``events.jsonl`` is read) or a run's of `omni-r1 train nano` (``metrics.jsonl``). The thin line
shows the logged values, the thick one the running mean of ``--smooth`` rows. Several folders (seeds, arms) share the
panels, one colour each. Panels without logged metrics are omitted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from training.jobs.folder import read_events
from training.studies.plots import COLOURS, LINES, dress, name_lines, panels, save

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("reward", ("reward/total", "reward/accuracy")),
    ("R_Pe", ("reward/perception",)),
    ("R_Fmt", ("reward/format",)),
    ("KL to the reference, nats a token", ("policy/kl",)),
    ("entropy, nats a token", ("policy/entropy_text", "policy/entropy_image")),
    ("groups that taught nothing", ("groups/dropped_share",)),
    (
        "pictures",
        ("pictures/blank_share", "pictures/copied_share", "pictures/capped_share", "pictures/malformed_share"),
    ),
    ("clipped tokens", ("policy/clip_frac",)),
    ("cross-entropy, nats a token", ("loss/text", "loss/image")),
    ("L_Pe", ("loss/perception",)),
)
ON_A_LOG_SCALE = frozenset({"loss/text", "loss/image", "loss/perception"})
KNOWN = frozenset(name for _, names in PANELS for name in names)
Curves = dict[str, dict[int, float]]  # metric -> step -> value


def read_curves(folder: Path, stage: str | None = None) -> Curves:
    """The metrics of one stage of a job, or of a run. Of two rows for one step the later one counts.

    Raises:
        ValueError: no plottable metric was logged, or a job has several stages and none is named.
    """
    by_stage: dict[str, Curves] = {}
    for name, step, values in _rows(folder):
        for metric in KNOWN & values.keys():
            value = values[metric]
            by_stage.setdefault(name, {}).setdefault(metric, {})[step] = np.nan if value is None else float(value)
    if stage is None and len(by_stage) > 1:
        raise ValueError(f"{folder} has several stages: name one with --stage ({', '.join(sorted(by_stage))})")
    found = by_stage.get(stage, {}) if stage is not None else next(iter(by_stage.values()), {})
    if not found:
        other_stages = f", only of {', '.join(sorted(by_stage))}" if by_stage else ""
        raise ValueError(f"{folder} has no curves{f' of stage {stage!r}' if stage else ''}{other_stages}")
    return {metric: dict(sorted(values.items())) for metric, values in found.items()}


def _rows(folder: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield stage, step and values of every row of metrics."""
    run = folder / "metrics.jsonl"
    if run.exists():
        for line in run.read_text("utf-8").splitlines():
            row = json.loads(line)
            yield "", int(row["step"]), row
        return
    offset = 0
    while True:
        events, after = read_events(folder / "events.jsonl", offset)
        for event in events:
            if event.type == "metrics":
                yield str(event.data["stage"]), int(event.data["step"]), event.data["values"]
        if after == offset:
            return
        offset = after


def smoothed(values: Sequence[float], width: int) -> np.ndarray:
    """Running mean over ``width`` values, fewer at both ends; non-finite values are skipped."""
    array = np.asarray(values, float)
    half = width // 2
    windows = [array[max(0, i - half) : i + half + 1] for i in range(len(array))]
    return np.array([w[np.isfinite(w)].mean() if np.isfinite(w).any() else np.nan for w in windows])


def plot(runs: dict[str, Curves], out: Path, *, smooth: int = 5) -> list[str]:
    """Plot the panels of the runs (by name) into ``out``; return the titles of the plotted ones."""
    wanted = [(title, names) for title, names in PANELS if any(n in curves for n in names for curves in runs.values())]
    figure, all_axes = panels(len(wanted), columns=3)
    for (title, names), axes in zip(wanted, all_axes, strict=True):
        shown = [name for name in names if any(name in curves for curves in runs.values())]
        for number, curves in enumerate(runs.values()):
            for place, name in enumerate(shown):
                if name not in curves:
                    continue
                steps, values = list(curves[name]), list(curves[name].values())
                colour = COLOURS[(place if len(runs) == 1 else number) % len(COLOURS)]
                line = LINES[0 if len(runs) == 1 else place % len(LINES)]
                axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
                label = _short(name) if not any(name in earlier for earlier in [*runs.values()][:number]) else None
                axes.plot(steps, smoothed(values, smooth), line, color=colour, linewidth=1.6, label=label)
        if set(shown) <= ON_A_LOG_SCALE:
            axes.set_yscale("log")
        dress(axes, title, x="step", legend=len(shown) > 1)
    if len(runs) > 1:
        name_lines(figure, list(runs))
    save(figure, out)
    return [title for title, _ in wanted]


def _short(name: str) -> str:
    """The part of a metric's name that is unique within its panel."""
    return name.split("/")[-1].removesuffix("_share").removeprefix("entropy_")


def main(argv: Sequence[str] | None = None) -> int:
    """Plot; exit code 0, or 2 if there is nothing to plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="JOB_DIR")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    parser.add_argument("--stage", help="of a job with several: pesft, perpo")
    parser.add_argument("--names", nargs="+", help="of the folders, in order (their last names)")
    parser.add_argument("--smooth", type=int, default=5, help="rows of the running mean (5)")
    options = parser.parse_args(argv)
    names = options.names or _unique([folder.resolve().name for folder in options.folders])
    if len(set(names)) != len(options.folders):
        parser.error("--names: one name for each folder")
    try:
        runs = {name: read_curves(folder, options.stage) for name, folder in zip(names, options.folders, strict=True)}
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    drawn = plot(runs, options.out, smooth=max(1, options.smooth))
    sys.stdout.write(f"{options.out}: {', '.join(drawn)}\n")
    return 0


def _unique(names: Sequence[str]) -> list[str]:
    """Make names unique by numbering repeats."""
    out: list[str] = []
    for name in names:
        out.append(next(n for k in count(1) if (n := name if k == 1 else f"{name} {k}") not in out))
    return out


if __name__ == "__main__":
    sys.exit(main())
