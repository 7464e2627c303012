"""Many traces with reconnecting readers: the memory of all processes must not grow with their number."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np

from tests.attack.report import Report, stop
from tests.benchmarks.serving import load, resident
from tests.e2e.real_server import new_server

TRACES = 1000
WARM = 200  # until caches and memory pools have reached their size
EVERY = 40
READERS = 16
SLOPE_LIMIT = 20.0  # MB per 1,000 traces: maximum slope after subtracting its uncertainty


def attack(folder: Path, report: Report, rng: random.Random, scale: float) -> None:
    server = new_server(folder).start()
    counts, memory, wrong = [], [], 0
    try:
        with server.client() as client:
            for done in range(EVERY, max(2 * EVERY, round((WARM + TRACES) * scale)) + 1, EVERY):
                found = asyncio.run(
                    load(server.url, client, EVERY, num_clients=READERS, droppers=READERS // 2, rng=rng)
                )
                wrong += found["wrong"]
                if done > WARM * scale:
                    counts.append(done)
                    memory.append(resident(server, shared_once=True))
        stop(server, report, "soak")
    finally:
        server.kill()
    slope, uncertainty = line(counts, memory)
    report.row("soak_traces", counts[-1], "count")
    report.row("soak_logs_lost_repeated_or_changed", wrong, "count", limit=0)
    report.row("soak_memory_first", memory[0], "MB")
    report.row("soak_memory_last", memory[-1], "MB")
    report.row("soak_slope_uncertainty", uncertainty, "MB per 1,000 traces")
    report.row("soak_slope", slope, "MB per 1,000 traces", limit=SLOPE_LIMIT + 2 * uncertainty)


def line(counts: list[int], memory: list[float]) -> tuple[float, float]:
    """Slope of a fitted line and its standard error, both per 1,000."""
    x, y = np.array(counts, float) / 1000, np.array(memory, float)
    if len(x) < 3:
        return 0.0, 0.0
    slope, offset = np.polyfit(x, y, 1)
    residual = float(np.sum((y - slope * x - offset) ** 2)) / (len(x) - 2)
    return float(slope), float(np.sqrt(residual / np.sum((x - x.mean()) ** 2)))
