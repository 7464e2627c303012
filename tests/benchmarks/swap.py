"""Checkpoints swapped under running traces on the real studio: gaps in the streams, failures, memory.

    .venv/bin/python -m tests.benchmarks.swap [--traces 20] [--rounds 3] [--swaps 50]

Starts a server of its own that may hold four of eight copies of the shipped checkpoint, so that every swap reads one.
Prints one JSON object a line as `tests.benchmarks.serving` does. Ends with exit code 1 when a trace failed or mixed two
versions.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import torch

from app.client import Client, ServerFailed
from model.engine.commands import Configure
from model.worker.plan import serving_plan
from tests.benchmarks.serving import PARTIAL_IMAGES, SLICES, frames, percentile, row
from tests.e2e.real_server import SHIPPED, Server, new_server

NAMES = (*(f"copy-{number}" for number in range(1, 8)), SHIPPED.name)
HELD = 4.5  # copies that memory may hold: traces on a machine in a hurry keep up to four of them
PAUSE_S = 0.5  # between two swaps


@dataclass
class Seen:
    """What the readers of one run have seen."""

    gaps_ms: list[float] = field(default_factory=list)  # the worst of each stream
    between: list[str] = field(default_factory=list)  # which events
    swaps_ms: list[float] = field(default_factory=list)
    refused: int = 0  # swaps for which running traces left no room
    failed: int = 0
    mixed: int = 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure swaps of checkpoints under load.")
    parser.add_argument("--traces", type=int, default=20, help="at once (20)")
    parser.add_argument("--rounds", type=int, default=3, help="traces one after another in each stream (3)")
    parser.add_argument("--swaps", type=int, default=50, help="in a row, for the memory (50)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        server = new_server(Path(folder))
        for name in NAMES[:-1]:
            shutil.copytree(SHIPPED, server.home / "checkpoints" / name)
        size = serving_plan(SHIPPED, Configure("cpu", 16, None), torch.device("cpu"), 1 << 40).footprint.resident
        server.environment["OMNI_R1_MEMORY_MB"] = str(int(HELD * size) >> 20)
        try:
            return measure(server.start(), args.traces, args.rounds, args.swaps)
        finally:
            server.kill()


def measure(server: Server, num_traces: int, rounds: int, num_swaps: int) -> int:
    with server.client() as client:
        quiet = asyncio.run(run(client, num_traces, rounds, swapping=False))
        swapped = asyncio.run(run(client, num_traces, rounds, swapping=True))
        for name, seen in (("quiet", quiet), ("swapping", swapped)):
            row(f"stream_gap_median_{name}", percentile(seen.gaps_ms, 0.5), "ms")
            worst = max(seen.gaps_ms)
            row(f"stream_gap_worst_{name}", worst, "ms")
            where = seen.between[seen.gaps_ms.index(worst)]
            sys.stderr.write(f"{name}: the worst gap, {worst:.0f} ms, lay between {where}\n")
        row("swaps_under_load", len(swapped.swaps_ms), "count")
        row("swaps_refused", swapped.refused, "count")
        if swapped.swaps_ms:
            row("swap_median_under_load", percentile(swapped.swaps_ms, 0.5), "ms")
        row("traces_failed", quiet.failed + swapped.failed, "count")
        row("traces_mixed", quiet.mixed + swapped.mixed, "count")
        before, took = 0, []
        for swap in range(num_swaps):
            took.append(activate(client, NAMES[swap % len(NAMES)]))
            if swap == min(9, num_swaps // 2):
                before = resident(server)
        row("swap_median", percentile(took, 0.5), "ms")
        row("memory_grown_over_swaps", (resident(server) - before) / 1e6, "MB")
    return 1 if quiet.failed + swapped.failed + quiet.mixed + swapped.mixed else 0


async def run(client: Client, num_traces: int, rounds: int, *, swapping: bool) -> Seen:
    """That many streams beside each other, each over `rounds` traces; meanwhile the copies take turns."""
    seen = Seen()

    async def swap() -> None:
        while True:
            for name in NAMES:
                await asyncio.sleep(PAUSE_S)
                try:
                    seen.swaps_ms.append(await asyncio.to_thread(activate, client, name))
                except ServerFailed as error:
                    if error.code != "insufficient_memory":
                        raise
                    seen.refused += 1

    async with httpx.AsyncClient(base_url=client.base_url, timeout=None, trust_env=False) as http:
        swaps = asyncio.create_task(swap()) if swapping else None
        await asyncio.gather(*(follow(client, http, number, rounds, seen) for number in range(num_traces)))
        if swaps is not None:
            swaps.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await swaps
    return seen


async def follow(client: Client, http: httpx.AsyncClient, number: int, rounds: int, seen: Seen) -> None:
    for turn in range(rounds):
        task = await asyncio.to_thread(client.task, slice=SLICES[number % 4], seed=1_000_000_000 + number)
        body = {
            "question": task["question"],
            "images": [{"image_id": task["image_id"]}],
            "sampling": {"temperature": 1.0, "seed": 1000 * turn + number},
            "partial_images": PARTIAL_IMAGES,
        }
        trace = (await http.post("/v1/traces", json=body)).raise_for_status().json()
        worst, between, last, before = 0.0, "", None, ""
        async with contextlib.aclosing(frames(client.base_url, f"/v1/traces/{trace['id']}/events", 0)) as stream:
            async for frame in stream:
                now, event = time.perf_counter(), frame.split(b"\n")[1].decode().removeprefix("event: ")
                if last is not None and now - last > worst:
                    worst, between = now - last, f"{before} and {event}"
                last, before = None if event == "trace.queued" else now, event  # who waits for a slot is not in a gap
        end = (await http.get(f"/v1/traces/{trace['id']}")).json()
        versions = {(trace["checkpoint"], trace["weight_version"]), (end["checkpoint"], end["weight_version"])}
        seen.gaps_ms.append(worst * 1000)
        seen.between.append(between)
        seen.failed += end["status"] != "completed"
        seen.mixed += len(versions) != 1


def activate(client: Client, name: str) -> float:
    """Milliseconds until new traces run on it."""
    began = time.perf_counter()
    client.activate(name)
    return (time.perf_counter() - began) * 1000


def resident(server: Server) -> int:
    """Bytes of the server and its engine process."""
    assert server.process is not None
    processes = [psutil.Process(server.process.pid), *server.children()]
    return int(sum(process.memory_info().rss for process in processes))


if __name__ == "__main__":
    sys.exit(main())
