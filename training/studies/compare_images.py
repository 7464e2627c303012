"""Compares answers, drawings and losses of two checkpoints on the same held-out tasks.

Greedy, as `omni-r1 evaluate`. Differences are computed per task, with a 95 % interval from resampling the tasks. The
images of the reference traces are measured as well. Nothing is trained.

    python -m training.studies.compare_images FIRST SECOND --tasks 400 --names "lambda 1" "lambda 0" --out
    results/lambda

writes `pictures.json`, `pictures.png` (distributions) and `sheet.png` (a task of each family, drawn by both) there and
prints the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import resolve
from model.images.codes import copied_share, decode_codes, image_energies
from training.benchmark.evaluate import ask, evaluation_tasks, read_response
from training.benchmark.stats import Part, paired, ratio, ratio_difference
from training.data.token_sets import EncodedTask, ImageCoder, encode_tasks
from training.scoring.grading import is_right
from training.studies.held_out_loss import held_out_losses
from training.studies.plots import COLOURS, GREY, dress, panels, save, shares
from training.studies.side_by_side import Row, side_by_side
from training.world.checkers import change_outside_ink, check_step, sized
from training.world.task import BoxTarget, LineTarget, MarkTarget, Task
from training.world.world import LEVELS, RL_SEEDS, SLICES, make_task, parse_level
from training.zero.report import pairwise_distance

Codes = tuple[int, ...]
INKED = (BoxTarget, LineTarget, MarkTarget)
MEASURES = {
    "accuracy": "right answers",
    "drawings_right": "drawings right",
    "malformed": "malformed traces",
    "blank": "blank images",
    "pictures": "images per task",
    "energy": "E_2D of an image",
    "changed": "share of codes changed from the previous image",
    "outside_ink": "change outside the ink of a mark, grey levels",
    "from_reference": "difference from the reference image, grey levels",
    "distinct": "different codes in an image",
    "ce_text": "cross-entropy of text, nats a token",
    "ce_image": "cross-entropy of codes, nats a code",
    "pe_own": "L_Pe under the checkpoint's own W",
    "pe_fitted": "L_Pe under a linear map fitted to it",
}
SHOWN = ("energy", "changed", "outside_ink", "from_reference")  # plotted as distributions


@dataclass
class Look:
    """Measures of one checkpoint (or the reference): sums and counts per task."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in SHOWN})  # of each image
    images: list[Codes] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)  # of the sheet

    def add(self, parts: dict[str, Part]) -> None:
        """Add the measures of the next task."""
        for name, part in parts.items():
            self.parts.setdefault(name, []).append(part)


def look_at_drawings(
    loaded: LoadedCheckpoint, tasks: Sequence[Task], references: Sequence[EncodedTask]
) -> tuple[Look, Look]:
    """Measure the checkpoint's greedy answers to the tasks, and the reference traces.

    Raises:
        ValueError: the checkpoint cannot draw.
    """
    if not loaded.can_draw:
        raise ValueError(f"{loaded.name} cannot draw")
    look, reference = Look(), Look()
    for task, known, (seen, completion) in zip(tasks, references, ask(loaded, tasks), strict=True):
        response = read_response(loaded, completion.token_ids, None, None)
        wanted = [codes for _, _, codes in known.steps]
        _measure(reference, loaded, task, known.image, wanted, wanted)
        _measure(look, loaded, task, seen, [codes for _, codes in response.steps], wanted)
        right = is_right(response.answer, task.answer)
        images = len(response.images)
        look.add(
            {
                "accuracy": (float(right), 1.0),
                "malformed": (float(not response.well_formed), 1.0),
                "blank": (float(response.blank), float(images)),
                "pictures": (float(images), 1.0),
            }
        )
        look.rows[-1].answer, look.rows[-1].right = response.answer, right
        reference.rows[-1].answer, reference.rows[-1].right = task.answer, True
    return look, reference


def _measure(
    look: Look,
    loaded: LoadedCheckpoint,
    task: Task,
    seen: Codes,
    drawn: Sequence[Codes | None],
    wanted: Sequence[Codes],
) -> None:
    """Measure the drawings of a task's steps; ``wanted`` are the references' codes."""
    assert loaded.vq is not None
    whole = [codes for codes in drawn if codes is not None]
    decoded = [sized(image) for image in decode_codes(loaded.vq, [seen, *wanted, *whole])]
    references, images = decoded[1 : 1 + len(wanted)], iter(decoded[1 + len(wanted) :])
    before, previous = seen, decoded[0]
    values: dict[str, list[float]] = {name: [] for name in SHOWN}
    distinct, right = 0, 0
    row = Row(task, previous)
    for k, codes in enumerate(drawn[: len(task.steps)]):
        if codes is None:
            continue
        image = next(images)
        verdict = check_step(task, k + 1, previous, image)
        right += verdict
        row.images.append((image, verdict))
        values["energy"] += image_energies(loaded.vq, [codes])
        values["changed"].append(1.0 - copied_share(codes, before))
        values["from_reference"].append(_difference(image, references[k]))
        if isinstance(task.steps[k].target, INKED):
            values["outside_ink"].append(change_outside_ink(previous, image))
        distinct += len(set(codes))
        look.images.append(codes)
        before, previous = codes, image
    look.rows.append(row)
    parts = {name: (sum(found), float(len(found))) for name, found in values.items()}
    parts["distinct"] = (float(distinct), float(len(values["energy"])))
    parts["drawings_right"] = (float(right), float(max(len(task.steps), len(whole))))
    look.add(parts)
    for name, found in values.items():
        look.values[name] += found


def _difference(first: Image.Image, second: Image.Image) -> float:
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


def compare(
    first: LoadedCheckpoint, second: LoadedCheckpoint, tasks: Sequence[Task], others: Sequence[Task]
) -> tuple[dict[str, Any], list[Look]]:
    """The comparison as numbers, and the underlying looks.

    Args:
        first: a checkpoint that can draw.
        second: another one.
        tasks: the tasks.
        others: tasks for fitting the linear maps of L_Pe.

    Returns:
        The numbers; and three looks: the references' (under the first's VQ), the first's and the second's.
    """
    looks: list[Look] = []
    spreads: list[float] = []
    for loaded in (first, second):
        assert loaded.vq is not None
        coder = ImageCoder(loaded.vq)
        known, apart = encode_tasks(tasks, coder, total=len(tasks)), encode_tasks(others, coder, total=len(others))
        look, reference = look_at_drawings(loaded, tasks, known)
        losses = held_out_losses(loaded, known, apart)
        look.parts |= {"ce_text": losses.text, "ce_image": losses.image, "pe_fitted": losses.perception_fitted}
        if losses.perception is not None:
            look.parts["pe_own"] = losses.perception
        spreads.append(losses.spread)
        looks += [look] if looks else [reference, look]
    measures: dict[str, dict[str, Any]] = {}
    for name, label in MEASURES.items():
        given = [look.parts.get(name) for look in looks]
        known_part, one, two = given
        measures[name] = {
            "label": label,
            "reference": _rounded(ratio(known_part)) if known_part else None,
            "first": _rounded(ratio(one)) if one else None,
            "second": _rounded(ratio(two)) if two else None,
            "difference": _rounded(ratio_difference(one, two)) if one and two else None,
        }
    right = [[total > 0 for total, _ in look.parts["accuracy"]] for look in looks[1:]]
    result = {
        "checkpoints": [first.name, second.name],
        "tasks": len(tasks),
        "fitted_on": len(others),
        "measures": measures,
        "accuracy": paired(*right),
        "codes": {
            name: {
                "pictures": len(look.images),
                "used": len({code for codes in look.images for code in codes}),
                "pairwise_distance": pairwise_distance(look.images),
            }
            for name, look in zip(("reference", "first", "second"), looks, strict=True)
        },
        "constant_guess_leaves": [round(spread, 4) for spread in spreads],
    }
    return result, looks


def _rounded(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else [round(value, 4) for value in values]


def table(result: dict[str, Any], names: Sequence[str]) -> str:
    """The comparison in Markdown; brackets hold 95 % intervals."""

    def shown(values: list[float] | None, *, sign: bool = False) -> str:
        if values is None:
            return "–"
        plus = "+" if sign else ""
        return f"{values[0]:{plus}.3f} ({values[1]:{plus}.3f} … {values[2]:{plus}.3f})"

    lines = [f"| | reference | {names[0]} | {names[1]} | difference |", "|---|---|---|---|---|"]
    for row in result["measures"].values():
        reference = "–" if row["reference"] is None else f"{row['reference'][0]:.3f}"
        difference = shown(row["difference"], sign=True)
        lines.append(
            f"| {row['label']} | {reference} | {shown(row['first'])} | {shown(row['second'])} | {difference} |"
        )
    for key, label in (("used", "codes in use"), ("pairwise_distance", "codes that differ between two images")):
        cells = [result["codes"][name][key] for name in ("reference", "first", "second")]
        texts = ["–" if c is None else f"{c}" if isinstance(c, int) else f"{c:.3f}" for c in cells]
        lines.append(f"| {label} | {texts[0]} | {texts[1]} | {texts[2]} | |")
    return "\n".join(lines)


def plot(looks: Sequence[Look], names: Sequence[str], out: Path) -> None:
    """Plot distributions over the images of the reference and of both checkpoints."""
    figure, all_axes = panels(len(SHOWN), columns=2, width=4.0)
    for name, axes in zip(SHOWN, all_axes, strict=True):
        everything = np.concatenate([np.asarray(look.values[name]) for look in looks])
        top = float(np.quantile(everything, 0.99)) if len(everything) else 1.0
        edges = np.linspace(0, max(top, 1e-6), 31).tolist()
        if name != "from_reference":
            shares(axes, looks[0].values[name], edges, GREY, "reference", filled=True)
        for look, label, colour in zip(looks[1:], names, COLOURS, strict=False):
            shares(axes, look.values[name], edges, colour, label)
        dress(axes, MEASURES[name], y="share of the images", legend=name == SHOWN[0])
    save(figure, out)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs=2, help="names of the embedded family, or folders")
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--fit-tasks", type=int, default=200, help="of the RL range, for the linear maps of L_Pe (200)")
    parser.add_argument("--level", type=parse_level, choices=LEVELS, default="normal")
    parser.add_argument("--names", nargs=2, help="in the table and the plots (those of the checkpoints)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    first, second = (load_checkpoint(resolve(name)) for name in options.checkpoints)
    names = options.names or [first.name, second.name]
    tasks = evaluation_tasks(options.tasks, level=options.level)
    start = RL_SEEDS.stop - 100_000
    others = [make_task(SLICES[i % len(SLICES)], start + i) for i in range(options.fit_tasks)]
    result, looks = compare(first, second, tasks, others)
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"names": names, "level": options.level, "weights": [_weights(first), _weights(second)]}
    (options.out / "pictures.json").write_text(json.dumps({**about, **result}, indent=2) + "\n")
    plot(looks, names, options.out / "pictures.png")
    sheet = side_by_side(dict(zip(("reference", *names), (look.rows for look in looks), strict=True)))
    sheet.quantize(255, dither=Image.Dither.NONE).save(options.out / "sheet.png", optimize=True)  # halves the size
    sys.stdout.write(table(result, names) + "\n")
    return 0


def _weights(loaded: LoadedCheckpoint) -> dict[str, Any]:
    """Hashes of the measured files."""
    return {name: about for name, about in loaded.manifest.files.items() if name.endswith(".safetensors")}


if __name__ == "__main__":
    sys.exit(main())
