"""PeRPO's rollouts in actors of a real Ray cluster of two nodes: the same steps, whatever dies, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster.nodes import Nodes
from tests.e2e.real_server import runs, wait_until
from tests.patience import PATIENCE_S
from tests.training.cluster.in_process import Adder
from tests.training.job_helpers import write_job
from tests.training.perpo.test_job import HYPER, step_metrics
from training.cluster.pool import ActorPool, PoolError
from training.jobs.disk import WAITING

pytestmark = pytest.mark.slow

ACTOR, BUSY = "ray::PoolActor", "ray::PoolActor.work"
SOON_S = 15.0  # for a job to stop, and for its actors to end; the machine may be busy
SPEC = {
    "method": "perpo",
    "data": {"source": "unitasks", "num_samples": 40},
    "hyperparameters": HYPER
    | {"steps": 6, "prompts_per_step": 6, "rollouts_per_prompt": 6, "max_new_tokens": 300, "save_every": 100},
    "seed": 5,
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes with two CPUs each."""
    nodes = Nodes(2)
    yield nodes
    nodes.close()


class Run:
    """A job's worker, as a server starts it for jobs on its own machine."""

    def __init__(self, folder: Path, base: Path, address: dict[str, str], **hyper: Any) -> None:
        spec = SPEC | {"hyperparameters": SPEC["hyperparameters"] | hyper}  # type: ignore[operator]
        self.folder = write_job(folder, spec, base)
        self._environment = os.environ | {"OMNI_R1_DEVICE": "cpu"} | address
        self.start()

    def start(self, *options: str) -> None:
        with (self.folder / "log.txt").open("ab") as log:
            command = [sys.executable, "-m", "training.jobs.worker", str(self.folder), *options]
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    @property
    def steps(self) -> dict[int, dict[str, float]]:
        return step_metrics(self.folder) if (self.folder / "events.jsonl").exists() else {}

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    @property
    def waiting(self) -> Any:
        path = self.folder / WAITING
        return json.loads(path.read_text() or "null") if path.exists() else None

    def begun(self, steps: int = 1) -> Run:
        def has_steps() -> bool:
            assert self.process.poll() is None, self.log
            return len(self.steps) >= steps

        wait_until(has_steps, "the first steps")
        return self

    def code(self) -> int:
        return self.process.wait(PATIENCE_S)

    def error(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / "error.json").read_text())
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(nodes: Nodes, tmp_path: Path, tiny_checkpoint: Path) -> Iterator[Callable[..., Run]]:
    """Starts jobs, and kills those that a failed test leaves."""
    started: list[Run] = []

    def run(actors: int = 2, address: dict[str, str] = nodes.variables, **hyper: Any) -> Run:
        folder = tmp_path / "jobs" / f"job-{len(started)}"
        started.append(Run(folder, tiny_checkpoint, address, rollout_actors=actors, **hyper))
        return started[-1]

    yield run
    for one in started:
        one.kill()


@pytest.fixture(scope="module")
def alone(nodes: Nodes, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, float]]:
    """The steps of a job that samples by itself."""
    run = Run(tmp_path_factory.mktemp("alone") / "jobs" / "job", tiny_checkpoint, nodes.variables)
    assert run.code() == 0, run.log
    return run.steps


def actors(nodes: Nodes, title: str = ACTOR) -> list[psutil.Process]:
    found = psutil.Process(nodes.pid).children(recursive=True)
    return [process for process in found if runs(process, title)]


def assert_no_actor_is_left(nodes: Nodes) -> None:
    wait_until(lambda: not actors(nodes), "the end of the actors", SOON_S)


def assert_same(steps: dict[int, dict[str, float]], others: dict[int, dict[str, float]]) -> None:
    assert [*steps] == [*others]
    for step, values in steps.items():
        assert values == pytest.approx(others[step], abs=1e-5)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_steps_are_those_of_a_job_without_actors(
    start: Callable[..., Run], nodes: Nodes, alone: dict[int, dict[str, float]], lora: dict[str, Any] | None
) -> None:
    expected = alone
    if lora is not None:
        local = start(0, lora=lora)
        assert local.code() == 0, local.log
        expected = local.steps
    run = start(6, lora=lora)  # there is room for four
    assert run.code() == 0, run.log
    assert_same(run.steps, expected)
    assert_no_actor_is_left(nodes)


@pytest.mark.parametrize("what", ["actor", "node"])
def test_job_goes_on_with_the_same_steps(
    start: Callable[..., Run], nodes: Nodes, alone: dict[int, dict[str, float]], what: str
) -> None:
    run = start().begun()
    wait_until(lambda: bool(actors(nodes, BUSY)), "an actor that samples")
    if what == "actor":
        actors(nodes, BUSY)[0].kill()
    else:
        nodes.order("kill")
    assert run.code() == 0, run.log
    if what == "node":
        nodes.order("add")
    assert "a rollout actor is lost, and another one takes its place" in run.log
    assert_same(run.steps, alone)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_ended_job_leaves_no_actor_and_resumes(
    start: Callable[..., Run], nodes: Nodes, alone: dict[int, dict[str, float]], how: signal.Signals
) -> None:
    run = start(save_every=1).begun(2)
    wait_until(lambda: bool(actors(nodes, BUSY)), "an actor that samples")
    began = time.monotonic()
    run.process.send_signal(how)
    assert run.code() == (3 if how == signal.SIGTERM else -how), run.log
    assert_no_actor_is_left(nodes)
    assert time.monotonic() - began < SOON_S
    run.start("--resume")
    assert run.code() == 0, run.log
    assert_same(run.steps, alone)


def test_job_waits_for_room(
    start: Callable[..., Run], nodes: Nodes, alone: dict[int, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in nodes.variables.items():
        monkeypatch.setenv(name, value)
    others = ActorPool(Adder, 4)
    try:
        wait_until(lambda: len(actors(nodes)) == 4, "a full cluster")
        run, cancelled = start(), start()
        for one in (run, cancelled):
            wait_until(lambda one=one: bool(one.waiting), "what the job waits for")  # type: ignore[misc]
            assert one.waiting == {"for": "cluster", "detail": "needs 1 CPU, 0 CPU free"}
        began = time.monotonic()
        cancelled.process.terminate()
        assert cancelled.code() == 3, cancelled.log
        assert time.monotonic() - began < SOON_S
    finally:
        others.close()
    assert run.code() == 0, run.log
    assert run.waiting is None
    assert_same(run.steps, alone)


def test_pool_without_room_gives_up(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in nodes.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("training.cluster.pool.PLACE_S", 1.0)
    pool = ActorPool(Adder, 1, gpus=1)
    try:
        with pytest.raises(PoolError) as caught:
            pool.work([1])
    finally:
        pool.close()
    assert caught.value.code == "cluster_unreachable"
    assert "needs 1 CPU and 1 GPU on one node, and no node has that many" in caught.value.detail


def test_job_of_a_lost_cluster_fails_and_resumes_on_another(start: Callable[..., Run], nodes: Nodes) -> None:
    lost = Nodes(2)
    try:
        run = start(address=lost.variables, steps=100).begun()
        for process in psutil.Process(lost.pid).children(recursive=True):
            if process.name() in ("gcs_server", "raylet"):
                process.kill()
        assert run.code() == 1, run.log
    finally:
        lost.close()
    assert run.error()["code"] == "cluster_unreachable"
    assert run.error()["detail"].endswith("is lost; the job resumes from its last saved state")
    done = len(run.steps)
    run._environment |= nodes.variables
    run.start("--resume")
    wait_until(lambda: len(run.steps) > done, "it to go on")
    run.process.terminate()
    assert run.code() == 3, run.log
    assert [*run.steps] == [*range(1, len(run.steps) + 1)]


@pytest.mark.parametrize(("address", "why"), [({"RAY_ADDRESS": "127.0.0.1:9"}, "cannot be reached"), ({}, "needs")])
def test_job_without_a_cluster_says_so(start: Callable[..., Run], address: dict[str, str], why: str) -> None:
    run = start(address={"RAY_ADDRESS": ""} | address)
    assert run.code() == 1
    assert run.error()["code"] == "cluster_unreachable"
    assert why in run.error()["detail"]
