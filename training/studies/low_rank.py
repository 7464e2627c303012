"""Does LoRA learn as much as training all weights? PeSFT of equal length from one base, with several learning rates.

Every run sees the same traces in the same order. The drop of the cross-entropy per token on held-out reference traces
is compared: that of the best learning rate with pairs over that of the best one with all weights.

    python -m training.studies.low_rank nano-base --steps 800 --rank 32 --out results/low-rank

writes `low-rank.json` and `low-rank.md` there and prints the table. Repeated, it keeps the finished runs and goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import CheckpointError, resolve
from model.low_rank import LoRASettings
from model.nets.lora import attach
from training.benchmark.evaluate import evaluation_tasks
from training.data.token_sets import EncodedTask, ImageCoder, TokenSet, encode_tasks, id_to_code, training_tasks
from training.jobs.loop import RunStopped, provenance
from training.nano.stages import CONTEXT_LEN, PESFT_SEEDS, TRACES_A_STEP, cached_tokens
from training.pesft.loop import SFTModel, SFTSpec, train_sft
from training.spec.hyperparameters import PROJECTIONS
from training.studies.held_out_loss import held_out_losses

TOKENS_A_STEP = 3_072
FULL, PAIRS = "all weights", "pairs"


@dataclass(frozen=True, slots=True)
class Run:
    """One training: its way, its learning rate, and the held-out loss at its end."""

    way: str
    lr: float
    loss: float
    trained: int  # parameters


@dataclass(frozen=True)
class Study:
    """The settings that all runs share."""

    base: Path
    held_out: list[EncodedTask]
    data: TokenSet
    steps: int
    rank: int
    seed: int
    out: Path

    def run(self, way: str, lr: float) -> Run:
        """Train once; or read the result, if it is there."""
        folder = self.out / f"{way.replace(' ', '-')}-{lr:g}"
        result = folder / "result.json"
        if result.is_file():
            return Run(**json.loads(result.read_text("utf-8")))
        loaded = load_checkpoint(self.base)
        assert loaded.vq is not None
        transformer = loaded.transformer.train().requires_grad_(True)
        settings = LoRASettings(self.rank, 2.0 * self.rank, 0.0, PROJECTIONS)
        if way == PAIRS:
            attach(transformer, settings, seed=self.seed)
        spec = SFTSpec(
            steps=self.steps,
            lr=lr,
            seed=self.seed,
            max_tokens=TOKENS_A_STEP,
            perception_weight=1.0,
            perception_reduction="mean",
            label=folder.name,
            lora=asdict(settings) if way == PAIRS else None,
        )
        model = SFTModel.start(spec, transformer, loaded.vq.codebook, id_to_code(loaded.vocab))
        train_sft(spec, model, self.data, folder, resume=True)
        trained = sum(weight.numel() for weight in transformer.parameters() if weight.requires_grad)
        found = Run(way, lr, self.loss(replace(loaded, transformer=transformer.eval())), trained)
        result.write_text(json.dumps(asdict(found)) + "\n", "utf-8")
        return found

    def loss(self, loaded: LoadedCheckpoint) -> float:
        """Cross-entropy in nats a token of the held-out traces."""
        losses = held_out_losses(loaded, self.held_out, self.held_out[:1])
        parts = [*losses.text, *losses.image]
        return sum(total for total, _ in parts) / sum(count for _, count in parts)


def share_of_drop(before: float, runs: Sequence[Run]) -> float:
    """The best drop with pairs over the best drop with all weights."""
    full, pairs = (before - min(run.loss for run in runs if run.way == way) for way in (FULL, PAIRS))
    return pairs / full


def table(before: float, runs: Sequence[Run]) -> str:
    """Markdown."""
    lines = ["| trained | parameters | learning rate | held-out loss | drop |", "|---|---|---|---|---|"]
    lines.append(f"| the base | | | {before:.4f} | |")
    for run in runs:
        drop = before - run.loss
        lines.append(f"| {run.way} | {run.trained:,} | {run.lr:g} | {run.loss:.4f} | {drop:.4f} |")
    lines += ["", f"Best with pairs over best with all weights: {share_of_drop(before, runs):.3f} of the drop."]
    return "".join(f"{line}\n" for line in lines)


def rates(text: str) -> list[float]:
    """Learning rates, separated by commas."""
    return [float(part) for part in text.split(",")]


def begin(out: Path, about: dict[str, Any]) -> None:
    """Note the settings of all runs in their folder.

    Raises:
        ValueError: it has runs with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    note = out / "settings.json"
    if note.is_file() and (before := json.loads(note.read_text("utf-8"))) != about:
        raise ValueError(f"{out} has runs with other settings: {json.dumps(before)}")
    note.write_text(json.dumps(about) + "\n", "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit code 2 if the base cannot be trained, or the folder has runs with other settings."""
    parser = argparse.ArgumentParser(
        prog="python -m training.studies.low_rank", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("base", help="a name of the embedded family, or a folder")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--full-rates", type=rates, default="1e-3,2e-3,4e-3", help="learning rates of all weights")
    parser.add_argument("--pair-rates", type=rates, default="2e-3,5e-3,1e-2", help="learning rates of pairs")
    parser.add_argument("--tasks", type=int, default=200, help="held-out traces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(argv)
    torch.set_num_threads(given.threads)
    about: dict[str, Any] = {name: getattr(given, name) for name in ("base", "steps", "rank", "tasks", "seed")}
    try:
        if min(given.steps, given.rank, given.tasks) < 1:
            raise ValueError("--steps, --rank and --tasks must be at least 1")
        base = resolve(given.base)
        loaded = load_checkpoint(base)
        if loaded.vq is None:
            raise ValueError(f"{given.base} has no VQ")
        begin(given.out, about)
    except (CheckpointError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    coder, template = ImageCoder(loaded.vq), loaded.template

    def traces() -> TokenSet:
        tasks = encode_tasks(training_tasks(PESFT_SEEDS, given.steps * TRACES_A_STEP), coder)
        return TokenSet.build((task.render(template) for task in tasks), CONTEXT_LEN)

    held_out = encode_tasks(evaluation_tasks(given.tasks), coder)
    data = cached_tokens(given.out / "data.npz", traces)
    study = Study(base, held_out, data, given.steps, given.rank, given.seed, given.out)
    before = study.loss(loaded)
    planned = [(PAIRS, lr) for lr in given.pair_rates] + [(FULL, lr) for lr in given.full_rates]
    try:
        runs = [study.run(way, lr) for way, lr in planned]
    except RunStopped:
        return 130
    found = {**about, "before": before, "runs": [asdict(run) for run in runs], **provenance()}
    (given.out / "low-rank.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (given.out / "low-rank.md").write_text(table(before, runs), "utf-8")
    sys.stdout.write(table(before, runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
