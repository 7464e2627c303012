r"""Study of verified drawing: what do several candidates an image bring, and what do they cost?

The checkpoint answers the same held-out tasks greedily with each number of candidates; a verifier chooses the one that
goes on (`model/engine/candidates.py`). Beside them is what the same time buys otherwise: the majority among as many
whole traces at temperature 1, the earliest of equally frequent answers. Each row is compared with one greedy trace on
the same tasks. Seconds are those of the whole run divided by the tasks, all of them in one batch of `--slots`.

    python -m training.studies.verified_drawing nano-omni-r1 --verifier runs/base-7/checkpoint --tasks 200 \
        --level hard --counts 1,2,4 --out results/verified
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import CheckpointError, resolve
from training.benchmark.evaluate import Prediction, evaluate, evaluation_tasks
from training.benchmark.stats import ratio, ratio_difference
from training.world.task import Task
from training.world.world import EVAL_SEED_MIN, parse_level

MAX_COUNT = 8


def run_study(
    loaded: LoadedCheckpoint,
    verifier: LoadedCheckpoint,
    tasks: Sequence[Task],
    counts: Sequence[int],
    *,
    voting: bool = True,
    slots: int = 64,
) -> list[dict[str, Any]]:
    """One row for each number of candidates, and one for the majority of as many traces.

    A row has `method`, `count`, `seconds` a task, and `accuracy`, `drawings_right` and their differences from one
    greedy trace, `accuracy_gain` and `drawings_gain`: a value and its 95 % interval each, from resampling the tasks. A
    majority has no drawings of its own. The first count must be 1.

    Raises:
        ValueError: the verifier cannot judge the checkpoint's drawings.
    """
    plans = [("candidates", count) for count in counts]
    plans += [("majority", count) for count in counts if voting and count > 1]
    rows: list[dict[str, Any]] = []
    greedy: list[Prediction] = []
    for method, count in plans:
        votes = method == "majority"
        began = time.perf_counter()
        found = evaluate(
            loaded,
            tasks,
            num_slots=slots,
            temperature=1.0 if votes else 0.0,
            samples=count if votes else 1,
            candidates=1 if votes else count,
            verifier=verifier,
        )
        seconds = (time.perf_counter() - began) / len(tasks)
        if votes:
            found = [majority(found[i : i + count]) for i in range(0, len(found), count)]
        greedy = greedy or found
        rows.append({"method": method, "count": count, "seconds": round(seconds, 4), **_measured(found, greedy, votes)})
        sys.stderr.write(f"{method} {count}: {seconds:.2f} s a task\n")
    return rows


def majority(samples: Sequence[Prediction]) -> Prediction:
    """The first sample with the most frequent answer; samples without an answer only win if none has one."""
    answers = Counter(one.answer.strip().casefold() for one in samples if one.answer is not None)
    if not answers:
        return samples[0]
    ((most, _),) = answers.most_common(1)  # of equally frequent ones, the first
    return next(one for one in samples if one.answer is not None and one.answer.strip().casefold() == most)


def _measured(found: Sequence[Prediction], greedy: Sequence[Prediction], votes: bool) -> dict[str, Any]:
    def right(some: Sequence[Prediction]) -> list[tuple[float, float]]:
        return [(float(one.right), 1.0) for one in some]

    def drawings(some: Sequence[Prediction]) -> list[tuple[float, float]]:
        return [(float(one.drawings_right), float(one.drawings_total)) for one in some]

    return {
        "accuracy": ratio(right(found)),
        "accuracy_gain": ratio_difference(right(greedy), right(found)),
        "drawings_right": None if votes else ratio(drawings(found)),
        "drawings_gain": None if votes else ratio_difference(drawings(greedy), drawings(found)),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    shown = ("accuracy", "accuracy_gain", "drawings_right", "drawings_gain")
    lines = ["| | n | s a task | accuracy | gain | drawings right | gain |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [
            "–"
            if row[key] is None
            else "{:.3f} ({:+.3f} … {:+.3f})".format(*row[key])
            if key.endswith("gain")
            else "{:.3f} ({:.3f} … {:.3f})".format(*row[key])
            for key in shown
        ]
        lines.append(f"| {row['method']} | {row['count']} | {row['seconds']:.2f} | {' | '.join(cells)} |")
    return "".join(line + "\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit code 2 if the verifier cannot judge."""
    parser = argparse.ArgumentParser(
        prog="python -m training.studies.verified_drawing", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint", help="a name of the embedded family, or a folder")
    parser.add_argument("--verifier", help="the checkpoint that judges (the measured one)")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--level", default="normal", help="normal, hard, or 1 to 8")
    parser.add_argument("--first-seed", type=int, default=EVAL_SEED_MIN, help="(the first held-out one)")
    parser.add_argument("--counts", default="1,2,4,8", help="numbers of candidates (1,2,4,8)")
    parser.add_argument("--no-voting", action="store_true", help="leave the majority of whole traces out")
    parser.add_argument("--slots", type=int, default=64, help="concurrent sequences")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        counts = sorted({1, *(int(part) for part in given.counts.split(","))})
        if not 1 <= counts[0] <= counts[-1] <= MAX_COUNT:
            raise ValueError(f"--counts: numbers from 1 to {MAX_COUNT}")
        level = parse_level(given.level)
        tasks = evaluation_tasks(given.tasks, level=level, first=given.first_seed)
        loaded = load_checkpoint(resolve(given.checkpoint))
        verifier = loaded if given.verifier is None else load_checkpoint(resolve(given.verifier))
        rows = run_study(loaded, verifier, tasks, counts, voting=not given.no_voting, slots=given.slots)
    except (CheckpointError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    about = {
        "checkpoint": loaded.name,
        "verifier": verifier.name,
        "tasks": given.tasks,
        "level": level,
        "first_seed": given.first_seed,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "verified-drawing.json").write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    (given.out / "verified-drawing.md").write_text(table(rows))
    sys.stdout.write(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
