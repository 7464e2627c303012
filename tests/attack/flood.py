"""Image bombs and idle sockets: memory recovers, the server keeps answering, running traces do not fail.

A bomb is a small file with many pixels. The sockets exceed the limit of open files; some send nothing, some stop in the
middle of a head, some in the middle of a body.
"""

from __future__ import annotations

import contextlib
import io
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from PIL import Image

from app.client import Client, OmniError
from tests.attack.kill import create
from tests.attack.report import Report, faults_of_trace, stop
from tests.benchmarks.serving import percentile, probing, resident
from tests.e2e.real_server import SERVE, Server, new_server, wait_until

AT_ONCE = 6
SIDE = 6324  # 40 megapixels, the largest accepted image
WEBP_SIDE = 5656  # 32 megapixels
SETTLE_S = 30.0
SOCKETS = 500
OPEN_FILES = 256
SERVED_S = 60.0
TRACES = 16


def attack(folder: Path, report: Report, rng: random.Random, scale: float) -> None:
    bombs(folder / "bombs", report)
    sockets(folder / "sockets", report, rng, max(20, round(SOCKETS * scale)))


def bombs(folder: Path, report: Report) -> None:
    folder.mkdir()
    server = new_server(folder).start()
    try:
        with server.client() as client:
            client.upload_image(
                png(Image.new("RGB", (64, 64), "red"))
            )  # exclude modules imported on first use from the measurement
        for name, make in BOMBS.items():
            bomb = make()
            before = resident(server)
            with highest(server) as peak, probing(server.url) as probe, ThreadPoolExecutor(AT_ONCE) as pool:
                statuses = list(pool.map(lambda data: upload(server.url, data), [bomb] * AT_ONCE))
                settle(server, before)
            report.row(f"bombs_{name}_file", len(bomb) / 1000, "kB")
            report.row(f"bombs_{name}_5xx", sum(status >= 500 for status in statuses), "count", limit=0)
            report.row(f"bombs_{name}_peak_over_idle", peak.value - before, "MB", limit=600)
            report.row(f"bombs_{name}_left_after_{SETTLE_S:.0f}_s", resident(server) - before, "MB", limit=100)
            report.row(f"bombs_{name}_livez_p99", percentile(probe["ms"], 0.99), "ms", limit=300)
        stop(server, report, "bombs")
    finally:
        server.kill()


def png(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def palette() -> bytes:
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, 200, 30, 30] + [0] * 762)
    return png(image, transparency=0)


def webp() -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (WEBP_SIDE, WEBP_SIDE), (200, 30, 30, 128)).save(out, "WEBP", lossless=True, method=0, quality=0)
    return out.getvalue()


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (200, 30, 30)).save(out, "JPEG", progressive=True)
    return out.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "palette": palette,
    "grey16": lambda: png(Image.new("I;16", (SIDE, SIDE), 20000)),
    "rgba": lambda: png(Image.new("RGBA", (SIDE, SIDE), (200, 30, 30, 128))),
    "webp": webp,
    "jpeg": jpeg,
}


def upload(url: str, data: bytes) -> int:
    return httpx.post(f"{url}/v1/images", files={"file": ("bomb", data)}, timeout=300).status_code


@dataclass
class Peak:
    value: float = 0.0


@contextmanager
def highest(server: Server) -> Iterator[Peak]:
    """The peak resident memory of the server's processes inside the block, in MB."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak.value = max(peak.value, resident(server))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def settle(server: Server, before: float) -> None:
    """Waits until the memory has recovered, or for the maximum time."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline and resident(server) > before + 50:
        time.sleep(0.5)


class FewFiles(Server):
    """A server under a low limit of open files."""

    def command(self) -> list[str]:
        command = [sys.executable, "-m", *SERVE, "--port", str(self.port)]
        return ["sh", "-c", f'ulimit -n {OPEN_FILES} && exec "$@"', "sh", *command]


def sockets(folder: Path, report: Report, rng: random.Random, count: int) -> None:
    folder.mkdir()
    plain = new_server(folder)
    server = FewFiles(plain.home, plain.environment).start()
    opened: list[socket.socket] = []
    try:
        with server.client() as client:
            ids = [create(client, rng) for _ in range(TRACES)]
            opened = [half_said(server.url, rng) for _ in range(count)]
            report.row("sockets_opened", len(opened), "count")
            report.row("sockets_new_request_served_after", time_to_be_served(server.url), "s", limit=SERVED_S)
            late = [create_patiently(server, rng) for _ in range(TRACES)]
            wait_until(lambda: not any(live(client, trace_id) for trace_id in [*ids, *late]), "the traces' ends", 600)
            failed = [trace_id for trace_id in [*ids, *late] if client.trace(trace_id)["status"] != "completed"]
            faults = [fault for trace_id in [*ids, *late] for fault in faults_of_trace(client, trace_id, [])]
        report.row("sockets_failed_traces", len(failed), "count", limit=0)
        report.row("sockets_faulty_logs", len(faults), "count", limit=0)
        stop(server, report, "sockets")
    finally:
        for one in opened:
            one.close()
        server.kill()


def half_said(url: str, rng: random.Random) -> socket.socket:
    """A connection that has sent nothing, half a head, or half a body."""
    address = urlsplit(url)
    connection = socket.create_connection((str(address.hostname), int(address.port or 80)), timeout=60)
    head = f"POST /v1/images HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n"
    said = rng.choice((b"", head.encode()[:40], head.encode() + b"\r\n" + b"x" * 100))
    with contextlib.suppress(ConnectionError):  # the server may close it immediately
        connection.sendall(said)
    return connection


def time_to_be_served(url: str) -> float:
    """Seconds until a normal request is answered; gives up after twice the limit."""
    started = time.monotonic()
    while (passed := time.monotonic() - started) < 2 * SERVED_S:
        try:
            if httpx.get(f"{url}/livez", timeout=5).status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.1)
    return passed


def create_patiently(server: Server, rng: random.Random) -> str:
    """Creates a trace, retrying after rejected or closed connections."""
    deadline = time.monotonic() + 300
    while True:
        try:
            with server.client() as client:
                return create(client, rng)
        except OmniError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def live(client: Client, trace_id: str) -> bool:
    return client.trace(trace_id)["status"] in ("queued", "running")
