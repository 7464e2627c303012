"""Random kills: no event is lost or repeated, no status is wrong.

Each round starts traces, readers and, every third time, a training job, and kills the server, its engine or the job's
worker after a random time. Then every log is compared with what its reader saw, and every status with its log.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from app.client import Client, Conflict, OmniError
from app.client.sse import Event
from tests.attack.report import Report, faults_of_trace, stop
from tests.e2e.real_server import Server, new_server, wait_until
from training.world.world import SLICES

ROUNDS = 60
TRACES = 12
LATEST_S = 2.5
VICTIMS = ("server", "server", "engine", "worker")
LIVE = ("queued", "running")
SPEC: dict[str, Any] = {
    "method": "pesft",
    "base_checkpoint": "nano-base",
    "data": {"source": "unitasks", "num_samples": 8},
    "hyperparameters": {"steps": 100_000, "save_every": 2, "log_every": 1},
    "seed": 1,
}


def attack(folder: Path, report: Report, rng: random.Random, scale: float) -> None:
    server = new_server(folder).start()
    counts = {"lost_repeated_or_lying": 0, "traces": 0, "jobs": 0}
    rounds = max(1, round(ROUNDS * scale))
    try:
        for number in range(rounds):
            for fault in one_round(server, rng, counts, with_job=number % 3 == 0):
                counts["lost_repeated_or_lying"] += 1
                report.finding(f"kill round {number}", fault)
        stop(server, report, "kill")
    finally:
        server.kill()
    report.row("kills", rounds, "count")
    report.row("kill_traces_checked", counts["traces"], "count")
    report.row("kill_jobs_checked", counts["jobs"], "count")
    report.row("kill_lost_repeated_or_lying", counts["lost_repeated_or_lying"], "count", limit=0)


def one_round(server: Server, rng: random.Random, counts: dict[str, int], *, with_job: bool) -> list[str]:
    """Kills once and returns all faults found afterwards."""
    with server.client() as client:
        job = client.create_job(SPEC)["id"] if with_job else None
        if job is not None:
            wait_until(lambda: client.job(job)["status"] != "queued", "the job's start", 300)
        readers = [Reader(server, create(client, rng)) for _ in range(TRACES)]
        time.sleep(rng.uniform(0, LATEST_S))
        victim = rng.choice(VICTIMS if with_job else VICTIMS[:-1])
        kill(server, victim)
        for reader in readers:
            reader.finish()
        if victim == "server":
            server.start()
    with server.client() as client:
        server.wait_ready()
        wait_until(lambda: not live_traces(client), "the end of every trace", 300)
        counts["traces"] += len(readers)
        faults = [
            f"{victim} killed, trace {reader.trace_id}: {fault}"
            for reader in readers
            for fault in faults_of_trace(client, reader.trace_id, reader.events)
        ]
        if job is not None:
            counts["jobs"] += 1
            faults += [f"{victim} killed, job {job}: {fault}" for fault in faults_of_job(client, job, victim)]
        return faults


def create(client: Client, rng: random.Random) -> str:
    task = client.task(slice=rng.choice(SLICES), seed=rng.randrange(10**9, 2 * 10**9))
    sampling: Any = {"temperature": 1.0, "seed": rng.randrange(2**31)}
    return client.create_trace(
        task["question"], [task["image_id"]], sampling=sampling, partial_images=rng.choice((0, 8, 32))
    )["id"]


def kill(server: Server, victim: str) -> None:
    """SIGKILL for the server, its engine, or all workers of a job."""
    if victim == "server":
        server.kill()
    else:
        wait_until(lambda: kill_children(server, workers=victim == "worker") > 0, f"a running {victim}", 120)


def kill_children(server: Server, *, workers: bool) -> int:
    """Kills the server's workers, or all its other children; returns their number."""
    killed = 0
    for process in server.children():
        try:
            if ("training.jobs.worker" in " ".join(process.cmdline())) == workers:
                process.send_signal(signal.SIGKILL)
                killed += 1
        except psutil.NoSuchProcess:
            continue
    return killed


def live_traces(client: Client) -> list[Any]:
    return [trace for status in LIVE for trace in client.traces(status=status, limit=1)["data"]]


def faults_of_job(client: Client, job_id: str, victim: str) -> list[str]:
    """A killed job has an end, contiguous events and resumable saved state. It is stopped here."""
    faults = []
    if victim == "engine":
        client.cancel_job(job_id)
    wait_until(lambda: client.job(job_id)["status"] not in LIVE, "the job's end", 300)
    job = client.job(job_id)
    expected = {"server": ("interrupted",), "worker": ("failed", "interrupted"), "engine": ("cancelled",)}[victim]
    if job["status"] not in expected:
        faults.append(f"status {job['status']} where {' or '.join(expected)} is true")
    ids = [event.seq for event in client.job_events(job_id)]
    if ids != list(range(1, len(ids) + 1)):
        faults.append("ids with gaps or repetitions")
    if job["checkpoints"]:
        try:
            client.resume_job(job_id)
        except Conflict as error:
            faults.append(f"it saved and cannot be resumed: {error}")
        else:
            client.cancel_job(job_id)
            wait_until(lambda: client.job(job_id)["status"] not in LIVE, "the resumed job's end", 300)
    return faults


class Reader(threading.Thread):
    """Collects the events of one trace until it ends or the connection breaks; never reconnects."""

    def __init__(self, server: Server, trace_id: str) -> None:
        super().__init__(daemon=True)
        self.server, self.trace_id = server, trace_id
        self.events: list[Event] = []
        self.start()

    def run(self) -> None:
        try:
            with self.server.client() as client:
                for event in client.events(self.trace_id, give_up_s=0.0):
                    self.events.append(event)
        except OmniError:
            return  # the server was killed

    def finish(self) -> None:
        """Waits until reading has ended."""
        self.join(300)
        assert not self.is_alive(), f"a reader of {self.trace_id} hangs"
