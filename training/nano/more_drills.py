r"""Continues the base training of a checkpoint with further drills.

    python -m training.nano.more_drills model/nano/nano-base runs/nano/base-7 --first-seed 400000 --drills 90000 \
        --steps 5000

Weights start from the checkpoint, the optimiser anew with a warm-up; the learning rate falls to a twentieth, so that
the end of every run is a usable checkpoint: ``OUT/checkpoint``. ``--resume`` goes on after a stop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from model.checkpoint.checkpoint import VQ_FILE, load_checkpoint, save_checkpoint
from model.checkpoint.manifest import GenerationDefaults
from model.checkpoint.shards import CheckpointError
from model.text.template import Template
from training.data.drills import drill_set
from training.data.token_sets import ImageCoder, id_to_code
from training.jobs.loop import RunStopped, provenance
from training.nano.stages import CONTEXT_LEN, cached_tokens
from training.pesft.loop import SFTModel, SFTSpec, train_sft
from training.world.drills import AIMING, BETWEEN, FINISHING, FOLLOWING, VERIFYING

TOKENS_A_STEP = 3_072
SHARES = {"verifying": VERIFYING, "aiming": AIMING, "following": FOLLOWING, "finishing": FINISHING}


def continue_base(
    base: Path,
    out: Path,
    *,
    first_seed: int,
    drills: int,
    steps: int,
    lr: float,
    seed: int = 0,
    mix: str = "verifying",
    resume: bool = False,
) -> Path:
    """Train on `drills` drills from `first_seed` and return the checkpoint's folder.

    Args:
        base: a checkpoint of the base training.
        out: folder of the run.
        first_seed: of the drills; earlier runs have used those below.
        drills: how many.
        steps: of the optimiser, of 3,072 tokens each.
        lr: at its highest.
        seed: of the data order.
        mix: of the kinds of drills, a key of `SHARES`.
        resume: continue an interrupted run.

    Raises:
        CheckpointError: `base` is not a checkpoint.
        ValueError: it has no VQ.
        RunStopped: the run was stopped; its state is saved.
    """
    loaded = load_checkpoint(base)
    if loaded.vq is None:
        raise ValueError(f"{base} has no VQ")
    out.mkdir(parents=True, exist_ok=True)
    templates = [Template(name, loaded.vocab, loaded.tokenizer) for name in ("plain", "tagged")]
    build = partial(drill_set, first_seed, drills, ImageCoder(loaded.vq), templates, CONTEXT_LEN, shares=SHARES[mix])
    data = cached_tokens(out / "data.npz", build)
    spec = SFTSpec(steps=steps, lr=lr, seed=seed, max_tokens=TOKENS_A_STEP, label=out.name)
    transformer = loaded.transformer.train().requires_grad_(True)
    model = SFTModel.start(spec, transformer, loaded.vq.codebook, id_to_code(loaded.vocab))
    train_sft(spec, model, data, out, resume=resume)
    manifest = loaded.manifest
    before = dict(manifest.lineage)
    earlier = before.pop("before", [])
    lineage = {
        "stage": "base",
        "drills": {"first_seed": first_seed, "count": drills, "shares": SHARES[mix]},
        "run": asdict(spec),
        "before": [before, *earlier],
        **provenance(),
    }
    return save_checkpoint(
        out / "checkpoint",
        config=loaded.config,
        transformer_state=transformer.state_dict(),
        tokenizer=base / "tokenizer.json",
        manifest=replace(manifest, lineage=lineage, verifier=BETWEEN),
        vq_file=base / VQ_FILE,
        generation=GenerationDefaults(temperature=0.0, top_p=1.0),
        overwrite=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.nano.more_drills", description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--first-seed", type=int, required=True)
    parser.add_argument("--drills", type=int, default=90_000)
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mix", choices=sorted(SHARES), default="verifying")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    given = vars(parser.parse_args(argv))
    torch.set_num_threads(given.pop("threads"))
    try:
        folder = continue_base(given.pop("base"), given.pop("out"), **given)
    except RunStopped:
        return 3
    except (CheckpointError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
