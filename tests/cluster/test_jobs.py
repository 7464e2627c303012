"""Training jobs of a real server on a Ray cluster of two nodes: deaths, waiting for room, and what is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.client import Client
from app.client.types import Job
from tests.cluster.nodes import Nodes
from tests.e2e.real_server import Server, runs, wait_until
from tests.e2e.server.test_jobs import SPEC as ONE

pytestmark = pytest.mark.slow

STEPS, SAVE_EVERY = 2_000, 20
SPEC = ONE | {"hyperparameters": ONE["hyperparameters"] | {"steps": STEPS, "save_every": SAVE_EVERY}}
WORKER, LAUNCHER = "training.jobs.worker", "training.cluster.launcher"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes with two CPUs each."""
    nodes = Nodes(2)
    yield nodes
    nodes.close()


@pytest.fixture
def server(nodes: Nodes, tmp_path: Path, tiny_checkpoint: Path) -> Iterator[Server]:
    (tmp_path / "home" / "checkpoints").mkdir(parents=True)
    (tmp_path / "home" / "checkpoints" / "tiny").symlink_to(tiny_checkpoint)
    settings = {
        "OMNI_R1_CHECKPOINT": "tiny",
        "OMNI_R1_ALLOWED_ROOTS": str(tiny_checkpoint.parent),
        "OMNI_R1_PAGES": "0",
        "OMNI_R1_JOBS": "ray",
        "OMNI_R1_ENGINE": "local",
        "OMNI_R1_REPLICAS": "1",
        "OMNI_R1_CPU_RANKS": "2",
    }
    server = Server(tmp_path / "home", settings | nodes.variables)
    try:
        yield server.start()
    finally:
        server.kill()


def on_nodes(nodes: Nodes, job_id: str) -> list[psutil.Process]:
    """The job's workers on the nodes."""
    found = psutil.Process(nodes.pid).children(recursive=True)
    return [process for process in found if runs(process, WORKER) and runs(process, job_id)]


def trains(client: Client, job_id: str) -> bool:
    job = client.job(job_id)
    assert job["status"] in ("queued", "running"), job["error"]
    return (job["progress"] or {}).get("step", 0) > SAVE_EVERY


def ended(client: Client, job_id: str) -> Job:
    wait_until(lambda: client.job(job_id)["status"] not in ("queued", "running"), "the end of the job")
    return client.job(job_id)


def started(client: Client, spec: dict[str, Any] = SPEC) -> str:
    job_id = client.create_job(spec)["id"]
    wait_until(lambda: trains(client, job_id), "its first saved state")
    return job_id


def few(steps: int, **more: Any) -> dict[str, Any]:
    return SPEC | {"hyperparameters": SPEC["hyperparameters"] | {"steps": steps}} | more


def test_job_trains_on_a_node_and_its_checkpoint_answers(server: Server, nodes: Nodes) -> None:
    with server.client() as client:
        job_id = client.create_job(few(60, activate=True))["id"]
        wait_until(lambda: bool(on_nodes(nodes, job_id)), "its worker on a node")
        assert not [process for process in server.children() if runs(process, WORKER)]
        job = ended(client, job_id)
        assert job["status"] == "succeeded", job["error"]
        assert client.readiness()["checkpoint"] == job["checkpoints"][-1]["name"]
    wait_until(lambda: not on_nodes(nodes, job_id), "no worker of the job")


def test_ranks_share_a_node(server: Server) -> None:
    with server.client() as client:
        job = ended(client, client.create_job(few(20, num_gpus=2, gpu="exclusive"))["id"])
    assert job["status"] == "succeeded", job["error"]


def test_rollouts_of_a_job_on_a_node_have_actors_of_their_own(server: Server, nodes: Nodes) -> None:
    hyper = {"steps": 3, "prompts_per_step": 4, "rollouts_per_prompt": 2, "max_new_tokens": 40, "rollout_actors": 2}
    with server.client() as client:
        job_id = client.create_job(SPEC | {"method": "perpo", "hyperparameters": hyper | {"filter_metric": "none"}})[
            "id"
        ]
        job = ended(client, job_id)
        assert job["status"] == "succeeded", job["error"]
    found = psutil.Process(nodes.pid).children(recursive=True)
    assert not [process for process in found if runs(process, "ray::PoolActor")]


def test_cancelled_job_saves_and_leaves_nothing(server: Server, nodes: Nodes) -> None:
    with server.client() as client:
        job_id = started(client)
        client.cancel_job(job_id)
        job = ended(client, job_id)
        assert (job["status"], job["error"], job["resumable"]) == ("cancelled", None, True)
        assert not on_nodes(nodes, job_id)


@pytest.mark.parametrize("what", ["worker", "launcher", "actor"])
def test_death_fails_the_job_and_it_resumes(server: Server, nodes: Nodes, what: str) -> None:
    with server.client() as client:
        job_id = started(client)
        if what == "launcher":
            (victim,) = (process for process in server.children() if runs(process, LAUNCHER))
        else:
            (victim,) = on_nodes(nodes, job_id)
            parent = victim.parent()
            assert parent is not None
            victim = victim if what == "worker" else parent
        os.kill(victim.pid, signal.SIGKILL)
        job = ended(client, job_id)
        assert job["status"] == "failed"
        assert job["error"] is not None
        assert job["error"]["code"] == {"actor": "node_died"}.get(what, "worker_died"), job["error"]
        assert "signal 9" in job["error"]["detail"] or what == "actor"
        if what == "launcher":
            log = server.home / "jobs" / job_id / "log.txt"
            wait_until(lambda: "the state is saved" in log.read_text(), "the worker to save, without its actor")
        client.resume_job(job_id)
        wait_until(lambda: trains(client, job_id), "it to go on")
        client.cancel_job(job_id)
        assert ended(client, job_id)["status"] == "cancelled"
    wait_until(lambda: not on_nodes(nodes, job_id), "no worker of the job")


def test_lost_node_fails_its_jobs_which_resume_elsewhere(server: Server, nodes: Nodes) -> None:
    nodes.order("add")
    with server.client() as client:
        ids = [started(client) for _ in range(2)]
        nodes.order("kill")
        nodes.order("kill")
        wait_until(lambda: any(client.job(id_)["status"] == "failed" for id_ in ids), "a lost job")
        lost = next(id_ for id_ in ids if client.job(id_)["status"] == "failed")
        error = client.job(lost)["error"]
        assert error is not None
        assert error["code"] == "node_died"
        nodes.order("add")
        client.resume_job(lost)
        wait_until(lambda: trains(client, lost), "it to go on")
        for id_ in ids:
            client.cancel_job(id_)
            ended(client, id_)


def test_job_without_room_says_what_it_needs_and_can_be_cancelled(server: Server) -> None:
    with server.client() as client:
        job_id = client.create_job(few(20, threads=4))["id"]
        wait_until(lambda: bool((client.job(job_id)["progress"] or {}).get("waiting")), "the reason")
        progress = client.job(job_id)["progress"]
        assert progress is not None
        detail = "needs 4 CPU on one node, and no node has that many"
        assert progress["waiting"] == {"for": "cluster", "detail": detail}
        client.cancel_job(job_id)
        assert ended(client, job_id)["status"] == "cancelled"


def test_worker_of_a_killed_server_saves_and_the_job_resumes(server: Server, nodes: Nodes) -> None:
    with server.client() as client:
        job_id = started(client)
    server.kill()
    wait_until(lambda: not on_nodes(nodes, job_id), "the worker to save and end")
    server.start()
    with server.client() as client:
        job = ended(client, job_id)
        assert (job["status"], job["resumable"]) == ("interrupted", True)
        client.resume_job(job_id)
        wait_until(lambda: trains(client, job_id), "it to go on")
        client.cancel_job(job_id)
        ended(client, job_id)


def test_stopped_server_interrupts_its_job(server: Server, nodes: Nodes) -> None:
    with server.client() as client:
        job_id = started(client)
    assert server.stop() == 0
    wait_until(lambda: not on_nodes(nodes, job_id), "the worker to save and end")
