"""Many traces with reconnecting readers: the memory of server and engine must not grow with their number."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil

from tests.attack.report import Report, stop
from tests.benchmarks.serving import load
from tests.e2e.real_server import Server, new_server

TRACES = 1000
WARM = 200  # until caches and memory pools have reached their size
EVERY = 40
READERS = 16
SLOPE_LIMIT = 20.0  # MB per 1,000 traces: maximum slope after subtracting its uncertainty


def attack(folder: Path, report: Report, rng: random.Random, scale: float) -> None:
    server = new_server(folder).start()
    counts: list[int] = []
    memory: dict[str, list[float]] = {"server": [], "engine": [], "all": []}
    home: list[float] = []
    wrong = 0
    try:
        with server.client() as client:
            for done in range(EVERY, max(2 * EVERY, round((WARM + TRACES) * scale)) + 1, EVERY):
                found = asyncio.run(
                    load(server.url, client, EVERY, num_clients=READERS, droppers=READERS // 2, rng=rng)
                )
                wrong += found["wrong"]
                if done > WARM * scale:
                    counts.append(done)
                    for name, size in sizes(server).items():
                        memory[name].append(size)
                    home.append(client.storage()["total_bytes"] / 1e3)
        stop(server, report, "soak")
    finally:
        server.kill()
    report.row("soak_traces", counts[-1], "count")
    report.row("soak_logs_lost_repeated_or_changed", wrong, "count", limit=0)
    report.row("soak_home_growth", (home[-1] - home[0]) / max(1, counts[-1] - counts[0]), "kB per trace")
    for name, values in memory.items():
        slope, uncertainty = line(counts, values)
        report.row(f"soak_{name}_first", values[0], "MB")
        report.row(f"soak_{name}_last", values[-1], "MB")
        report.row(f"soak_{name}_slope_uncertainty", uncertainty, "MB per 1,000 traces")
        report.row(f"soak_{name}_slope", slope, "MB per 1,000 traces", limit=SLOPE_LIMIT + 2 * uncertainty)


def sizes(server: Server) -> dict[str, float]:
    """Megabytes of the server's process, of its engine, and of both; shared pages count in part."""
    assert server.process is not None
    own, engine = psutil.Process(server.process.pid), server.children()
    found = {"server": pss([own]), "engine": pss(engine)}
    return found | {"all": sum(found.values())}


def pss(processes: Iterable[psutil.Process]) -> float:
    return float(sum(getattr(process.memory_full_info(), "pss", 0) for process in processes) / 1e6)


def line(counts: list[int], memory: list[float]) -> tuple[float, float]:
    """Slope of a fitted line and its standard error, both per 1,000."""
    x, y = np.array(counts, float) / 1000, np.array(memory, float)
    if len(x) < 3:
        return 0.0, 0.0
    slope, offset = np.polyfit(x, y, 1)
    residual = float(np.sum((y - slope * x - offset) ** 2)) / (len(x) - 2)
    return float(slope), float(np.sqrt(residual / np.sum((x - x.mean()) ** 2)))
