r"""Study of the verifier: does it prefer right drawings to wrong ones of the same step?

Text-only chains of the world are drawn with several candidates a step; the likeliest is kept. Every candidate is
scored by the perception score, by its log-probability, and by the verifier: log p(order | before, candidate), alone and
as its share among that order and seven orders of other chains of the same kind. Pairs of a right and a wrong candidate
of one step tell how often a score is right (AUC within pairs, ties count half; pooled over steps it would measure the
families). Intervals come from resampling the chains. The world's verdict is only used to judge. Nothing is trained.

    python -m training.studies.verifier runs/base-7/checkpoint --chains 300 --out results/verifier

With `--drawer` another checkpoint draws, each step after its own images so far, as in its traces: whether the verifier
can choose among that one's candidates.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import CheckpointError, resolve
from model.engine.engine import Engine
from model.engine.verifier import order_logprobs
from model.text.instructions import as_instruction
from training.benchmark.stats import Part, ratio
from training.benchmark.verifying import judged_by
from training.data.chains import TextChain
from training.spec.spec import UniTasksData, ZeroHyperparameters
from training.studies.score_study import auc
from training.world.task import Level
from training.world.world import parse_level
from training.zero.chain_sources import read_chains
from training.zero.visualiser import DrawnChain, DrawnStep, Visualiser

OTHERS = 7  # other orders that an order is compared with
SCORES = ("perception", "likelihood", "verifier", "share")


@dataclass(frozen=True, slots=True)
class Step:
    """The candidates of one step: whether each is right, and each score's values."""

    chain: str
    family: str
    right: tuple[bool, ...]
    scores: dict[str, tuple[float, ...]]

    @property
    def pairs(self) -> int:
        """Pairs of a right and a wrong candidate."""
        return sum(self.right) * (len(self.right) - sum(self.right))

    def won(self, score: str) -> float:
        """Pairs in which the right candidate has the higher score; ties count half."""
        values = list(zip(self.scores[score], self.right, strict=True))
        share = auc([value for value, right in values if right], [value for value, right in values if not right])
        return (share or 0.0) * self.pairs

    def best(self, score: str) -> int:
        """Index of the candidate with the highest score, the first of equal ones."""
        values = self.scores[score]
        return values.index(max(values))


def judge(loaded: LoadedCheckpoint, question: str, drawn: Sequence[DrawnChain], *, seed: int = 0) -> list[Step]:
    """Score all candidates of the drawn chains; steps without a verdict of the world are left out."""
    known: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for one in drawn:
        for k, text in enumerate(one.texts):
            known[one.slice, one.kind, k].append(as_instruction(text))
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=1)
    out = []
    for one in drawn:
        before = one.question_codes
        for k, step in enumerate(one.steps):
            if before is not None and step.candidates and step.candidates[0].right is not None:
                order = as_instruction(step.text)
                pool = sorted({other for other in known[one.slice, one.kind, k] if other != order})
                others = Random(f"{seed}/{one.chain_id}/{k}").sample(pool, min(OTHERS, len(pool)))
                drawings = [c.codes for c in step.candidates]
                orders = (order, *others)
                after = [codes for codes in drawings for _ in orders]
                every = [*orders] * len(drawings)
                logprobs = order_logprobs(engine, loaded.template, question, before, after, every)
                out.append(_scored(one, step, torch.tensor(logprobs).view(len(drawings), len(orders))))
            before = step.image or before
    return out


def _scored(one: DrawnChain, step: DrawnStep, found: Tensor) -> Step:
    """`found` [candidates, orders]: log-probabilities, those of the step's own order first."""
    return Step(
        chain=one.chain_id,
        family=one.kind or one.slice,
        right=tuple(bool(c.right) for c in step.candidates),
        scores={
            "perception": tuple(c.score for c in step.candidates),
            "likelihood": tuple(c.logprob for c in step.candidates),
            "verifier": tuple(found[:, 0].tolist()),
            "share": tuple(found.log_softmax(-1)[:, 0].tolist()),
        },
    )


def summarise(steps: Sequence[Step]) -> dict[str, Any]:
    """AUC within pairs and the share of right drawings when each score chooses, overall and by family."""
    families = sorted({step.family for step in steps})
    return {
        "all": _summary(steps),
        **{family: _summary([step for step in steps if step.family == family]) for family in families},
    }


def _summary(steps: Sequence[Step]) -> dict[str, Any]:
    pairs = sum(step.pairs for step in steps)
    out: dict[str, Any] = {
        "steps": len(steps),
        "pairs": pairs,
        "first_right": _share(steps, [(step.right[0], 1) for step in steps]),
        "any_right": _share(steps, [(any(step.right), 1) for step in steps]),
    }
    for name in SCORES:
        out[name] = {
            "auc": _share(steps, [(step.won(name), step.pairs) for step in steps]),
            "best_right": _share(steps, [(step.right[step.best(name)], 1) for step in steps]),
        }
    return out


def _share(steps: Sequence[Step], parts: Sequence[Part]) -> tuple[float, float, float] | None:
    """The ratio of the steps' parts; they are added up by chain, since the steps of a chain are not independent."""
    chains: dict[str, Part] = {}
    for step, (part, whole) in zip(steps, parts, strict=True):
        earlier = chains.get(step.chain, (0.0, 0.0))
        chains[step.chain] = (earlier[0] + part, earlier[1] + whole)
    return ratio([row for row in chains.values() if row[1]])


def table(summary: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    head = ["family", "steps", "pairs", "first right", "any right"]
    head += [f"{name}: {what}" for name in SCORES for what in ("AUC", "chosen right")]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for family, row in summary.items():
        cells = [family, str(row["steps"]), str(row["pairs"]), _shown(row["first_right"]), _shown(row["any_right"])]
        for name in SCORES:
            cells += [_shown(row[name]["auc"]), _shown(row[name]["best_right"])]
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def _shown(value: tuple[float, float, float] | None) -> str:
    return "–" if value is None else f"{value[0]:.3f} ({value[1]:.3f} … {value[2]:.3f})"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.studies.verifier", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="the verifier")
    parser.add_argument("--drawer", help="the checkpoint that draws (the verifier, from instructions)")
    parser.add_argument("--level", default="normal", help="normal, or 1 to 6")
    parser.add_argument("--chains", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=29_000_000, help="of the chains (29000000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    try:
        loaded = load_checkpoint(resolve(given.checkpoint))
        if not loaded.manifest.verifier:
            raise ValueError(f"{given.checkpoint} is no verifier: its manifest names no question")
        drawer = loaded if given.drawer is None else load_checkpoint(resolve(given.drawer))
        judged_by(drawer, loaded)
        level = parse_level(given.level)
        drawn = draw(
            drawer, given.chains, given.candidates, given.first_seed, level=level, own=given.drawer is not None
        )
    except (CheckpointError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    summary = summarise(judge(loaded, loaded.manifest.verifier, drawn))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "verifier.json").write_text(json.dumps(summary, indent=2) + "\n")
    sys.stdout.write(table(summary))
    return 0


def draw(
    loaded: LoadedCheckpoint,
    chains: int,
    candidates: int,
    first_seed: int,
    *,
    level: Level = "normal",
    own: bool = False,
) -> list[DrawnChain]:
    """Draw chains of the world, the likeliest candidate of each step kept; `own`: in the loaded one's own traces."""
    settings = ZeroHyperparameters(
        candidates=candidates,
        score="likelihood",
        context="trajectory" if own else "instruction",
        pictures_shown=2,
        max_steps=8 if own else 4,
    )
    data = UniTasksData.model_validate({"num_samples": chains, "first_seed": first_seed, "level": level})
    visualiser = Visualiser(loaded, settings, seed=0)
    found = [chain for chain in read_chains(data, 0, settings) if isinstance(chain, TextChain)]
    return [one for part in range(0, len(found), 32) for one in visualiser.draw(found[part : part + 32])]


if __name__ == "__main__":
    sys.exit(main())
