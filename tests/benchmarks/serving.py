"""The whole studio under load, as its users meet it: latency, event streams that drop and resume, memory.

    .venv/bin/python -m tests.benchmarks.serving [--clients 50] [--traces 100]

Starts a server of its own and prints one JSON object a line, {name, ours, peer, ratio, unit}; there is no peer to these
rows, so `peer` and `ratio` are null. Ends with exit code 1 when an event was lost, repeated or changed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from app.client import Client
from app.contract.words import TERMINAL_EVENTS
from tests.e2e.browser import Studio, click_to_first_text, launched, missing_browser
from tests.e2e.real_server import Server, new_server
from training.world.world import SLICES

PROBE_EVERY_S = 0.02
LIVE_AT_ONCE = 8
PARTIAL_IMAGES = 32  # as the studio asks for them


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure the studio under load.")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--traces", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        server = new_server(Path(folder))
        try:
            return measure(server, args.clients, args.traces, random.Random(args.seed))
        finally:
            server.kill()


def measure(server: Server, num_clients: int, num_traces: int, rng: random.Random) -> int:
    started = time.perf_counter()
    server.start()
    row("start_to_ready", time.perf_counter() - started, "s")
    with server.client() as client:
        one_at_a_time(client)
        one_at_a_time(client, pictures=3)
        clicks(server.url)
        row("memory_idle", resident(server), "MB")
        quiet = asyncio.run(load(server.url, client, num_traces // 2, num_clients=LIVE_AT_ONCE, droppers=0, rng=rng))
        with probing(server.url) as probe:
            load_run = load(
                server.url, client, num_traces // 2, num_clients=num_clients, droppers=num_clients // 2, rng=rng
            )
            loaded = asyncio.run(load_run)
        row("livez_p99_under_load", percentile(probe["ms"], 0.99), "ms")
        row("livez_worst_under_load", max(probe["ms"]), "ms")
        row("ms_a_token_quiet", quiet["ms_a_token"], "ms")
        row("ms_a_token_under_load", loaded["ms_a_token"], "ms")
        row("slowdown_by_readers", loaded["ms_a_token"] / quiet["ms_a_token"], "times")
        row("reconnections", loaded["reconnections"], "count")
        row("events_read", loaded["events"], "count")
        wrong = quiet["wrong"] + loaded["wrong"]
        row("logs_lost_repeated_or_changed", wrong, "count")
        row("memory_after_traces", resident(server), "MB")
        row("memory_after_traces_pss", resident(server, shared_once=True), "MB")
    return 1 if wrong else 0


def one_at_a_time(client: Client, *, pictures: int | None = None, runs: int = 15) -> None:
    """POST to first text and to the end, nothing else running; only traces with that many pictures count."""
    first_text, total, seed = [], [], 1_000_000_000
    for _ in range(4 * runs):
        seed += 1
        task = client.task(slice=SLICES[seed % 4] if pictures is None else "operational", seed=seed)
        started = time.perf_counter()
        trace = client.create_trace(task["question"], [task["image_id"]], sampling={"temperature": 0.0})
        text_at, drawn = None, 0
        for event in client.events(trace["id"]):
            if event.type in ("text.delta", "answer.delta") and text_at is None:
                text_at = time.perf_counter() - started
            drawn += event.type == "image.completed"
        if pictures is None or drawn == pictures:
            total.append(time.perf_counter() - started)
            if text_at is not None:
                first_text.append(text_at)
        if len(total) == runs:
            break
    name = "trace" if pictures is None else f"trace_with_{pictures}_pictures"
    if total:
        row(f"{name}_median", statistics.median(total) * 1000, "ms")
    if first_text:
        row(f"{name}_first_text_median", statistics.median(first_text) * 1000, "ms")


def clicks(url: str, runs: int = 7) -> None:
    """A click on "Reason" in a real browser to the model's first words on the page; nothing where there is none."""
    reason = missing_browser()
    if reason is not None:
        sys.stderr.write(f"click_to_first_text is left out: {reason}\n")
        return
    with launched() as browser:
        window = Studio(browser, url)
        times = [click_to_first_text(window.page())[0] for _ in range(runs)]
        window.check()
    row("click_to_first_text_median", statistics.median(times), "ms")


async def load(
    url: str, client: Client, num_traces: int, *, num_clients: int, droppers: int, rng: random.Random
) -> dict[str, Any]:
    """Runs traces, a few at a time, with all readers on the running ones; compares what each read with the log."""
    reads: list[tuple[str, list[str]]] = []
    counts = {"reconnections": 0}
    waiting = [LIVE_AT_ONCE] * (num_traces // LIVE_AT_ONCE) + [num_traces % LIVE_AT_ONCE] * (num_traces % 8 > 0)
    ids: list[str] = []
    for count in waiting:
        batch = [await asyncio.to_thread(create, client, rng.randrange(10**9, 2 * 10**9)) for _ in range(count)]
        ids += batch
        readers = [read(url, batch[n % count], rng if n < droppers else None, counts) for n in range(num_clients)]
        reads += await asyncio.gather(*readers)
    logs = {trace_id: [event.raw for event in client.events(trace_id)] for trace_id in ids}
    traces = [client.trace(trace_id) for trace_id in ids]
    return {
        "wrong": sum(raw != logs[trace_id] for trace_id, raw in reads),
        "events": sum(len(raw) for _, raw in reads),
        "ms_a_token": statistics.median(ms_a_token(trace) for trace in traces if trace["usage"]),
        **counts,
    }


def create(client: Client, seed: int) -> str:
    task = client.task(slice=SLICES[seed % 4], seed=seed)
    asked = task["question"], [task["image_id"]]
    return client.create_trace(*asked, partial_images=PARTIAL_IMAGES, background=True)["id"]


async def read(url: str, trace_id: str, drops: random.Random | None, counts: dict[str, int]) -> tuple[str, list[str]]:
    """Follows one trace; with `drops` it hangs up after a few events and comes back, again and again.

    What comes twice stays in the list, so that it differs from the log.
    """
    raw: list[str] = []
    number, kind = 0, ""
    while kind not in TERMINAL_EVENTS:
        left = drops.randint(1, 25) if drops else 10**9
        async with contextlib.aclosing(frames(url, f"/v1/traces/{trace_id}/events", number)) as stream:
            async for frame in stream:
                head, event, data = frame.decode().split("\n")
                number, kind = int(head.removeprefix("id: ")), event.removeprefix("event: ")
                raw.append(data.removeprefix("data: "))
                left -= 1
                if not left:
                    counts["reconnections"] += 1
                    break
    return trace_id, raw


async def frames(url: str, path: str, after: int) -> AsyncGenerator[bytes]:
    """The events of one connection, on a bare socket: fifty readers should cost the server that they measure little."""
    address = urlsplit(url)
    stream, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nLast-Event-ID: {after}\r\n\r\n".encode())
        head = await stream.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        rest = b""
        while size := int(await stream.readuntil(b"\r\n"), 16):
            rest += (await stream.readexactly(size + 2))[:-2]
            *whole, rest = rest.split(b"\n\n")
            for frame in whole:
                if not frame.startswith(b":"):
                    yield frame
    finally:
        writer.close()


def ms_a_token(trace: Any) -> float:
    """Milliseconds of a running trace per token; with equal numbers of traces at once this follows the step time."""
    timings = trace["timings"]
    return float((timings["total_ms"] - timings["queued_ms"]) / max(1, trace["usage"]["completion_tokens"]))


@contextmanager
def probing(url: str) -> Iterator[dict[str, list[float]]]:
    """Asks for /livez from a process of its own meanwhile; the times are there when the block has ended."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=probe, args=(url, theirs), daemon=True)
    process.start()
    assert ours.recv() == "running"
    found: dict[str, list[float]] = {"ms": []}
    try:
        yield found
    finally:
        ours.send("stop")
        found["ms"] = ours.recv()
        process.join(10)


def probe(url: str, pipe: Connection) -> None:
    address = urlsplit(url)
    with contextlib.closing(HTTPConnection(str(address.hostname), address.port, timeout=30)) as http:

        def ask() -> float:
            started = time.perf_counter()
            http.request("GET", "/livez")
            answer = http.getresponse()
            answer.read()
            assert answer.status == 200
            return (time.perf_counter() - started) * 1000

        ask()
        pipe.send("running")
        times = []
        while not pipe.poll(PROBE_EVERY_S):
            times.append(ask())
    pipe.send(times)


def resident(server: Server, *, shared_once: bool = False) -> float:
    """Megabytes of all processes together: resident, or (Linux) with shared pages counted once."""
    assert server.process is not None
    everyone = [psutil.Process(server.process.pid), *server.children()]
    if shared_once:
        return float(sum(getattr(p.memory_full_info(), "pss", 0) for p in everyone) / 1e6)
    return float(sum(process.memory_info().rss for process in everyone) / 1e6)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def row(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "ours": round(value, 3), "peer": None, "ratio": None, "unit": unit}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
