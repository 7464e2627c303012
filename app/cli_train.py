"""`omni-r1 train`, `evaluate` and `convert`: what needs torch and no server. Imported when one of them is called."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from app.cli import EXIT_BAD_INPUT, CommandError
from app.cli_terminal import remark

EXIT_OK = 0


def train_nano(args: Namespace) -> int:
    """Runs one stage of the embedded family's training; Ctrl-C stops at a step that --resume goes on from."""
    from training.nano import run

    run(
        args.stage,
        preset=args.preset,
        out=Path(args.out),
        resume=args.resume,
        seed=args.seed,
        threads=args.threads,
    )
    return EXIT_OK


def convert(args: Namespace) -> int:
    """Turns Meta's release layout into a servable folder."""
    from model.convert import convert_meta
    from model.shards import CheckpointError

    try:
        folder = convert_meta(args.source, args.out, name=args.name, template=args.template, size=args.size)
    except CheckpointError as error:
        raise CommandError(error.detail, EXIT_BAD_INPUT) from error
    remark(f"converted: {folder}")
    return EXIT_OK
