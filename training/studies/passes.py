r"""Forward passes that a checkpoint takes for an image, by task family and by the widest window of guessed codes.

Held-out tasks of every family, greedy or sampled, at most 16 at once. A window changes no token (docs/drawing.md).

    python -m training.studies.passes nano-omni-r1 --tasks 20 --windows 16,32,64 --out results/passes
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import CheckpointError, resolve
from model.engine.drafts import MOST_ROWS
from model.engine.engine import Engine
from model.engine.phases import Legal
from model.engine.sequence import SamplingParams
from model.images.codes import encode_images
from training.studies.plots import COLOURS, dress, panels, save
from training.world.task import Task
from training.world.world import EVAL_SEED_MIN, FAMILIES, make_task

Passes = dict[str, list[int]]  # of each image, by family


def family_tasks(count: int) -> list[Task]:
    """`count` held-out tasks of each family."""
    return [
        make_task(slice_, EVAL_SEED_MIN + number, family=family)
        for slice_, families in FAMILIES.items()
        for family in families
        for number in range(count)
    ]


def passes_by_family(
    loaded: LoadedCheckpoint, tasks: Sequence[Task], *, window: int, temperature: float = 0.0
) -> Passes:
    """Answer the tasks and count the forward passes of every image drawn, from its first code to its last.

    Raises:
        ValueError: the checkpoint cannot read images.
    """
    if loaded.vq is None:
        raise ValueError(f"{loaded.name} has no VQ: it cannot read images")
    engine = Engine(
        loaded.transformer,
        loaded.vocab,
        loaded.template,
        num_slots=MOST_ROWS,
        admissions_per_step=MOST_ROWS,
        speculation=window,
    )
    questions = encode_images(loaded.vq, [task.image for task in tasks])
    for number, (task, codes) in enumerate(zip(tasks, questions, strict=True)):
        prompt = loaded.template.prompt_ids(task.question, [tuple(codes)])
        params = SamplingParams(temperature=temperature, seed=task.seed)
        engine.add_request(prompt, params, request_id=str(number))
    found: Passes = {task.family: [] for task in tasks}
    latest = [0] * len(tasks)
    while not engine.scheduler.is_idle:
        for output in engine.step():
            number = int(output.request_id)
            if output.legal is Legal.CODE:
                latest[number] = output.passes
            elif output.legal is Legal.FORCED:  # end-image
                found[tasks[number].family].append(latest[number])
    return found


def means(found: Passes) -> dict[str, float]:
    """Mean passes an image of each family that drew any, and their mean under `all`."""
    each = {family: statistics.mean(passes) for family, passes in found.items() if passes}
    return each | {"all": statistics.mean(each.values())} if each else {}


def table(by_window: Mapping[int, Mapping[str, float]]) -> str:
    """Markdown: a row for each family, a column for each window."""
    rows = ["| family | " + " | ".join(f"window {window}" for window in by_window) + " |"]
    rows.append("|---" * (len(by_window) + 1) + "|")
    for family in next(iter(by_window.values()), {}):
        cells = [f"{found[family]:.1f}" if family in found else "–" for found in by_window.values()]
        rows.append(f"| {family} | {' | '.join(cells)} |")
    return "".join(row + "\n" for row in rows)


def plot(by_window: Mapping[int, Mapping[str, float]], codes: int, path: Path) -> None:
    """Bars of the families' mean passes by window, as a PNG."""
    figure, (axes,) = panels(1, width=7.0, height=3.0)
    for number, (colour, (window, found)) in enumerate(zip(COLOURS, by_window.items(), strict=False)):
        places = [place + 0.8 * number / len(by_window) for place in range(len(found))]
        axes.bar(places, list(found.values()), 0.8 / len(by_window), color=colour, label=f"window {window}")
    families = list(next(iter(by_window.values())))
    middle = 0.4 * (1 - 1 / len(by_window))
    axes.set_xticks([place + middle for place in range(len(families))], families, rotation=40, ha="right")
    axes.set_ylim(top=1.4 * max(max(found.values()) for found in by_window.values()))  # room for the legend
    dress(axes, f"Forward passes an image of {codes} codes", y="passes", legend=True)
    save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit code 2 for a checkpoint that cannot see or draw."""
    parser = argparse.ArgumentParser(
        prog="python -m training.studies.passes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("checkpoint", help="a name of the embedded family, or a folder")
    parser.add_argument("--tasks", type=int, default=20, help="of each family")
    parser.add_argument("--windows", default="16,32,64", help="widest windows (16,32,64)")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        loaded, tasks = load_checkpoint(resolve(given.checkpoint)), family_tasks(given.tasks)
        by_window = {
            window: means(passes_by_family(loaded, tasks, window=window, temperature=given.temperature))
            for window in map(int, given.windows.split(","))
        }
        if not all(by_window.values()):
            raise ValueError(f"{loaded.name} drew no image")
    except (CheckpointError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    about = {"checkpoint": loaded.name, "tasks": given.tasks, "temperature": given.temperature}
    (given.out / "passes.json").write_text(json.dumps({**about, "passes": by_window}, indent=2) + "\n")
    (given.out / "passes.md").write_text(table(by_window))
    plot(by_window, loaded.vocab.codes_per_image, given.out / "passes.png")
    sys.stdout.write(table(by_window))
    return 0


if __name__ == "__main__":
    sys.exit(main())
