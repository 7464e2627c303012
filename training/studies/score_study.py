"""Study of the perception score: which tau spreads it, and whether it separates right drawings from wrong ones.

Tasks of the RL range are sampled several times each, like rollouts. Every drawing gets its energy E_2D, its guarded
score and the world's verdict, compared with reference images, copies of the previous image, blank canvases and random
codes. Intervals come from resampling the tasks. Nothing is trained.

    python -m training.studies.score_study nano-omni-r1 --tasks 150 --rollouts 4 --out results/score

writes `score.json`, `tau.png` and `verdict.png` there and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.manifest import Perception
from model.checkpoint.shards import resolve
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.images.codes import decode_codes, encode_images
from training.benchmark.evaluate import read_response
from training.benchmark.stats import ratio
from training.data.token_sets import ImageCoder, encode_tasks
from training.scoring.rewards import ImageScore, Scorer, changes_nothing
from training.studies.score_report import plot, tables
from training.world.checkers import check_step, sized
from training.world.task import Task
from training.world.world import RL_SEEDS, SLICES, make_task

MULTIPLES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the checkpoint's own tau
UPSTREAM_TAU = 3.0
RESAMPLES = 500
MIN_TASKS = 3  # with right, and with wrong drawings: fewer give no result
COLOURS = ("white", "black", "grey", "red", "green", "blue", "orange", "magenta")  # of blank canvases


@dataclass(frozen=True, slots=True)
class Drawing:
    """One sampled image: its task and step, its energy and guarded score, and whether it is right."""

    task: int
    family: str
    step: int
    energy: float
    reward: float
    guard: str
    right: bool


def sample_drawings(
    loaded: LoadedCheckpoint, tasks: Sequence[Task], *, rollouts: int = 1, seed: int = 0
) -> list[Drawing]:
    """Sample drawings for the tasks at temperature 1, top-p 0.95, and judge them step by step.

    Raises:
        ValueError: the checkpoint cannot draw.
    """
    if loaded.vq is None or not loaded.can_draw:
        raise ValueError(f"{loaded.name} cannot draw")
    questions = encode_images(loaded.vq, [task.image for task in tasks])
    prompts = [loaded.template.prompt_ids(t.question, [c]) for t, c in zip(tasks, questions, strict=True)]
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=64, admissions_per_step=64)
    params = [SamplingParams(temperature=1.0, top_p=0.95, seed=seed + task.seed) for task in tasks]
    completions = iter(engine.generate(prompts, params, num_samples=rollouts))
    scorer = _scorer(loaded)
    out: list[Drawing] = []
    for number, (task, seen) in enumerate(zip(tasks, questions, strict=True)):
        for completion in islice(completions, rollouts):
            response = read_response(loaded, completion.token_ids, None, None)
            steps = response.steps[: len(task.steps)]
            drawn = [codes for _, codes in steps if codes is not None]
            images = [sized(image) for image in decode_codes(loaded.vq, [seen, *drawn])]
            before, place = seen, 0
            for k, (text, codes) in enumerate(steps, 1):
                if codes is None:
                    continue
                place += 1
                right = check_step(task, k, images[place - 1], images[place])
                score = scorer.score_image(codes, None if changes_nothing(text) else before)
                out.append(Drawing(number, task.family, k, score.energy, score.score, score.verdict, right))
                before = codes
    return out


def stand_ins(loaded: LoadedCheckpoint, tasks: Sequence[Task]) -> dict[str, list[ImageScore]]:
    """Scores of alternatives to the drawing at every step: the reference, the previous image, one colour, noise."""
    assert loaded.vq is not None
    scorer, config = _scorer(loaded), loaded.vq.config
    canvases = [Image.new("RGB", (config.resolution, config.resolution), colour) for colour in COLOURS]
    blank = cycle(encode_images(loaded.vq, canvases))
    noise = torch.Generator().manual_seed(0)
    out: dict[str, list[ImageScore]] = defaultdict(list)
    for known in encode_tasks(tasks, ImageCoder(loaded.vq), total=len(tasks)):
        before = known.image
        for text, _, codes in known.steps:
            previous = None if changes_nothing(text) else before
            random = torch.randint(len(loaded.vq.codebook), (config.codes_per_image,), generator=noise).tolist()
            choices = {"reference": codes, "picture before": before, "one colour": next(blank), "random codes": random}
            for name, chosen in choices.items():
                out[name].append(scorer.score_image(chosen, previous))
            before = codes
    return dict(out)


def _scorer(loaded: LoadedCheckpoint) -> Scorer:
    assert loaded.vq is not None
    return Scorer(loaded.template, loaded.vq.codebook, loaded.manifest.perception)


def study(
    loaded: LoadedCheckpoint, tasks: Sequence[Task], drawings: Sequence[Drawing], *, rollouts: int = 1
) -> dict[str, Any]:
    """The tau sweep and the score against the verdict, as numbers.

    Returns:
        `kinds`: energies, plain and guarded scores of drawn images and stand-ins; `sweep`: for each tau the spread of
        the drawn images' scores, over all and within one step of one task; `verdict`: correlation and AUC of the
        score with being right, over all, within families and by family; `same_step`: of a right and a wrong drawing of
        one step, how often the right one scores higher; `energies`: the raw values.
    """
    tau = (loaded.manifest.perception or Perception()).tau
    others = stand_ins(loaded, tasks)
    kinds = {
        "drawn, right": [ImageScore(d.energy, d.reward, "ok") for d in drawings if d.right],
        "drawn, wrong": [ImageScore(d.energy, d.reward, "ok") for d in drawings if not d.right],
        **others,
    }
    drawn = np.array([d.energy for d in drawings])
    by_family: dict[str, list[Drawing]] = defaultdict(list)
    for one in drawings:
        by_family[one.family].append(one)
    return {
        "checkpoint": loaded.name,
        "weights": {name: about for name, about in loaded.manifest.files.items() if name.endswith(".safetensors")},
        "tasks": len(tasks),
        "rollouts": rollouts,
        "drawings": len(drawings),
        "drawn_right": round(float(np.mean([d.right for d in drawings])), 4),
        "guards": {name: sum(d.guard == name for d in drawings) for name in sorted({d.guard for d in drawings})},
        "tau": tau,
        "kinds": {name: _kind(scores, tau) for name, scores in kinds.items() if scores},
        "sweep": [_sweep_row(drawings, drawn, t) for t in sorted({tau * m for m in MULTIPLES} | {UPSTREAM_TAU})],
        "verdict": {
            "all": _against(drawings, _plain),
            "all, guarded": _against(drawings, lambda d: d.reward),
            "within families": _against(drawings, _within(by_family)),
            **{name: _against(by_family[name], _plain) for name in sorted(by_family)},
        },
        "same_step": {"plain": _same_step(drawings, _plain), "guarded": _same_step(drawings, lambda d: d.reward)},
        "energies": {
            "right": [round(d.energy, 4) for d in drawings if d.right],
            "wrong": [round(d.energy, 4) for d in drawings if not d.right],
            "reference": [round(score.energy, 4) for score in others["reference"]],
        },
    }


Value = Callable[[Drawing], float]


def _plain(drawing: Drawing) -> float:
    """Minus the energy: the score is monotone in it, so ranks do not depend on tau."""
    return -drawing.energy


def _within(by_family: dict[str, list[Drawing]]) -> Value:
    """Minus the energy, less its family's mean, since a family's common level carries no information about right."""
    means = {name: float(np.mean([d.energy for d in found])) for name, found in by_family.items()}
    return lambda drawing: means[drawing.family] - drawing.energy


def _kind(scores: Sequence[ImageScore], tau: float) -> dict[str, float]:
    energy = np.array([score.energy for score in scores])
    return {
        "pictures": len(scores),
        "energy": round(float(energy.mean()), 4),
        "score": round(float((1 / (1 + energy / tau)).mean()), 4),
        "guarded": round(float(np.mean([score.score for score in scores])), 4),
    }


def _sweep_row(drawings: Sequence[Drawing], energy: np.ndarray, tau: float) -> dict[str, float]:
    scores = 1 / (1 + energy / tau)
    by_step: dict[tuple[int, int], list[float]] = defaultdict(list)
    for drawing, score in zip(drawings, scores, strict=True):
        by_step[drawing.task, drawing.step].append(float(score))
    within = [float(np.std(found)) for found in by_step.values() if len(found) > 1]
    quantiles = {name: round(float(np.quantile(scores, q)), 4) for name, q in (("p05", 0.05), ("p95", 0.95))}
    spread = {"mean": round(float(scores.mean()), 4), "std": round(float(scores.std()), 4), **quantiles}
    return {"tau": round(tau, 4), **spread, "std_within_a_step": round(float(np.mean(within)), 4) if within else 0.0}


def auc(right: Sequence[float], wrong: Sequence[float]) -> float | None:
    """Probability that a right one scores above a wrong one (ties count half); None without both."""
    if not len(right) or not len(wrong):
        return None
    values = np.concatenate([right, wrong])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]
    total = ranks[: len(right)].sum() - len(right) * (len(right) + 1) / 2
    return float(total / (len(right) * len(wrong)))


def _against(drawings: Sequence[Drawing], value: Value) -> dict[str, Any]:
    """Correlation and AUC of a value with being right, with intervals from resampling the tasks (None for too few)."""
    values = np.array([value(d) for d in drawings])
    right = np.array([d.right for d in drawings])
    of_task: dict[int, list[int]] = defaultdict(list)
    for place, drawing in enumerate(drawings):
        of_task[drawing.task].append(place)
    places = [np.array(found) for found in of_task.values()]
    random = np.random.default_rng(0)
    drawn = [
        np.concatenate([places[i] for i in random.integers(len(places), size=len(places))]) for _ in range(RESAMPLES)
    ]
    if min(len({d.task for d in drawings if d.right is kind}) for kind in (True, False)) < MIN_TASKS:
        drawn = []
    return {
        "drawings": len(drawings),
        "tasks": len(places),
        "right": int(right.sum()),
        "correlation": _interval(_correlation, values, right, drawn),
        "auc": _interval(lambda v, r: auc(v[r], v[~r]), values, right, drawn),
    }


def _correlation(values: np.ndarray, right: np.ndarray) -> float | None:
    if right.all() or not right.any() or values.std() == 0:
        return None
    return float(np.corrcoef(values, right)[0, 1])


def _interval(
    statistic: Callable[[np.ndarray, np.ndarray], float | None],
    values: np.ndarray,
    right: np.ndarray,
    resampled: Sequence[np.ndarray],
) -> list[float] | None:
    """The statistic and its 95 % interval; None if undefined or not resampled."""
    found = statistic(values, right)
    if found is None or not resampled:
        return None
    again = [s for places in resampled if (s := statistic(values[places], right[places])) is not None]
    low, high = np.quantile(again, (0.025, 0.975))
    return [round(found, 4), round(float(low), 4), round(float(high), 4)]


def _same_step(drawings: Sequence[Drawing], value: Value) -> dict[str, Any]:
    """Pairs of a right and a wrong drawing of one step of one task: the share in which the right one scores higher."""
    by_step: dict[tuple[int, int], list[Drawing]] = defaultdict(list)
    for one in drawings:
        by_step[one.task, one.step].append(one)
    won: dict[int, float] = defaultdict(float)
    pairs: dict[int, int] = defaultdict(int)
    for (task, _), found in by_step.items():
        right, wrong = ([value(d) for d in found if d.right is kind] for kind in (True, False))
        if (share := auc(right, wrong)) is not None:
            won[task] += share * len(right) * len(wrong)
            pairs[task] += len(right) * len(wrong)
    return {"pairs": sum(pairs.values()), "tasks": len(pairs), "right_higher": _share_of(won, pairs)}


def _share_of(won: dict[int, float], pairs: dict[int, int]) -> list[float] | None:
    found = ratio([(won[task], float(count)) for task, count in pairs.items()])
    return None if found is None else [round(value, 4) for value in found]


def study_tasks(count: int, seed: int = 0) -> list[Task]:
    """`count` tasks of the RL range, the slices in turn."""
    first = RL_SEEDS.start + 9_000_000 + seed * 10_000
    return [make_task(SLICES[i % len(SLICES)], first + i) for i in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; exit code 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a name of the embedded family, or a folder")
    parser.add_argument("--tasks", type=int, default=150)
    parser.add_argument("--rollouts", type=int, default=4, help="answers to each task (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/score"))
    options = parser.parse_args(argv)
    loaded, tasks = load_checkpoint(resolve(options.checkpoint)), study_tasks(options.tasks, options.seed)
    drawings = sample_drawings(loaded, tasks, rollouts=options.rollouts, seed=options.seed)
    write(study(loaded, tasks, drawings, rollouts=options.rollouts), options.out)
    return 0


def write(result: dict[str, Any], out: Path) -> None:
    """Write numbers and plots to the folder, the tables to stdout."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "score.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(result, out)
    sys.stdout.write(tables(result) + "\n")


if __name__ == "__main__":
    sys.exit(main())
