"""A second checkpoint loaded and tried beside a running engine, as an activation does it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.checkpoint.checkpoint import validate_checkpoint
from model.engine.commands import Configure
from model.engine.engine import Engine
from model.worker.models import Model


def swap(folder: Path, device: str, running: Engine, ask: Callable[[], None]) -> dict[str, Any]:
    """Seconds to check the folder and to load it, and the longest step of the running engine meanwhile.

    `ask` gives it requests whenever it has none.
    """
    took: dict[str, float] = {}
    failed: list[Exception] = []
    settings = Configure(device, 2, None, speculation=0, dtype="bf16", kv_mb=2_048, context=2_048)

    def load() -> None:
        try:
            began = time.perf_counter()
            validate_checkpoint(folder)
            took["check_s"] = time.perf_counter() - began
            began = time.perf_counter()
            Model.load("second", str(folder), 2, device=torch.device(device), settings=settings)
            took["load_s"] = time.perf_counter() - began
        except Exception as error:
            failed.append(error)

    loader = threading.Thread(target=load, daemon=True)  # a time limit ends the part, not the thread
    worst, steps = 0.0, 0
    loader.start()
    while loader.is_alive():
        if running.scheduler.is_idle:
            ask()
        began = time.perf_counter()
        running.step()
        worst, steps = max(worst, time.perf_counter() - began), steps + 1
    if failed:
        raise failed[0]
    return {**took, "steps": steps, "longest_step_ms": 1_000 * worst}
