"""`omni-r1 train`, `evaluate`, `convert` and `calibrate`: need torch but no server. Imported when called."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_INTERRUPTED, EXIT_OK, CommandError, remark, write
from app.common.settings import SettingsError, read_settings
from app.contract.words import MAX_SEED


def train_nano(args: Namespace) -> int:
    """Runs one stage of the embedded family's training; Ctrl-C finishes the step and saves, --resume continues."""
    from training.nano.stages import run

    logging.basicConfig(format="%(message)s")
    logging.getLogger("omni_r1").setLevel(logging.INFO)
    try:
        with _bad_input():
            folder = run(
                args.stage,
                preset=args.preset,
                out=Path(args.out),
                resume=args.resume,
                seed=args.seed,
                threads=args.threads,
                variant=args.variant,
                perception_weight=args.perception_weight,
                steps=args.steps,
                precision=args.precision,
            )
    except KeyboardInterrupt:
        raise CommandError("stopped; run the command with --resume to continue", EXIT_INTERRUPTED) from None
    remark(f"done: {folder}")
    return EXIT_OK


def evaluate(args: Namespace) -> int:
    """Evaluates a checkpoint on held-out tasks, greedily, and prints the table of scores."""
    import torch
    from tqdm import tqdm

    from model.checkpoint.parts import fetch_base, is_adapter
    from model.checkpoint.shards import resolve
    from training.benchmark.evaluate import error_modes, run, table
    from training.benchmark.verifying import nearest_folder
    from training.spec.spec import EVAL_SEEDS

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    first = EVAL_SEEDS if args.first_seed is None else args.first_seed
    if first < EVAL_SEEDS:
        remark(f"seeds below {EVAL_SEEDS:,} may have been trained on: these are not held-out tasks")
    if first + args.tasks - 1 > MAX_SEED:
        raise CommandError(f"--first-seed: {args.tasks:,} tasks from {first:,} end beyond 2^53-1", EXIT_BAD_INPUT)
    with _bad_input():
        roots = [read_settings().home / "checkpoints"]
        folder = resolve(args.checkpoint, roots=roots)
        if is_adapter(folder):
            fetch_base(folder)  # into the hub's cache, where the loader finds it
        verifier = None
        if args.candidates > 1:
            verifier = resolve(args.verifier, roots=roots) if args.verifier else nearest_folder(folder, roots)
        with tqdm(total=args.tasks, desc="tasks", unit="task") as bar:

            def show(finished: int) -> None:
                bar.update(finished - bar.n)

            summary = run(
                folder,
                tasks=args.tasks,
                level=args.level,
                first_seed=first,
                out=Path(args.out) if args.out else None,
                text_only=args.text_only,
                candidates=args.candidates,
                verifier=verifier,
                quant=args.quant,
                on_finish=show,
            )
    write(table(summary) + "\n")
    if not args.text_only:
        write("\n" + error_modes(summary) + "\n")
    return EXIT_OK


def convert(args: Namespace) -> int:
    """Converts Meta's release layout, a wrapped model's save, or a LoRA adapter and its base to a servable folder."""
    from model.checkpoint.adapter import another_base, merge_adapter
    from model.checkpoint.convert import convert_meta
    from model.checkpoint.parts import fetch_base, is_adapter
    from model.checkpoint.shards import ADAPTER, resolve
    from model.checkpoint.unwrap import unwrap

    source = Path(args.source)
    with _bad_input():
        if is_adapter(source):
            base = resolve(args.base, roots=[read_settings().home / "checkpoints"]) if args.base else fetch_base(source)
            folder = merge_adapter(source, base, args.out, name=args.name)
            if args.base and (named := another_base(source, args.base)):
                remark(f"note: the adapter names {named} as its base, and a base of the same shapes is not the same")
        elif args.adapter or args.base:
            option = "--adapter" if args.adapter else "--base"
            raise ValueError(f"{option} is for a LoRA adapter, and {source} has no {ADAPTER}")
        elif (source / "config.json").is_file():
            folder = unwrap(source, args.out, name=args.name)
        else:
            folder = convert_meta(source, args.out, name=args.name, template=args.template, size=args.size)
    remark(f"converted: {folder}")
    return EXIT_OK


def calibrate(args: Namespace) -> int:
    """Measures the scale of the perception score with a folder of images, and writes it into the manifest."""
    from model.checkpoint.shards import resolve
    from training.scoring import calibrate as calibration

    with _bad_input():
        folder = resolve(args.checkpoint)
        perception, count = calibration.calibrate(folder, args.images)
    if args.json:
        write(json.dumps({"path": str(folder), "images": count, "perception": vars(perception)}, indent=2) + "\n")
        return EXIT_OK
    write("".join(f"{name:<15} {value}\n" for name, value in vars(perception).items()))
    remark(f"measured with {count} images and written to {folder / 'manifest.json'}")
    return EXIT_OK


@contextmanager
def _bad_input() -> Iterator[None]:
    """Turns errors about arguments or their folders into one line."""
    from model.checkpoint.shards import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise CommandError(error.detail, EXIT_BAD_INPUT) from error
    except (ValueError, SettingsError) as error:
        raise CommandError(str(error), EXIT_BAD_INPUT) from error
