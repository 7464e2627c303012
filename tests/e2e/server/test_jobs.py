"""A real training job on a real server: it trains, its checkpoint answers, and a killed server loses no step."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.client import Client
from app.client.sse import Event
from app.client.types import Trace
from tests.app.stream_events import check_event
from tests.e2e.real_server import Server, has_read_only_root, runs, wait_until
from tests.fakes import png
from tests.patience import PATIENCE_S

STEPS = 60  # some milliseconds each: long enough to kill the server in between
SPEC: dict[str, Any] = {
    "method": "pesft",
    "base_checkpoint": "tiny",
    "data": {"source": "unitasks", "num_samples": 8},
    "hyperparameters": {
        "steps": STEPS,
        "batch_tokens": 256,
        "log_every": 1,
        "save_every": 1000,
        "show_samples": 1,
        "sample_every": 100,
    },
    "seed": 1,
}


@dataclass
class Trained:
    """A server with its job's events; `before` and `after` are traces around its activation."""

    server: Server
    job_id: str
    events: list[Event]
    before: Trace
    after: Trace


def ask(client: Client) -> Trace:
    picture = client.upload_image(png(box=10))["image_id"]
    trace = client.create_trace("Where is the star?", [picture], sampling={"max_new_tokens": 4, "seed": 1})
    for _ in client.events(trace["id"]):
        pass
    return client.trace(trace["id"])


def losses(client: Client, job_id: str) -> dict[int, dict[str, float | None]]:
    """The metrics of each step without speed; the later of two rows counts."""
    rows, after, more = {}, 0, True
    while more:
        page = client.job_metrics(job_id, after=after, limit=50)
        for row in page["data"]:
            rows[row["step"]] = {k: v for k, v in row["values"].items() if not k.startswith("speed/")}
            after = row["seq"]
        more = page["has_more"]
    return rows


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[Trained]:
    home = tmp_path_factory.mktemp("training") / "home"
    (home / "checkpoints").mkdir(parents=True)
    (home / "checkpoints" / "tiny").symlink_to(tiny_checkpoint)
    allowed = {"OMNI_R1_ALLOWED_ROOTS": str(tiny_checkpoint.parent), "OMNI_R1_PAGES": "0"}
    server = Server(home, {"OMNI_R1_CHECKPOINT": "tiny", "OMNI_R1_CPU_RANKS": "2", **allowed})
    server.read_only = request.param == "sqlite" and has_read_only_root()
    if request.param == "postgresql":
        server.environment["OMNI_R1_DATABASE_URL"] = request.getfixturevalue("postgres").new()
    try:
        with server.start().client() as client:
            before = ask(client)
            job = client.create_job({**SPEC, "activate": True, "output_name": "first"})
            events = list(client.job_events(job["id"], give_up_s=PATIENCE_S))
            for event in events:
                check_event("jobs", event.type, event.data)
            yield Trained(server, job["id"], events, before, ask(client))
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["sqlite", "postgresql"], indirect=True)
def test_job_produces_the_active_checkpoint(trained: Trained) -> None:
    reported = [event.type for event in trained.events]
    assert [event.data["status"] for event in trained.events if event.type == "job.status"] == [
        "queued",
        "running",
        "succeeded",
    ]
    assert reported.count("metrics") == STEPS
    sample = next(event.data for event in trained.events if event.type == "sample")
    made = next(event.data for event in trained.events if event.type == "checkpoint")
    assert (made["name"], made["step"]) == (f"first-step-{STEPS}", STEPS)
    with trained.server.client() as client:
        assert client.fetch(sample["question_image"]).startswith(b"\x89PNG")
        job = client.job(trained.job_id)
        assert job["metrics"]["loss/ce"] is not None
        first = next(event.data["values"] for event in trained.events if event.type == "metrics")
        assert job["metrics"]["loss/ce"] < first["loss/ce"]  # the loss decreased
        assert [one["name"] for one in job["checkpoints"]] == [made["name"]]
        result = job["result"] or {}
        version = result["activated"]["weight_version"]
        shown = client.checkpoint(made["name"])
        assert (shown["active"], shown["weight_version"]) == (True, version)
        assert client.readiness()["weight_version"] == version
    assert version > trained.before["weight_version"]
    assert (trained.after["checkpoint"], trained.after["weight_version"]) == (made["name"], version)
    assert (trained.before["checkpoint"], trained.after["status"]) == ("tiny", "completed")


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["sqlite"], indirect=True)
def test_server_needs_only_home_and_tmp_to_be_writable(trained: Trained) -> None:
    """On a read-only root it has answered, trained and activated, and its log complains of nothing."""
    if not trained.server.read_only:
        pytest.skip("needs Linux with user namespaces")
    assert trained.server.process is not None
    for process in (psutil.Process(trained.server.process.pid), *trained.server.children()):
        mounts = Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()
        (root,) = [words for words in map(str.split, mounts) if words[4] == "/"]
        assert "ro" in root[5].split(",")
    with urllib.request.urlopen(f"{trained.server.url}/") as page:
        assert b"<html" in page.read()
    assert trained.after["status"] == "completed"
    said = trained.server.log.read_text() + (trained.server.home / "jobs" / trained.job_id / "log.txt").read_text()
    assert not re.findall(r"(?i)read-only|errno 30|permission denied|not writable|not a writable", said)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["sqlite"], indirect=True)
def test_invariant_14_killed_server_resumes_with_identical_losses(
    trained: Trained,
) -> None:
    """With the real worker: it notices, saves at its step, and resumes with identical metrics."""
    server = trained.server
    with server.client() as client:
        job = client.create_job(SPEC)
        for event in client.job_events(job["id"], give_up_s=PATIENCE_S):
            if event.type == "metrics":
                break
    workers = [child for child in server.children() if runs(child, "training.jobs.worker")]
    (worker,) = workers
    server.kill()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "the worker's end", 120)

    with server.start().client() as client:
        found = client.job(job["id"])
        assert (found["status"], found["attempt"]) == ("interrupted", 1)
        seen = losses(client, job["id"])
        assert 0 < len(seen) < STEPS
        client.resume_job(job["id"])
        rest = list(client.job_events(job["id"], found["last_event"], give_up_s=PATIENCE_S))
        assert rest[0].seq == found["last_event"] + 1
        assert rest[-1].data["status"] == "succeeded"
        again = losses(client, job["id"])
        assert again == losses(client, trained.job_id)
        assert {step: again[step] for step in seen} == seen


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["sqlite"], indirect=True)
def test_job_in_two_processes_names_its_dead_rank_and_resumes(trained: Trained) -> None:
    steps = 3 * STEPS  # on a busy machine the job must not end before its rank is killed
    hyper = {**SPEC["hyperparameters"], "steps": steps, "save_every": 20}
    spread = {**SPEC, "hyperparameters": hyper, "gpu": "exclusive"}
    with trained.server.client() as client:
        job = client.create_job({**spread, "num_gpus": 2})
        for event in client.job_events(job["id"], give_up_s=PATIENCE_S):
            if event.type == "checkpoint":
                break
        ranks = [child for child in trained.server.children() if runs(child, "--rank")]
        (victim,) = [rank for rank in ranks if rank.environ()["RANK"] == "1"]
        victim.kill()
        *_, end = client.job_events(job["id"], give_up_s=PATIENCE_S)
        assert (end.data["status"], end.data["error"]["code"]) == ("failed", "rank_died")
        assert "rank 1 was ended by signal 9" in end.data["error"]["detail"]
        client.resume_job(job["id"])
        *_, end = client.job_events(job["id"], end.seq, give_up_s=PATIENCE_S)
        assert end.data["status"] == "succeeded"
        assert sorted(losses(client, job["id"])) == list(range(1, steps + 1))
        assert client.job(job["id"])["checkpoints"][-1]["step"] == steps
