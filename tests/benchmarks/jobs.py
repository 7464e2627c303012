"""A training job beside a serving studio: what everybody else feels of it, and a long job's metrics by page.

    .venv/bin/python -m tests.benchmarks.jobs [--seconds 15] [--traces 16]

Starts a server of its own and prints one JSON object a line as `tests.benchmarks.serving` does.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from app.client import Client
from app.jobs import store
from app.storage.database import Database
from tests.benchmarks.serving import LIVE_AT_ONCE, load, percentile, probing, row
from tests.e2e.real_server import Server, new_server, wait_until

SPEC: dict[str, Any] = {
    "method": "pesft",
    "base_checkpoint": "nano-base",
    "data": {"source": "unitasks", "num_samples": 200},
    "hyperparameters": {"steps": 100_000, "save_every": 100_000, "log_every": 1},
    "seed": 1,
}
LONG, ROWS, PAGE = "job_00000000000000000long", 100_000, 1000
PAGES = 10  # asked for at each place


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure a training job beside a serving studio.")
    parser.add_argument("--seconds", type=float, default=15.0, help="of asking the job API (15)")
    parser.add_argument("--traces", type=int, default=16, help="beside the job, eight at once (16)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        server = new_server(Path(folder)).start()
        try:
            with server.client() as client:
                long_job(server, client)
                beside_a_job(server, client, args.seconds, args.traces)
            return 0
        finally:
            server.stop()


def long_job(server: Server, client: Client) -> None:
    """Pages of a job with 100,000 rows of metrics, at its beginning, in its middle and at its end."""
    database = Database(f"sqlite:///{server.home / 'omni-r1.db'}")
    fill = """
        WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < :rows)
        INSERT INTO job_events SELECT :job, k + 1, 'metrics',
        json_object('stage', 's', 'step', k, 'values', json_object('loss/ce', .5), 'time', 't') FROM n"""
    try:
        with database.write() as connection:
            store.insert(
                connection,
                id=LONG,
                server_id="another",
                method="pesft",
                gpu="shared",
                base_checkpoint="b",
                spec={"method": "pesft"},
                output_prefix="p",
            )
            connection.execute(sa.text(fill), {"rows": ROWS, "job": LONG})
    finally:
        database.close()
    for name, after in (("first", 0), ("middle", ROWS // 2), ("last", ROWS - PAGE)):
        ask = partial(client.job_metrics, LONG, after=after + 1, limit=PAGE)
        times = [timed(ask)[0] for _ in range(PAGES)]
        row(f"metrics_page_{name}_of_{ROWS}", statistics.median(times), "ms")
    after, more, read, began = 0, True, 0, time.perf_counter()
    while more:
        page = client.job_metrics(LONG, after=after, limit=PAGE)
        read, after, more = read + len(page["data"]), page["data"][-1]["seq"], page["has_more"]
    assert read == ROWS, f"{read} of {ROWS} rows came"
    row(f"metrics_all_{ROWS}_by_page", time.perf_counter() - began, "s")


def beside_a_job(server: Server, client: Client, seconds: float, num_traces: int) -> None:
    """The job API, `/livez` and the streams while a real PeSFT job trains."""
    rng = random.Random(0)

    def streams() -> dict[str, Any]:
        readers = {"num_clients": LIVE_AT_ONCE, "droppers": 0, "rng": rng}
        return asyncio.run(load(server.url, client, num_traces, **readers))  # type: ignore[arg-type]

    quiet = streams()
    job_id = client.create_job(SPEC)["id"]
    wait_until(lambda: steps_of(client, job_id) >= 1, "the first step of the job", 300)
    with probing(server.url) as probe:
        times = job_api(client, job_id, seconds)
        beside = streams()
    row("job_steps_meanwhile", steps_of(client, job_id), "count")
    client.cancel_job(job_id)
    everything = [ms for each in times.values() for ms in each]
    for name, each in times.items():
        row(f"job_api_{name}_median", statistics.median(each), "ms")
    row("job_api_p99_beside_a_job", percentile(everything, 0.99), "ms")
    row("job_api_worst_beside_a_job", max(everything), "ms")
    row("livez_p99_beside_a_job", percentile(probe["ms"], 0.99), "ms")
    row("livez_worst_beside_a_job", max(probe["ms"]), "ms")
    row("ms_a_token_without_a_job", quiet["ms_a_token"], "ms")
    row("ms_a_token_beside_a_job", beside["ms_a_token"], "ms")
    row("logs_lost_repeated_or_changed_beside_a_job", quiet["wrong"] + beside["wrong"], "count")
    wait_until(lambda: client.job(job_id)["status"] == "cancelled", "the end of the job", 120)


def steps_of(client: Client, job_id: str) -> int:
    job = client.job(job_id)
    assert job["status"] in ("queued", "running"), job["error"]
    progress = job["progress"]
    return 0 if progress is None else progress["step"] or 0


def job_api(client: Client, job_id: str, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call, one after another, a few a second."""
    times: dict[str, list[float]] = {name: [] for name in ("list", "get", "metrics", "create", "cancel", "delete")}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:

        def ask(name: str, call: Callable[[], Any]) -> Any:
            ms, answer = timed(call)
            times[name].append(ms)
            return answer

        ask("list", client.jobs)
        ask("get", lambda: client.job(job_id))
        ask("metrics", lambda: client.job_metrics(job_id))
        other = ask("create", lambda: client.create_job({**SPEC, "gpu": "exclusive"}))["id"]  # waits behind the first
        ask("cancel", partial(client.cancel_job, other))
        ask("delete", partial(client.delete_job, other))
        time.sleep(0.05)
    return times


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds and the answer."""
    began = time.perf_counter()
    answer = call()
    return (time.perf_counter() - began) * 1000, answer


if __name__ == "__main__":
    sys.exit(main())
