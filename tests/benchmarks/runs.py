"""The chart of fifty runs of 10,000 steps each, in chromium: first paint, frames of a drag and a zoom, bytes.

    .venv/bin/python -m tests.benchmarks.runs

Starts a server of its own with invented runs, and prints one JSON object a line as `tests.benchmarks.serving` does.
`series_over_events` is the time to read the metric from its series, over the time to read it from the jobs' events.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from app.client import Client
from app.jobs import series, store
from app.storage import tables
from app.storage.database import Database
from tests.benchmarks.serving import row
from tests.e2e.browser import FakeServer, Studio, launched

RUNS, STEPS, KEY = 50, 10_000, "loss/ce"
READY = "html[data-runs=ready]"

# Loads and draws again what the page shows; resolves after the next frame.
PAINT = """async () => {
  const start = performance.now();
  await omniR1.parts.runs.refresh();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""
# Frames a second of three seconds of dragging, or of turning the wheel, zoomed in.
FRAMES = """async (zooms) => {
  const plot = document.querySelector('.or-plot');
  const box = plot.getBoundingClientRect();
  plot.setPointerCapture = () => {};
  plot.focus();
  const send = (type, x, more = {}) => plot.dispatchEvent(
    new (type === 'wheel' ? WheelEvent : PointerEvent)(type, {
      bubbles: true, cancelable: true, clientX: x, clientY: box.y + 100, buttons: 1, ...more,
    }));
  for (let k = 0; k < 4; k += 1) send('wheel', box.x + 500, { deltaY: -1 });
  await new Promise((done) => setTimeout(done, 1000));
  if (!zooms) send('pointerdown', box.x + 800);
  const times = [];
  await new Promise((done) => {
    const tick = (now) => {
      times.push(now);
      if (zooms) send('wheel', box.x + 500, { deltaY: times.length % 40 < 20 ? -1 : 1 });
      else send('pointermove', box.x + 800 - (times.length % 200) * 3);
      if (now - times[0] < 3000) requestAnimationFrame(tick);
      else done();
    };
    requestAnimationFrame(tick);
  });
  send('pointerup', box.x + 500);
  return (1000 * (times.length - 1)) / (times.at(-1) - times[0]);
}"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        server = FakeServer(Path(folder) / "home")
        try:
            server.start()
            ids = fill(server.home)
            with server.client() as client:
                in_browser(server.url, client, ids)
            return 0
        finally:
            server.kill()


def fill(home: Path) -> list[str]:
    """Ids of runs with events of every step; folds them, and compares reading both."""
    db, rng = Database(f"sqlite:///{home / 'omni-r1.db'}"), np.random.default_rng(0)
    ids = [f"job_1m8hecw2g000zcq5r{k:03}" for k in range(RUNS)]
    spec = {"method": "pesft", "base_checkpoint": "nano-base", "data": {"source": "unitasks"}, "hyperparameters": {}}
    about = {"method": "pesft", "gpu": "shared", "base_checkpoint": "nano-base", "output_prefix": "p"}
    for job_id in ids:
        losses = 0.3 + 2 * np.exp(-np.arange(STEPS) / 2_000) + 0.05 * rng.standard_normal(STEPS)
        rows = [
            {"stage": "pesft", "step": k, "values": {KEY: round(float(loss), 7)}} for k, loss in enumerate(losses, 1)
        ]
        events = [
            {"job_id": job_id, "seq": k + 2, "type": "metrics", "data": json.dumps(one)} for k, one in enumerate(rows)
        ]
        with db.write() as connection:
            store.insert(connection, id=job_id, server_id="another", spec=spec, **about)
            connection.execute(sa.insert(tables.job_events), events)
            ended = {"status": "succeeded", "finished_at": "2026-01-01T00:00:00.000Z"}
            store.update(connection, job_id, **ended)

    def read() -> None:
        with db.read() as connection:
            found, _ = series.read(connection, ids, [KEY])
        assert [len(one.steps) for one in found] == [STEPS] * RUNS

    from_events = timed(read)
    for job_id in ids:
        more = True
        while more:
            with db.write() as connection:
                more = series.fold(connection, job_id)
    row("series_over_events", timed(read) / from_events, "ratio")
    db.close()
    return ids


def in_browser(url: str, client: Client, ids: list[str]) -> None:
    answer = client.job_series(ids, [KEY], points=600)
    row("chart_of_50_runs_bytes", len(json.dumps(answer, separators=(",", ":"))), "bytes")
    with launched() as browser:
        window = Studio(browser, url)
        page = window.page(f"/runs?runs={','.join(ids)}&metric={KEY}", ready=READY)
        row("chart_of_50_runs_paint", min(page.evaluate(PAINT) for _ in range(3)), "ms")
        row("chart_of_50_runs_pan", page.evaluate(FRAMES, False), "frames/s")
        row("chart_of_50_runs_zoom", page.evaluate(FRAMES, True), "frames/s")
        window.check()


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
