"""The memory of a server that exports a thousand traces: flat, whatever the format and the reader's speed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import sqlalchemy as sa
from PIL import Image

from app.client import Client
from app.contract.words import ExportFormat
from app.storage import tables
from app.storage.database import Database
from tests.e2e.browser import FakeServer
from tests.fakes import png

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")]

TRACES = 1_000
MOST_MB = 50
SIDE = 128  # of noise, which PNG cannot compress: 50 kB an image


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    """A server that has a thousand traces of two steps."""
    running = FakeServer(tmp_path_factory.mktemp("export") / "home", {"OMNI_R1_PAGES": "0"})
    try:
        with running.start().client() as client:
            image = client.upload_image(png())["image_id"]
            trace = client.create_trace("Where is the star?", [image])
            for _ in client.events(trace["id"]):
                pass
        multiply(running.home, trace["id"])
        yield running
    finally:
        running.kill()


def multiply(home: Path, trace_id: str) -> None:
    """Add copies of the trace, with large images in place of its own, to the running server's database."""
    db = Database(f"sqlite:///{home / 'omni-r1.db'}")
    large = [add_noise(home, seed) for seed in range(8)]
    t = tables.traces
    with db.write() as connection:
        row = dict(connection.execute(sa.select(t).where(t.c.id == trace_id)).mappings().one())
        copies = []
        for number in range(TRACES):
            steps = [step | {"image": step["image"] | {"image_id": large[number % 8]}} for step in row["steps"]]
            copies.append(row | {"id": f"tr_0{number:019d}", "steps": steps, "rating": 1})
        connection.execute(sa.insert(t), copies)
    db.close()


def add_noise(home: Path, seed: int) -> str:
    noise = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    image_id = hashlib.sha256(out.getvalue()).hexdigest()
    path = home / "images" / image_id[:2] / f"{image_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out.getvalue())
    return image_id


def resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 1e6)


def peak_mb(process: psutil.Process) -> float:
    """The most resident memory since `forget_peak`."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024 / 1e6


def forget_peak(process: psutil.Process) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


@pytest.mark.parametrize("format", ["jsonl", "json", "zip"])
def test_export_of_a_thousand_traces_needs_little_memory(
    server: FakeServer, format: ExportFormat, record_property: pytest.RecordProperty
) -> None:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    before = resident_mb(process)
    forget_peak(process)
    with Client(server.url) as client, client.export(format=format, filter={"rating": 1}) as export:
        size = sum(len(chunk) for chunk in export.chunks)
        assert export.skipped == 0
    above = peak_mb(process) - before
    record_property("megabytes_above_idle", round(above, 1))
    print(f"{format}: {size / 1e6:.0f} MB exported, {above:.1f} MB above idle")  # noqa: T201
    if format != "json":
        assert size > TRACES * 3 * SIDE * SIDE
    assert above < MOST_MB


def test_slow_reader_needs_little_memory(server: FakeServer) -> None:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    before = resident_mb(process)
    forget_peak(process)
    with Client(server.url) as client, client.export(format="jsonl", filter={"rating": 1}) as export:
        next(export.chunks)
        assert client.alive()  # the server has gone on as far as it can
    assert peak_mb(process) - before < MOST_MB
