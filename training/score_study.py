"""What the perception score says about pictures: which tau spreads it, and whether it knows right drawings from wrong.

Tasks of the RL range are answered by sampling, as rollouts are. Every drawing gets its energy E_2D and the world's
verdict; reference pictures, blank ones and pictures of random codes stand beside them. Nothing is trained.

    python -m training.score_study nano-omni-r1 --tasks 400 --out results/score

writes `score.json`, `tau.png` and `verdict.png` there and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.images import decode_codes, encode_pictures, is_flat, tv_energy
from model.manifest import Perception
from model.shards import resolve
from training.benchmark import read_response
from training.unitasks.checkers import check_step, sized
from training.unitasks.task import Task
from training.unitasks.world import RL_SEEDS, SLICES, make_task

MULTIPLES = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the checkpoint's own tau
UPSTREAM_TAU = 3.0


@dataclass(frozen=True, slots=True)
class Drawing:
    """One sampled picture: where it belongs, its energy, whether it is blank and whether it is right."""

    family: str
    energy: float
    flat: bool
    right: bool


def energies(loaded: LoadedCheckpoint, codes: Sequence[Sequence[int]]) -> list[float]:
    """E_2D of pictures given by their codes."""
    assert loaded.vq is not None
    rows, columns = loaded.vq.grid
    vectors = loaded.vq.codebook[torch.tensor([list(c) for c in codes])]
    return [float(e) for e in tv_energy(vectors.view(len(codes), rows, columns, -1))]


def sample_drawings(loaded: LoadedCheckpoint, tasks: Sequence[Task], *, seed: int = 0) -> list[Drawing]:
    """What the checkpoint draws for the tasks at temperature 1, top-p 0.95, judged step by step.

    Raises:
        ValueError: the checkpoint cannot draw.
    """
    if loaded.vq is None or not loaded.can_draw:
        raise ValueError(f"{loaded.name} cannot draw")
    questions = [codes for task in tasks for codes in encode_pictures(loaded.vq, [task.image])]
    prompts = [loaded.template.prompt_ids(t.question, [c]) for t, c in zip(tasks, questions, strict=True)]
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=64, admissions_per_step=64)
    params = [SamplingParams(temperature=1.0, top_p=0.95, seed=seed + i) for i in range(len(tasks))]
    out: list[Drawing] = []
    scale = loaded.manifest.perception or Perception()
    for task, seen, completion in zip(tasks, questions, engine.generate(prompts, params), strict=True):
        drawn = read_response(loaded, completion.token_ids, None, None).pictures[: len(task.steps)]
        pictures = [sized(picture) for picture in decode_codes(loaded.vq, [seen, *drawn])]
        for k, (codes, energy) in enumerate(zip(drawn, energies(loaded, drawn) if drawn else [], strict=True), 1):
            right = check_step(task, k, pictures[k - 1], pictures[k])
            out.append(Drawing(task.family, energy, is_flat(codes, scale), right))
    return out


def auc(right: Sequence[float], wrong: Sequence[float]) -> float | None:
    """How often a right one scores above a wrong one (ties count half); None without both."""
    if not len(right) or not len(wrong):
        return None
    values = np.concatenate([right, wrong])
    order = values.argsort(kind="stable")
    ranks = np.empty(len(values))
    _, inverse, counts = np.unique(values[order], return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks[order] = (last - (counts - 1) / 2)[inverse]
    total = ranks[: len(right)].sum() - len(right) * (len(right) + 1) / 2
    return float(total / (len(right) * len(wrong)))


def study(loaded: LoadedCheckpoint, tasks: Sequence[Task], *, seed: int = 0) -> dict[str, Any]:
    """The tau sweep and the score against the verdict, as numbers.

    Returns:
        `kinds`: mean and quantiles of E_2D for drawn, reference, blank and random pictures; `sweep`: for each tau the
        mean, spread and quantiles of the drawn pictures' scores (a blank one's, unguarded, is always 1); `verdict`:
        correlation and AUC of the score with being right, over all and by family; `energies`: the raw values.
    """
    drawings = sample_drawings(loaded, tasks, seed=seed)
    assert loaded.vq is not None
    references = [c for t in tasks for c in encode_pictures(loaded.vq, [s.image for s in t.steps])]
    random = torch.randint(len(loaded.vq.codebook), (200, loaded.vq.config.codes_per_image)).tolist()
    drawn = np.array([d.energy for d in drawings])
    groups = {"drawn": drawn, "reference": np.array(energies(loaded, references))}
    groups["random codes"] = np.array(energies(loaded, random))
    tau = (loaded.manifest.perception or Perception()).tau
    right = np.array([d.right for d in drawings])
    by_family: dict[str, list[Drawing]] = defaultdict(list)
    for one in drawings:
        by_family[one.family].append(one)
    return {
        "checkpoint": loaded.name,
        "tasks": len(tasks),
        "drawings": len(drawings),
        "drawn_right": round(float(right.mean()), 4),
        "blank_share": round(float(np.mean([d.flat for d in drawings])), 4),
        "tau": tau,
        "kinds": {name: _spread(values) for name, values in groups.items()},
        "sweep": [
            {"tau": round(t, 4), **_spread(1 / (1 + drawn / t))}
            for t in sorted({tau * m for m in MULTIPLES} | {UPSTREAM_TAU})
        ],
        "verdict": {
            "all": _against(drawings),
            **{name: _against(by_family[name]) for name in sorted(by_family)},
        },
        "energies": {
            "right": [round(d.energy, 4) for d in drawings if d.right],
            "wrong": [round(d.energy, 4) for d in drawings if not d.right],
            "reference": [round(float(e), 4) for e in groups["reference"]],
        },
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    names = {"p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
    quantiles = {name: round(float(np.quantile(values, q)), 4) for name, q in names.items()}
    return {"mean": round(float(values.mean()), 4), "std": round(float(values.std()), 4), **quantiles}


def _against(drawings: Sequence[Drawing]) -> dict[str, Any]:
    """The score falls with the energy, so its ranks do not depend on tau: minus the energy stands for it."""
    right = [-d.energy for d in drawings if d.right]
    wrong = [-d.energy for d in drawings if not d.right]
    values, labels = np.array(right + wrong), np.array([1.0] * len(right) + [0.0] * len(wrong))
    varies = len(right) > 0 and len(wrong) > 0 and values.std() > 0
    area = auc(right, wrong)
    return {
        "drawings": len(drawings),
        "right": len(right),
        "correlation": round(float(np.corrcoef(values, labels)[0, 1]), 4) if varies else None,
        "auc": None if area is None else round(area, 4),
    }


def tables(result: dict[str, Any]) -> str:
    """The study in Markdown."""
    lines = ["| tau | mean score | std | 5 % | 95 % |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['tau']:.2f} | {row['mean']:.3f} | {row['std']:.3f} | {row['p05']:.3f} | {row['p95']:.3f} |"
        for row in result["sweep"]
    ]
    lines += ["", "| family | drawings | right | correlation | AUC |", "|---|---|---|---|---|"]
    for name, row in result["verdict"].items():
        shown = ["-" if row[key] is None else f"{row[key]:.2f}" for key in ("correlation", "auc")]
        lines.append(f"| {name} | {row['drawings']} | {row['right']} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def plot(result: dict[str, Any], out: Path) -> None:
    """`tau.png`: the scores under each tau; `verdict.png`: energies of right, wrong and reference pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    energy = {name: np.array(values) for name, values in result["energies"].items()}
    drawn = np.concatenate([energy["right"], energy["wrong"]])
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for row in result["sweep"]:
        scores, edges = 1 / (1 + drawn / row["tau"]), np.linspace(0, 1, 61).tolist()
        axes.hist(scores, bins=edges, histtype="step", label=f"tau {row['tau']:.2f}")
    axes.set(xlabel="score of a drawn picture (a blank one, unguarded: 1)", ylabel="pictures", title="R_Pe by tau")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out / "tau.png", dpi=110)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    bins = np.linspace(0, float(np.quantile(np.concatenate(list(energy.values())), 0.99)), 50).tolist()
    for name, values in energy.items():
        if not len(values):
            continue
        axes.hist(values, bins=bins, histtype="step", density=True, label=f"{name} ({len(values)})")
    axes.set(xlabel="E_2D (blank: 0)", ylabel="density", title="Energy of drawn and reference pictures")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out / "verdict.png", dpi=110)
    pyplot.close("all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; exit code 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="a name of the embedded family, or a folder")
    parser.add_argument("--tasks", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/score"))
    options = parser.parse_args(argv)
    first = RL_SEEDS.start + 9_000_000 + options.seed * 10_000
    tasks = [make_task(SLICES[i % len(SLICES)], first + i) for i in range(options.tasks)]
    torch.manual_seed(options.seed)
    result = study(load_checkpoint(resolve(options.checkpoint)), tasks, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "score.json").write_text(json.dumps(result, indent=2) + "\n")
    plot(result, options.out)
    sys.stdout.write(tables(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
