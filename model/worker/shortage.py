"""A step that fails: which requests end, and what their error says.

A step draws tokens only after its forward pass. If memory runs out before the first token, nothing has changed but
cached rows that the next step writes again: the newest request ends, which makes room, and the others go on.
"""

from __future__ import annotations

import logging

import torch

from model.engine.device import free_bytes, is_shortage, total_bytes
from model.engine.engine import Engine
from model.engine.messages import Failed
from model.engine.sequence import Sequence
from model.worker.models import Model

log = logging.getLogger("omni_r1.engine")

GIB = 1 << 30
Progress = list[tuple[Sequence, int]]


def progress(engine: Engine) -> Progress:
    """The running sequences and their numbers of tokens, before a step."""
    return [(sequence, len(sequence.response)) for sequence in engine.scheduler.running]


def settle(model: Model, error: Exception, before: Progress) -> tuple[set[str], Failed]:
    """The requests that a failed step ends, and their output; what the step left in the caches is dropped.

    `before` is the engine's progress before the step.
    """
    engine = model.engine
    # If none is running, the first one that waits ends: the next step would fail like this one.
    running = list(engine.scheduler.running) or list(engine.scheduler.waiting)[:1]
    if not is_shortage(error):
        log.error("a step of %s failed", model.name, exc_info=error)
        engine.reset()
        return {s.request_id for s in running}, Failed("engine_error", f"a step failed: {_named(error)}")
    detail = (
        f"the device ran out of memory in a step of {len(running)} traces, with {free_bytes(engine.device) / GIB:.1f} "
        f"of {total_bytes(engine.device) / GIB:.1f} GiB free; a lower OMNI_R1_KV_MB or OMNI_R1_CONTEXT leaves more for "
        f"a step ({_named(error)})"
    )
    log.error("%s: %s", model.name, detail)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if running and all(len(sequence.response) == length for sequence, length in before):
        return {max(running, key=lambda sequence: sequence.admission).request_id}, Failed("engine_error", detail)
    engine.reset()
    return {sequence.request_id for sequence in running}, Failed("engine_error", detail)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
