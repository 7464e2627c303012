"""A disk that is full or slow for seconds, and a wall clock that jumps by up to ten years, while people use the server.

The full disk is a file system of 96 MiB (needs the right to mount), the slow one strace's delay of the database's
writes and of each wait for the disk (needs strace and the right to attach it). During each, the server stays alive and
readers wait; afterwards everything works, and the audit of `chaos` finds nothing.
"""

from __future__ import annotations

import errno
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.client import ServerFailed
from tests.attack.audit import Audit
from tests.attack.kill import live_traces
from tests.attack.report import Report, Site, stop, tracebacks
from tests.attack.users import Seen, Users
from tests.e2e.real_server import SERVE, Server, new_server, wait_until
from tests.fakes import png
from tests.patience import PATIENCE_S

ROUNDS = 10
TRACES = 40
FULL_S = 5.0
SLOW_S = 8.0
DELAYS = {"pwrite64": 0.02, "fsync,fdatasync": 0.5}  # seconds of each call
WORST_S = 5.0  # longest answer of /livez meanwhile
HOUR, DAY, YEAR = 3600, 86_400, 31_536_000
JUMPS = (HOUR, -HOUR, DAY, -DAY, 10 * YEAR, -10 * YEAR)


def attack(folder: Path, report: Report, rng: random.Random, scale: float) -> None:
    rounds = max(1, round(ROUNDS * scale))
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(small)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        report.finding("surroundings", f"the full disk is left out: {mounted.stderr.strip()}")
    else:
        try:
            full = FullDisk(small)
            suffer("disk", new_server(small), full.last, report, rng, rounds)
            report.row("disk_refused_while_full", full.refused, "count")
        finally:
            subprocess.run(["umount", "-l", str(small)], check=True)
    slow = folder / "slow"
    slow.mkdir()
    if reason := SlowDisk.missing():
        report.finding("surroundings", f"the slow disk is left out: {reason}")
    else:
        disk = SlowDisk(slow / "calls")
        suffer("slow_disk", new_server(slow), disk.slow, report, rng, rounds)
        report.row("slow_disk_delayed_calls", disk.delayed, "count")
        report.row("slow_disk_livez_worst", 1000 * disk.worst_s, "ms", limit=1000 * WORST_S)
    clock = folder / "clock"
    clock.mkdir()
    (clock / "offset").write_text("0")
    plain = new_server(clock)
    server = WrongClock(plain.home, plain.environment, offset=clock / "offset")
    suffer("clock", server, lambda _server: server.jump(rng), report, rng, rounds)


def suffer(
    name: str, server: Server, blow: Callable[[Server], None], report: Report, rng: random.Random, rounds: int
) -> None:
    """Rounds of traces with one blow at a random moment each."""
    site, faults, traces = Site(name, [server]), 0, 0
    server.environment["OMNI_R1_PAGES"] = "0"
    try:
        server.start()
        audit = Audit(f"sqlite:///{server.home / 'omni-r1.db'}", [server.home])
        for number in range(rounds):
            seen = Seen()
            users = Users(site, rng, TRACES, seen)
            users.begin()
            moment = rng.uniform(0, 0.8) * TRACES
            wait_until(lambda: seen.traces >= moment, "the moment of the blow", PATIENCE_S)  # noqa: B023
            blow(server)
            users.end()
            server.wait_ready()
            wait_until(lambda: not at_work(server), "the end of every trace", PATIENCE_S)
            found = (
                seen.faults + audit.faults() + [f"a reader of {id_} saw another log" for id_ in audit.differ(seen.logs)]
            )
            for fault in found:
                report.finding(f"{name} round {number}", fault)
            faults, traces = faults + len(found), traces + seen.traces
        audit.close()
        stop(server, report, name)
        tracebacks(server, report, name)
    finally:
        server.kill()
    report.row(f"{name}_blows", rounds, "count")
    report.row(f"{name}_traces", traces, "count")
    report.row(f"{name}_faults", faults, "count", limit=0)


def at_work(server: Server) -> bool:
    with server.client() as client:
        return bool(live_traces(client))


class FullDisk:
    """Fills a file system and frees it again."""

    def __init__(self, place: Path) -> None:
        self._filler = place / "filler"
        self.refused = 0

    def last(self, server: Server) -> None:
        """Full for some seconds: the server answers, and refuses what it cannot store with 507."""
        deadline = time.monotonic() + FULL_S
        colour = 0
        with server.client() as client:
            while time.monotonic() < deadline:
                self._fill()
                assert client.alive(), "the server does not answer"
                colour += 1
                try:
                    client.upload_image(png((colour % 256, colour // 256, 7)))
                except ServerFailed as error:
                    if error.status not in (503, 507):
                        raise
                    self.refused += 1
                time.sleep(0.1)
        self._filler.unlink()

    def _fill(self) -> None:
        for size in (1 << 20, 4096, 1):
            try:
                with self._filler.open("ab", buffering=0) as file:
                    while file.write(b"\0" * size) == size:
                        pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


class SlowDisk:
    """Delays the server and its children at each write of the database and each wait for the disk."""

    def __init__(self, calls: Path) -> None:
        self._calls = calls
        self.delayed = 0
        self.worst_s = 0.0

    @staticmethod
    def missing() -> str | None:
        """Why nothing can be delayed here, or None."""
        if shutil.which("strace") is None:
            return "strace is not installed"
        tried = subprocess.run(["strace", "-qqq", "-e", "fsync", "true"], capture_output=True, text=True, check=False)
        return tried.stderr.strip() or "strace failed" if tried.returncode else None

    def slow(self, server: Server) -> None:
        """Slow for some seconds, during which `/livez` is asked all the time."""
        assert server.process is not None
        family = [server.process.pid, *(p.pid for p in psutil.Process(server.process.pid).children(recursive=True))]
        command = ["strace", "-f", "-qqq", "-o", str(self._calls), "-e", f"trace={','.join(DELAYS)}"]
        for calls, delay in DELAYS.items():
            command += ["-e", f"inject={calls}:delay_enter={round(1e6 * delay)}"]
        strace = subprocess.Popen([*command, *(f"--attach={pid}" for pid in family)])
        deadline = time.monotonic() + SLOW_S
        with server.client() as client:
            while time.monotonic() < deadline:
                asked = time.monotonic()
                assert client.alive(), "the server does not answer"
                self.worst_s = max(self.worst_s, time.monotonic() - asked)
                time.sleep(0.05)
        assert strace.poll() is None, "strace could not attach to the server"
        strace.send_signal(signal.SIGINT)  # it detaches
        strace.wait()
        self.delayed += self._calls.read_text().count("DELAYED")


@dataclass
class WrongClock(Server):
    """A server whose wall clock is wrong by the seconds in a file."""

    offset: Path = Path()

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.attack.clocked", str(self.offset), *SERVE[1:], "--port", str(self.port)]

    def jump(self, rng: random.Random) -> None:
        """Set the clock."""
        self.offset.write_text(str(rng.choice(JUMPS)))
