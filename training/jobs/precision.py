"""Precision of a run: resolved once at its start, and kept by every resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, cast

from model.precision import Precision, PrecisionChoice, is_emulated, resolve_precision
from training.jobs.loop import RunFolder

if TYPE_CHECKING:
    from training.jobs.context import JobContext

BEFORE_AUTO: Precision = "bf16"  # of runs that recorded no precision

log = logging.getLogger("omni_r1.precision")


def run_precision(choice: PrecisionChoice, device: str, folder: Path, *, resume: bool) -> Precision:
    """Precision of the run in `folder`; on resume, `auto` keeps the recorded one, on any machine.

    Logs a warning if the device only emulates it.
    """
    precision = resolve_precision(choice, device)
    if choice == "auto" and resume and (spec := RunFolder.recorded_spec(folder)) is not None:
        precision = cast("Precision", spec.get("precision", BEFORE_AUTO))
    log.info("precision of the forward: %s (%s requested)", precision, choice)
    if is_emulated(precision, device):
        log.warning("%s", emulated(device))
    return precision


def job_precision(ctx: JobContext, choice: PrecisionChoice, folder: Path) -> Precision:
    """Precision of a job's run, logged; an emulated one is a warning."""
    precision = run_precision(choice, ctx.device, folder, resume=ctx.resume)
    ctx.log.log(f"precision of the forward: {precision} ({choice} requested)")
    if is_emulated(precision, ctx.device):
        ctx.log.warning("precision_emulated", emulated(ctx.device))
    return precision


def emulated(device: str) -> str:
    """Explain why training will be slow."""
    return f"{device} has no bf16 in hardware: PyTorch emulates it, which is many times slower than fp32"
