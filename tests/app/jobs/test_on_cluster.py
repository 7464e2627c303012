"""Jobs on a Ray cluster, without one: settings, what the server accepts and starts, and what it shows of a wait."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from app.cli.main import main
from app.common.settings import SettingsError, read_settings
from app.jobs.process import COMMAND, ON_CLUSTER
from tests.app.conftest import Serve
from tests.app.job_helpers import SPEC, events, get, post, statuses
from tests.patience import PATIENCE_S

WAITS = """
import json, os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
waiting = {"for": "cluster", "detail": "needs 1 CPU and 2 GPU, 0 GPU free"}
(pathlib.Path(sys.argv[1]) / "waiting.json").write_text(json.dumps(waiting))
while True:
    signal.pause()
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Ray were installed and its cluster known."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    monkeypatch.setattr("app.common.settings.find_spec", lambda name: find_spec("json"))


def test_jobs_on_ray_need_its_address_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_JOBS", "ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SettingsError, match="OMNI_R1_JOBS=ray needs RAY_ADDRESS, the host:port"):
        read_settings()
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    monkeypatch.setattr("app.common.settings.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="pip install"):
        read_settings()


@pytest.mark.usefixtures("cluster")
async def test_setting_chooses_the_worker(serve: Serve) -> None:
    for jobs, command in (("local", COMMAND), ("ray", ON_CLUSTER)):
        async with serve(jobs=jobs, job_command=None) as server:
            assert server.services.jobs._runner._command == command


@pytest.mark.usefixtures("cluster")
async def test_devices_are_those_of_the_cluster_and_exclusive_jobs_do_not_wait(serve: Serve) -> None:
    spread = {**SPEC, "gpu": "exclusive", "num_gpus": 8}
    async with serve() as server:
        assert (await server.client.post("/v1/jobs", json=spread)).status_code == 422
    async with serve(jobs="ray", job_command=(sys.executable, "-S", "-c", WAITS)) as server:
        jobs = [await post(server, spread) for _ in range(2)]
        async with asyncio.timeout(PATIENCE_S):
            while [(await get(server, job["id"]))["status"] for job in jobs] != ["running", "running"]:
                await asyncio.sleep(0.01)


async def test_rollout_actors_need_a_cluster(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"rollout_actors": 2}
    whole = {"method": "pipeline", "data": {"perpo": SPEC["data"]}}
    stages = {"pesft": None, "perpo": stage, "benchmark": None}
    specs = {
        "body.hyperparameters.rollout_actors": {"method": "perpo", "hyperparameters": stage},
        "body.hyperparameters.perpo.rollout_actors": whole | {"hyperparameters": stages},
    }
    async with serve(job_command=(sys.executable, "-S", "-c", WAITS)) as server:
        for address, package, lack in (("", "json", "RAY_ADDRESS"), ("10.0.0.5:6379", "no_ray", "pip install")):
            monkeypatch.setenv("RAY_ADDRESS", address)
            monkeypatch.setattr("app.common.settings.find_spec", lambda _, name=package: find_spec(name))
            for path, spec in specs.items():
                answer = await server.client.post("/v1/jobs", json={**SPEC, **spec})
                assert (answer.status_code, [one["path"] for one in answer.json()["errors"]]) == (422, [path])
                assert lack in answer.text
        monkeypatch.setattr("app.common.settings.find_spec", lambda _: find_spec("json"))
        for spec in specs.values():
            assert (await post(server, {**SPEC, **spec}))["status"] == "queued"


@pytest.mark.usefixtures("cluster")
async def test_job_without_room_shows_what_it_needs(
    serve: Serve, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async with serve(jobs="ray", job_command=(sys.executable, "-S", "-c", WAITS)) as server:
        job = await post(server)
        async with asyncio.timeout(PATIENCE_S):
            while not (progress := (await get(server, job["id"]))["progress"] or {}).get("waiting"):
                await asyncio.sleep(0.01)
        assert progress["waiting"] == {"for": "cluster", "detail": "needs 1 CPU and 2 GPU, 0 GPU free"}
        argv = ["jobs", "show", job["id"], "--url", f"http://127.0.0.1:{server.port}"]
        assert await asyncio.to_thread(main, argv) == 0
        assert "waiting      needs 1 CPU and 2 GPU, 0 GPU free\n" in capsys.readouterr().out
        await server.client.post(f"/v1/jobs/{job['id']}/cancel")
        assert statuses(await events(server, job["id"]))[-1] == "cancelled"
