"""Registering LoRA adapters: how their base is found, what is copied, and what is refused."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.manifest import Manifest
from model.checkpoint.parts import WEIGHTS, weights_of
from model.checkpoint.shards import ADAPTER
from tests.app.conftest import Serve, Server, is_problem
from tests.fakes import FakeGeneration
from tests.tiny import make_adapter, make_tiny_checkpoint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture
def allowed(tmp_path: Path, made: Path) -> Path:
    """A folder that the server may read, with a base in it."""
    shutil.copytree(made, tmp_path / "allowed" / "tiny")
    return tmp_path / "allowed"


async def register(server: Server, source: Path | str, **more: Any) -> Any:
    return await server.client.post("/v1/checkpoints", json={"source": str(source), **more})


async def shown(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await server.client.get(f"/v1/checkpoints/{name}")).json()
    return found


async def test_an_adapter_of_a_registered_base_is_copied_and_usable(
    serve: Serve, allowed: Path, tmp_path: Path, engine: FakeGeneration
) -> None:
    async with serve(allowed_roots=(allowed,)) as server:
        assert (await register(server, allowed / "tiny", name="my-base")).status_code == 201
        adapter = make_adapter(allowed / "runs" / "adapter", allowed / "tiny", named="my-base")
        answer = await register(server, adapter, name="tuned")
        assert answer.status_code == 201, answer.text
        entry = answer.json()
        assert entry == await shown(server, "tuned")
        folder = Path(entry["folder"])
        assert (entry["base"], entry["lineage"]["stage"], folder.parent.name) == ("tiny", "adapter", "checkpoints")
        assert {*Manifest.read(folder).files} == {ADAPTER, WEIGHTS}
        assert weights_of(folder) == allowed / "tiny"
        assert engine.checks[-1] == "tuned", "the copy is read from end to end"
        trace = await server.finished((await server.create(checkpoint="tuned"))["id"])
        assert (trace["status"], trace["checkpoint"]) == ("completed", "tuned")

        problem = is_problem(await server.client.delete("/v1/checkpoints/my-base"), 409, "checkpoint_in_use")
        assert "tuned is an adapter of my-base" in problem["detail"]
        is_problem(await register(server, adapter, name="tuned"), 409, "checkpoint_exists")
        both = await asyncio.gather(*(register(server, adapter, name="twin") for _ in range(2)))
        assert sorted(one.status_code for one in both) == [201, 409]
        assert "problem" not in await shown(server, "twin")
        for name in ("tuned", "twin", "my-base"):
            assert (await server.client.delete(f"/v1/checkpoints/{name}?unload=true")).status_code == 204
        assert not folder.exists()
        assert (adapter / WEIGHTS).is_file()
        assert (allowed / "tiny" / "config.json").is_file()


async def test_the_version_of_an_adapter_follows_its_base(serve: Serve, allowed: Path, tmp_path: Path) -> None:
    async with serve(allowed_roots=(allowed,)) as server:
        adapter = make_adapter(allowed / "adapter", allowed / "tiny")
        assert (await register(server, adapter, name="tuned")).status_code == 201

        async def version() -> int:
            answer = await server.client.post("/v1/checkpoints/tuned/activate", json={})
            assert answer.status_code == 200, answer.text
            return int(answer.json()["weight_version"])

        first = await version()
        assert await version() == first
        (allowed / "tiny").rename(tmp_path / "away")
        assert "is a LoRA adapter of " in (await shown(server, "tuned"))["problem"]
        (tmp_path / "away").rename(allowed / "tiny")
        assert "problem" not in await shown(server, "tuned")
        assert await version() == first
        shutil.rmtree(allowed / "tiny")
        make_tiny_checkpoint(allowed / "tiny", seed=3)
        assert await version() != first


async def test_a_base_in_the_home_moves_with_it(serve: Serve, made: Path, allowed: Path, tmp_path: Path) -> None:
    async with serve(allowed_roots=(allowed,)) as server:
        base = Path(shutil.copytree(made, server.home / "checkpoints" / "mine"))
        assert (await register(server, make_adapter(allowed / "a", base, named="mine"), name="b")).status_code == 201
        moved = Path(shutil.copytree(server.home / "checkpoints", tmp_path / "elsewhere"))
        assert weights_of(moved / "b") == moved / "mine"


async def test_a_base_that_only_the_hub_has_is_fetched(serve: Serve, allowed: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--owner--seven" / "snapshots" / "1"
    shutil.copytree(allowed / "tiny", snapshot)
    fetched: list[str] = []

    async def fetch(hub_id: str) -> Path:
        fetched.append(hub_id)
        return snapshot

    async with serve(allowed_roots=(allowed,)) as server:
        server.services.registration._fetch = fetch
        adapter = make_adapter(allowed / "adapter", allowed / "tiny", named="owner/seven")
        assert (await register(server, adapter, name="tuned")).status_code == 201
        assert fetched == ["owner/seven"]
        assert "problem" not in await shown(server, "tuned")


async def test_what_cannot_be_served_is_refused_and_leaves_nothing(
    serve: Serve, allowed: Path, tmp_path: Path, engine: FakeGeneration, made: Path
) -> None:
    elsewhere = Path(shutil.copytree(made, tmp_path / "elsewhere"))
    async with serve(allowed_roots=(allowed,)) as server:
        before = {*(server.home / "checkpoints").iterdir()}

        async def refused(adapter: Path, code: str, reason: str | None, words: str) -> None:
            problem = is_problem(await register(server, adapter, name="tuned"), 422, code, "body.source")
            assert (problem.get("reason"), words in problem["detail"]) == (reason, True), problem

        adapter = allowed / "adapter"
        await refused(make_adapter(adapter, elsewhere), "path_not_allowed", None, "elsewhere")
        make_adapter(adapter, made, named="nowhere")
        await refused(adapter, "checkpoint_invalid", "unsupported", "is a LoRA adapter of nowhere, without the weights")
        make_adapter(adapter, allowed / "tiny", rank=2)
        config = (adapter / ADAPTER).read_text().replace('"r": 2', '"r": 4')
        (adapter / ADAPTER).write_text(config)
        await refused(adapter, "checkpoint_invalid", "unexpected_shape", "the base and rank 4 need")
        make_adapter(adapter, allowed / "tiny")
        engine.bad_folders["tuned"] = "model.norm.weight is in no file of this checkpoint"
        await refused(adapter, "checkpoint_invalid", "missing_tensor", "model.norm.weight")
        assert {*(server.home / "checkpoints").iterdir()} == before
