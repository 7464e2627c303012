"""Rewards and task families of your own over HTTP: what a job may name, and what the server lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.common.settings import SettingsError, read_settings
from app.contract.schemas_system import ExtensionsOut
from tests.app.conftest import Serve, Server
from tests.app.job_helpers import code, events, get, worker
from tests.training.packages import write_package
from training.jobs.context import JobError

ROOT = Path(__file__).parents[3]
DATA = {"source": "unitasks", "num_samples": 64}


def perpo(custom: Any) -> dict[str, Any]:
    hyper = {"steps": 1, "reward": {"custom": custom}}
    return {"method": "perpo", "base_checkpoint": "nano-omni-r1", "data": DATA, "hyperparameters": hyper}


def pipeline(custom: Any) -> dict[str, Any]:
    hyper = {"pesft": None, "benchmark": None, "perpo": {"reward": {"custom": custom}}}
    data = {"perpo": DATA}
    return {"method": "pipeline", "base_checkpoint": "nano-omni-r1", "data": data, "hyperparameters": hyper}


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    """A folder with the example, a broken file and a link that leads out of it."""
    folder = tmp_path / "rewards"
    folder.mkdir()
    (folder / "own_reward.py").write_text((ROOT / "examples" / "own_reward.py").read_text())
    (folder / "broken.py").write_text("def f(:")
    (folder / "_private.py").write_text("def _f(a, b): ...\ndef one(a): ...\ndef two(a, b):\n    return 1.0\n")
    (tmp_path / "outside.py").write_text("def f(sample, response): return 1.0\n")
    (folder / "link.py").symlink_to(tmp_path / "outside.py")
    return folder


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a reward and a task family."""
    rewards, tasks = {"tidy": "no_such_module:tidy"}, {"dots": "no_such_module:Dots"}
    write_package(tmp_path, rewards=rewards, tasks=tasks, version="2.1")
    monkeypatch.syspath_prepend(str(tmp_path))


async def rejected(server: Server, spec: dict[str, Any], path: str) -> tuple[str, str]:
    answer = await server.client.post("/v1/jobs", json=spec)
    assert answer.status_code == 422, answer.text
    assert [error["path"] for error in answer.json()["errors"]] == [path], answer.text
    return code(answer), answer.json()["detail"]


async def test_files_are_off_by_default(server: Server, rewards: Path) -> None:
    for name in (f"{rewards}/own_reward.py:tidy", "own_reward.py:tidy"):
        path = "body.hyperparameters.reward.custom.0.file"
        problem, detail = await rejected(server, perpo({"file": name}), path)
        assert problem == "path_not_allowed"
        assert "OMNI_R1_REWARDS_DIR" in detail
    assert (await server.client.get("/v1/jobs")).json()["data"] == []


async def test_only_files_of_the_folder_are_accepted(serve: Serve, rewards: Path, tmp_path: Path) -> None:
    async with serve(rewards_dir=rewards) as server:
        for make, path in ((perpo, ""), (pipeline, "perpo.")):
            where = f"body.hyperparameters.{path}reward.custom.1.file"
            for name in (f"{tmp_path}/outside.py:f", "../outside.py:f", "link.py:f", "/etc/x.py:f"):
                good = {"file": "own_reward.py:tidy"}
                assert (await rejected(server, make([good, {"file": name}]), where))[0] == "path_not_allowed", name
        where = "body.hyperparameters.reward.custom.0.file"
        assert (await rejected(server, perpo({"file": "nothing.py:f"}), where))[0] == "invalid"


async def test_spec_of_a_job_has_the_whole_path(serve: Serve, rewards: Path) -> None:
    async with serve(rewards_dir=rewards, job_command=worker("succeed")) as server:
        for make in (perpo, pipeline):
            answer = await server.client.post("/v1/jobs", json=make({"file": "own_reward.py:tidy", "weight": 0.5}))
            assert answer.status_code == 202, answer.text
            hyper = answer.json()["spec"]["hyperparameters"]
            (custom,) = hyper.get("perpo", hyper)["reward"]["custom"]
            assert (custom["file"], custom["label"]) == (f"{rewards.resolve()}/own_reward.py:tidy", "tidy")
            await events(server, answer.json()["id"])
            described = json.loads((server.home / "jobs" / answer.json()["id"] / "job.json").read_text())
            hyper = described["spec"]["hyperparameters"]
            assert hyper.get("perpo", hyper)["reward"]["custom"] == [custom]


async def test_files_are_checked_again_at_the_start(serve: Serve, rewards: Path) -> None:
    async with serve(rewards_dir=rewards, job_command=worker("succeed")) as server:
        (rewards / "gone.py").write_text("def f(sample, response): return 1.0\n")
        answer = await server.client.post("/v1/jobs", json=perpo({"file": "gone.py:f"}))
        await events(server, answer.json()["id"])
        (rewards / "gone.py").unlink()
        job = await get(server, answer.json()["id"])
        with pytest.raises(JobError, match="no such file in OMNI_R1_REWARDS_DIR"):
            server.services.jobs._intake.describe(job["id"], job["spec"], server.home / "jobs" / job["id"])


async def test_unknown_names_list_the_known(server: Server, packages: None) -> None:
    where = "body.hyperparameters.reward.custom.0.name"
    problem, detail = await rejected(server, perpo({"name": "untidy"}), where)
    assert (problem, detail.endswith("installed: tidy")) == ("invalid", True)
    tasks = {"source": "tasks", "family": "lines"}
    for method in ("pesft", "perpo", "benchmark"):
        spec = {"method": method, "base_checkpoint": "nano-omni-r1", "data": tasks}
        problem, detail = await rejected(server, spec, "body.data.family")
        assert (problem, detail.endswith("installed: dots")) == ("invalid", True)


async def test_installed_names_are_accepted_unimported(serve: Serve, packages: None) -> None:
    """Their module does not even exist: the server reads the packages' metadata only."""
    async with serve(job_command=worker("succeed")) as server:
        spec = perpo({"name": "tidy"}) | {"data": {"source": "tasks", "family": "dots"}}
        answer = await server.client.post("/v1/jobs", json=spec)
        assert answer.status_code == 202, answer.text
        await events(server, answer.json()["id"])


async def test_extensions_are_listed(serve: Serve, packages: None, rewards: Path) -> None:
    async with serve(rewards_dir=rewards) as server:
        answer = await server.client.get("/v1/extensions")
        ExtensionsOut.model_validate(answer.json())
        found = answer.json()
    assert found["families"] == [{"name": "dots", "package": "mine 2.1"}]
    assert found["files_allowed"] is True
    assert [one.get("name") or one["file"] for one in found["rewards"]] == [
        "tidy",
        "own_reward.py:tidy",
        "own_reward.py:names_the_answer",
    ]
    assert found["rewards"][1]["description"].startswith("Between 0 and 1")


async def test_server_without_extensions_lists_none(server: Server) -> None:
    found = (await server.client.get("/v1/extensions")).json()
    assert found == {"rewards": [], "families": [], "files_allowed": False}


def test_rewards_do_not_lie_among_uploads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMNI_R1_HOME", str(tmp_path / "home"))
    for folder in (tmp_path, tmp_path / "home", tmp_path / "home" / "datasets"):
        monkeypatch.setenv("OMNI_R1_REWARDS_DIR", str(folder))
        with pytest.raises(SettingsError, match="outside OMNI_R1_HOME"):
            read_settings()
    monkeypatch.setenv("OMNI_R1_REWARDS_DIR", str(tmp_path / "rewards"))
    assert read_settings().rewards_dir == tmp_path / "rewards"
