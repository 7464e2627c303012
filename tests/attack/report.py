"""Results of an attack as JSON lines, and the checks that several attacks share."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.client import Client
from app.client.sse import Event
from tests.attack.audit import END_STATUS
from tests.e2e.real_server import Server
from tests.postgres import Cluster

STOP_LIMIT_S = 10.0


@dataclass(frozen=True)
class Site:
    """Servers on one database; `cluster` is its PostgreSQL."""

    name: str
    servers: Sequence[Server]
    cluster: Cluster | None = None


class Report:
    """Prints one JSON object per row and records whether any limit was exceeded."""

    def __init__(self) -> None:
        self.failed = False

    def row(self, name: str, value: float, unit: str, *, limit: float | None = None) -> None:
        """One figure, with an optional maximum `limit`."""
        entry: dict[str, object] = {"name": name, "value": round(value, 3), "unit": unit}
        if limit is not None:
            entry |= {"limit": limit, "ok": value <= limit}
            self.failed |= value > limit
        sys.stdout.write(json.dumps(entry) + "\n")
        sys.stdout.flush()

    def finding(self, name: str, detail: str) -> None:
        """One fault, on stderr; counted by the row of its kind."""
        sys.stderr.write(f"{name}: {detail}\n")


def stop(server: Server, report: Report, name: str) -> None:
    """Sends SIGTERM and reports the shutdown time."""
    started = time.monotonic()
    code = server.stop(signal.SIGTERM, timeout_s=120)
    report.row(f"{name}_sigterm", time.monotonic() - started, "s", limit=STOP_LIMIT_S)
    report.row(f"{name}_exit_code", abs(code), "code", limit=0)


def tracebacks(server: Server, report: Report, name: str) -> None:
    """Reports each traceback in the server's log; it may be folded into one line, or be many."""
    lines = server.log.read_text(errors="replace").splitlines()
    places = [number for number, line in enumerate(lines) if "Traceback (most" in line]
    for number in places:
        shown = " ".join(
            line if len(line) < 1000 else f"{line[:300]} … {line[-700:]}" for line in lines[number : number + 12]
        )
        report.finding(f"{name} log", shown)
    report.row(f"{name}_tracebacks", len(places), "count", limit=0)


def faults_of_trace(client: Client, trace_id: str, seen: Sequence[Event]) -> list[str]:
    """Faults in the log of a trace that must have ended, given what a reader saw before."""
    log = list(client.events(trace_id))
    status = client.trace(trace_id)["status"]
    faults = []
    if [event.seq for event in log] != list(range(1, len(log) + 1)):
        faults.append("ids with gaps or repetitions")
    if [event.raw for event in log[: len(seen)]] != [event.raw for event in seen]:
        faults.append("a reader saw other events than are stored")
    if [event.terminal for event in log] != [False] * (len(log) - 1) + [True]:
        faults.append("not exactly one terminal event at the end")
    elif status not in END_STATUS[log[-1].type]:
        faults.append(f"status {status} after {log[-1].type}")
    return faults
