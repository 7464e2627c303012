"""The difficulty ladder: how right checkpoints are at each graded level of every family.

    python -m training.studies.ladder nano-omni-r1 runs/rl-step-60 --tasks 24 --out results/ladder

Each checkpoint answers `--tasks` held-out tasks of every family and level: once greedily, as `omni-r1 evaluate`, and
`--samples` times at temperature 1. Writes `ladder.json`, `ladder.md` and `ladder.png`. The predictions of a checkpoint
and level lie in a file of their own; the same command continues an interrupted run with the levels that are missing.
Intervals (95 %) come from resampling the tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.checkpoint.atomic import write_file
from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import resolve
from training.benchmark.evaluate import Prediction, evaluate
from training.benchmark.stats import Part, pass_at, ratio
from training.studies.plots import COLOURS, dress, name_lines, panels, save
from training.world.task import Task
from training.world.world import EVAL_SEED_MIN, FAMILIES, GRADES, make_task

ALL = "all"
MEASURES = ("accuracy", "drawings_right", "pass_1", "pass_n")


@dataclass(frozen=True)
class Plan:
    """What every checkpoint answers."""

    tasks: int = 24  # of a family and level
    samples: int = 8
    levels: tuple[int, ...] = tuple(GRADES)
    first_seed: int = EVAL_SEED_MIN


@dataclass(frozen=True)
class Outcome:
    """The answers to one task: the greedy one, and how many of the samples are right."""

    group: str  # slice/family
    right: bool
    drawings: Part
    samples_right: int
    samples: int

    def parts(self) -> dict[str, Part]:
        """The measures, each a sum and its number of terms."""
        return {
            "accuracy": (float(self.right), 1.0),
            "drawings_right": self.drawings,
            "pass_1": (pass_at(1, self.samples_right, self.samples), 1.0),
            "pass_n": (pass_at(self.samples, self.samples_right, self.samples), 1.0),
        }


def ladder_tasks(level: int, tasks: int, *, first: int = EVAL_SEED_MIN) -> list[Task]:
    """`tasks` tasks of each family at a level: the first seeds, from `first` on, that draw the family."""
    out: list[Task] = []
    for slice_, families in FAMILIES.items():
        for family in families:
            found = (make_task(slice_, seed, level=level) for seed in count(first))
            out += islice((task for task in found if task.family == family), tasks)
    return out


def climb(loaded: LoadedCheckpoint, level: int, plan: Plan, *, slots: int = 64) -> list[Outcome]:
    """The outcome of every task of a level.

    Raises:
        ValueError: the checkpoint cannot read images.
    """
    tasks = ladder_tasks(level, plan.tasks, first=plan.first_seed)
    with tqdm(total=len(tasks) * (1 + plan.samples), desc=f"{loaded.name}, level {level}", disable=None) as bar:

        def show(finished: int) -> None:
            bar.update(1)

        greedy = evaluate(loaded, tasks, num_slots=slots, on_finish=show)
        sampled = evaluate(loaded, tasks, num_slots=slots, temperature=1.0, samples=plan.samples, on_finish=show)
    return [_outcome(one, sampled[i * plan.samples : (i + 1) * plan.samples]) for i, one in enumerate(greedy)]


def _outcome(greedy: Prediction, sampled: Sequence[Prediction]) -> Outcome:
    drawings = float(greedy.drawings_right), float(greedy.drawings_total)
    right = sum(one.right for one in sampled)
    return Outcome(f"{greedy.slice}/{greedy.family}", greedy.right, drawings, right, len(sampled))


def outcomes(loaded: LoadedCheckpoint, level: int, plan: Plan, folder: Path, *, slots: int = 64) -> list[Outcome]:
    """The outcomes of a level: read from `folder` if they were computed before, otherwise computed and kept there.

    Raises:
        ValueError: those in the folder belong to other weights or another plan.
    """
    path = folder / f"level-{level}.json"
    about = {"weights": _weights(loaded), "tasks": plan.tasks, "samples": plan.samples, "first_seed": plan.first_seed}
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["about"] != about:
            raise ValueError(f"{path} belongs to other weights or settings: choose another --out, or delete it")
        return [Outcome(**{**row, "drawings": tuple(row["drawings"])}) for row in kept["outcomes"]]
    found = climb(loaded, level, plan, slots=slots)
    text = json.dumps({"about": about, "outcomes": [asdict(one) for one in found]}) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, lambda temporary: temporary.write_text(text))
    return found


def _weights(loaded: LoadedCheckpoint) -> dict[str, Any]:
    """Hashes of the measured files."""
    return {name: about for name, about in loaded.manifest.files.items() if name.endswith(".safetensors")}


def summarize(found: Sequence[Outcome]) -> dict[str, dict[str, list[float] | None]]:
    """Each measure with its interval, over all families (which have equally many tasks) and of each."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for one in found:
        groups[ALL].append(one)
        groups[one.group].append(one)
    return {name: {measure: _share(rows, measure) for measure in MEASURES} for name, rows in groups.items()}


def _share(rows: Sequence[Outcome], measure: str) -> list[float] | None:
    found = ratio([row.parts()[measure] for row in rows])
    return None if found is None else [round(value, 4) for value in found]


def run_study(checkpoints: dict[str, LoadedCheckpoint], plan: Plan, out: Path, *, slots: int = 64) -> dict[str, Any]:
    """The numbers of all checkpoints by name, level and family."""
    levels: dict[str, dict[str, Any]] = {name: {} for name in checkpoints}
    for level in plan.levels:  # every checkpoint before the next level: an interrupted run can be compared
        for name, loaded in checkpoints.items():
            levels[name][str(level)] = summarize(outcomes(loaded, level, plan, out / name, slots=slots))
    return {**asdict(plan), "checkpoints": levels}


def tables(result: dict[str, Any]) -> str:
    """The ladder in Markdown: all families together, then each family's pass@1 and pass@n."""
    n, names = result["samples"], result["checkpoints"]
    lines = [
        f"| level | checkpoint | accuracy | drawings right | pass@1 | pass@{n} |",
        "|---|---|---|---|---|---|",
    ]
    for level in result["levels"]:
        for name, levels in names.items():
            row = levels[str(level)][ALL]
            lines.append(f"| {level} | {name} | {' | '.join(_interval(row[measure]) for measure in MEASURES)} |")
    for name, levels in names.items():
        lines += ["", f"{name}, pass@1 / pass@{n}:", ""]
        lines += ["| family | " + " | ".join(map(str, result["levels"])) + " |", "|---" * (len(levels) + 1) + "|"]
        for family in next(iter(levels.values())):
            cells = [f"{rows[family]['pass_1'][0]:.2f} / {rows[family]['pass_n'][0]:.2f}" for rows in levels.values()]
            lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(values: list[float] | None) -> str:
    return "–" if values is None else f"{values[0]:.3f} ({values[1]:.3f} … {values[2]:.3f})"


def plot(result: dict[str, Any], path: Path) -> None:
    """A panel for all families and one for each: pass@1 (solid) and pass@n (dashed) by level, a colour a checkpoint."""
    names = list(result["checkpoints"])
    families = list(next(iter(result["checkpoints"][names[0]].values())))
    figure, all_axes = panels(len(families), columns=4, width=2.5, height=1.9)
    for family, axes in zip(families, all_axes, strict=True):
        for name, colour in zip(names, COLOURS * len(names), strict=False):
            rows = [result["checkpoints"][name][str(level)][family] for level in result["levels"]]
            low, high = ([row["pass_1"][side] for row in rows] for side in (1, 2))
            axes.fill_between(result["levels"], low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(result["levels"], [row["pass_1"][0] for row in rows], color=colour, marker=".", linewidth=1.5)
            axes.plot(result["levels"], [row["pass_n"][0] for row in rows], color=colour, linestyle="--", linewidth=1)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xticks(result["levels"])
        dress(axes, family)
    figure.supxlabel(f"level; solid: pass@1 with its 95 % interval, dashed: pass@{result['samples']}", fontsize=8)
    name_lines(figure, names)
    save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; exit code 0, or 2 for weights or settings unlike those in the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="names of the embedded family, or folders")
    parser.add_argument("--tasks", type=int, default=Plan.tasks, help="of each family and level (24)")
    parser.add_argument("--samples", type=int, default=Plan.samples, help="at temperature 1, of each task (8)")
    parser.add_argument("--levels", type=int, nargs="+", choices=GRADES, default=list(GRADES), help="(all)")
    parser.add_argument("--first-seed", type=int, default=EVAL_SEED_MIN, help="(the first held-out one)")
    parser.add_argument("--names", nargs="+", help="in tables and plot (those of the checkpoints)")
    parser.add_argument("--slots", type=int, default=64, help="concurrent sequences")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    loaded = [load_checkpoint(resolve(name)) for name in options.checkpoints]
    names = options.names or [one.name for one in loaded]
    if len(set(names)) != len(loaded):
        parser.error("every checkpoint needs a name of its own: give --names")
    if options.tasks < 1 or options.samples < 1:
        parser.error("--tasks and --samples must be at least 1")
    plan = Plan(options.tasks, options.samples, tuple(sorted(set(options.levels))), options.first_seed)
    try:
        result = run_study(dict(zip(names, loaded, strict=True)), plan, options.out, slots=options.slots)
    except ValueError as error:
        parser.error(str(error))
    (options.out / "ladder.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "ladder.md").write_text(tables(result) + "\n")
    plot(result, options.out / "ladder.png")
    sys.stdout.write(tables(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
