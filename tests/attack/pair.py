"""Two servers on one PostgreSQL with 200 readers of 20 traces, half of them on the server that does not run the trace.

Measures how much later the events of the other server arrive, the transactions that this costs, and `/livez`. Every
second round the database is restarted in the middle: traces go on or end truthfully, and readers resume by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter, defaultdict
from pathlib import Path

from app.client import Client
from app.contract.words import TERMINAL_EVENTS
from tests.attack.audit import Audit
from tests.attack.kill import live_traces
from tests.attack.report import Report, Site, stop
from tests.attack.users import patiently
from tests.benchmarks.serving import create, frames, percentile, probing
from tests.e2e.real_server import new_server, wait_until
from tests.patience import PATIENCE_S
from tests.postgres import Cluster, why_not

ROUNDS = 10
TRACES = 20
READERS = 200
QUIET_TRACES = 10
RETRY_S = 0.2
LIVEZ_P99_MS = 300  # of two servers that generate on two cores


class Readings:
    """What all readers of a round received, and when."""

    def __init__(self) -> None:
        self.logs: list[tuple[str, list[str]]] = []
        self.arrivals: dict[tuple[str, int], dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
        self.reconnections = 0

    def lags(self) -> list[float]:
        """Milliseconds from an event's first arrival on its own server to each on the other one."""
        both = (at for at in self.arrivals.values() if at[True] and at[False])
        return [1000 * (late - min(at[True])) for at in both for late in at[False]]


def attack(folder: Path, report: Report, rng: random.Random, scale: float) -> None:
    reason = why_not()
    if reason is not None:
        report.finding("pair", f"left out: {reason}")
        return
    cluster = Cluster().start()
    servers, url = [], cluster.new()
    for name in ("one", "two"):
        (folder / name).mkdir()
        servers.append(new_server(folder / name))
        servers[-1].environment |= {"OMNI_R1_DATABASE_URL": url, "OMNI_R1_PAGES": "0"}
    site = Site("pair", servers, cluster)
    try:
        for server in servers:
            server.start()
        measure(site, url, report, rng, max(2, round(ROUNDS * scale)))
        for index, server in enumerate(servers):
            stop(server, report, f"pair_{index + 1}")
    finally:
        for server in servers:
            server.kill()
        cluster.remove()


def measure(site: Site, url: str, report: Report, rng: random.Random, rounds: int) -> None:
    assert site.cluster is not None
    audit = Audit(url, [server.home for server in site.servers])
    faults, lags, spent = 0, [], []
    livez: list[float] = []
    ends: Counter[str] = Counter()
    reconnections = 0
    for number in range(rounds):
        restarted = number % 2 == 1
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.client()) for server in site.servers]
            probes = [stack.enter_context(probing(server.url)) for server in site.servers[: 0 if restarted else 2]]
            before, began = transactions(site.cluster, url), time.monotonic()
            readings = asyncio.run(read_all(site, clients, rng, restarts=restarted))
            spent += [] if restarted else [(transactions(site.cluster, url) - before) / (time.monotonic() - began)]
            wait_until(lambda: not patiently(lambda: live_traces(clients[0])), "the end of every trace", PATIENCE_S)  # noqa: B023
            ends.update(clients[0].trace(trace_id)["status"] for trace_id in {log_id for log_id, _ in readings.logs})
        found = audit.faults() + [f"a reader of {log_id} saw another log" for log_id in audit.differ(readings.logs)]
        for fault in found:
            report.finding(f"pair round {number}", fault)
        faults += len(found)
        reconnections += readings.reconnections
        if not restarted:
            lags += readings.lags()
            livez += [time for probe in probes for time in probe["ms"]]
    audit.close()
    quiet = asyncio.run(read_quietly(site, rng, rounds))
    for status, count in sorted(ends.items()):
        report.row(f"pair_traces_{status}", count, "count")
    report.row("pair_database_restarts", rounds // 2, "count")
    report.row("pair_reconnections", reconnections, "count")
    report.row("pair_transactions", sum(spent) / len(spent), "1/s")
    for share in (0.5, 0.95, 0.99):
        report.row(f"pair_other_server_later_p{100 * share:.0f}", percentile(lags, share), "ms")
    report.row("pair_quiet_other_server_later_p50", percentile(quiet, 0.5), "ms")
    report.row("pair_quiet_other_server_later_p99", percentile(quiet, 0.99), "ms")
    report.row("pair_livez_p50", percentile(livez, 0.5), "ms")
    report.row("pair_livez_p99", percentile(livez, 0.99), "ms", limit=LIVEZ_P99_MS)
    report.row("pair_faults", faults, "count", limit=0)


def transactions(cluster: Cluster, url: str) -> int:
    """All transactions in the database so far."""
    name = url.split("@/")[1].split("?")[0]
    query = f"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
    return int(cluster.execute(query)[0][0])


async def read_all(site: Site, clients: list[Client], rng: random.Random, *, restarts: bool) -> Readings:
    """Traces on both servers in turn, each read from its beginning by equally many readers on both."""
    readings = Readings()
    async with asyncio.TaskGroup() as group:
        for n in range(TRACES):
            owner = n % 2
            trace_id = await asyncio.to_thread(create, clients[owner], rng.randrange(10**9, 2 * 10**9))
            for number in range(READERS // TRACES):
                url, here = site.servers[number % 2].url, number % 2 == owner
                group.create_task(follow(url, trace_id, here, readings))
        if restarts:
            group.create_task(restart(site.cluster))
    return readings


async def read_quietly(site: Site, rng: random.Random, rounds: int) -> list[float]:
    """The same for one trace at a time, with one reader on each server."""
    readings = Readings()
    with site.servers[0].client() as client:
        for _ in range(max(2, rounds * QUIET_TRACES // ROUNDS)):
            trace_id = await asyncio.to_thread(create, client, rng.randrange(10**9, 2 * 10**9))
            await asyncio.gather(*(follow(site.servers[n].url, trace_id, n == 0, readings) for n in range(2)))
    return readings.lags()


async def restart(cluster: Cluster | None) -> None:
    """Crash the database in the middle of the round; it is back after a second."""
    assert cluster is not None
    await asyncio.to_thread(cluster.stop)
    await asyncio.sleep(1)
    await asyncio.to_thread(cluster.start)


async def follow(url: str, trace_id: str, here: bool, readings: Readings) -> None:
    raw: list[str] = []
    number, kind = 0, ""
    while kind not in TERMINAL_EVENTS:
        try:
            async with contextlib.aclosing(frames(url, f"/v1/traces/{trace_id}/events", number)) as stream:
                async for frame in stream:
                    head, event, data = frame.decode().split("\n")
                    number, kind = int(head.removeprefix("id: ")), event.removeprefix("event: ")
                    raw.append(data.removeprefix("data: "))
                    readings.arrivals[trace_id, number][here].append(time.perf_counter())
        except (OSError, AssertionError, asyncio.IncompleteReadError):  # the connection ended, or 503
            readings.reconnections += 1
            await asyncio.sleep(RETRY_S)
    readings.logs.append((trace_id, raw))
