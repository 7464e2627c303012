"""Memory is checked before a checkpoint is loaded, at the start too; the context of all is a setting."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from model.engine.messages import EngineError
from tests.app.conftest import Serve, Server, is_problem
from tests.fakes import FakeGeneration, answer_items, write_paper_checkpoint


@pytest.fixture
def engine() -> FakeGeneration:
    return FakeGeneration(lambda _request: answer_items(" red"))


async def test_start_without_room_ends_before_loading(tmp_path: Path, package: Path, engine: FakeGeneration) -> None:
    engine.memory_mb, engine.sizes_mb = 100, {"nano-omni-r1": 300}
    server = Server(tmp_path / "home", package, engine)
    await server.start(ready=False)
    while server.runtime.failure is None:
        await asyncio.sleep(0.01)
    assert "needed while loading 300 MiB" in server.runtime.failure
    assert "free 100 MiB" in server.runtime.failure
    assert "OMNI_R1_DTYPE" in server.runtime.failure
    assert engine.loads == []
    await server.stop()


async def test_engine_that_refuses_for_memory_is_no_invalid_checkpoint(
    serve: Serve, engine: FakeGeneration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures pass through: 507, not 422, and the active checkpoint stays."""
    write_paper_checkpoint(tmp_path / "home" / "checkpoints" / "large")
    async with serve() as server:
        sentence = "loading its 26.6 GiB of weights takes 28.0 GiB, and cuda has 24.0 GiB for it"

        async def check(_folder: str) -> object:
            raise EngineError("insufficient_memory", f"insufficient_memory: {sentence}")

        monkeypatch.setattr(engine, "check", check)
        answer = await server.client.post("/v1/checkpoints/large/activate", json={})
        assert is_problem(answer, 507, "insufficient_memory")["detail"] == sentence
        assert (await server.client.get("/readyz")).json()["checkpoint"] == "nano-omni-r1"
        assert (await server.finished((await server.create())["id"]))["status"] == "completed"


async def test_form_of_the_matrices_is_shown(serve: Serve) -> None:
    """In the state of the server, and of the checkpoints that are loaded."""
    async with serve(quant="int8") as server:
        assert (await server.client.get("/readyz")).json()["quant"] == "int8"
        shown = (await server.client.get("/v1/checkpoints")).json()["data"]
        assert {one["quant"] for one in shown if one["loaded"]} == {"int8"}
        assert {one["quant"] for one in shown if not one["loaded"]} <= {None}


async def test_context_that_a_device_gives_is_that_of_its_traces(
    serve: Serve, engine: FakeGeneration, tmp_path: Path
) -> None:
    """Limits, room and bounds of a trace follow what the engine serves, also for one that is loaded on demand."""
    write_paper_checkpoint(tmp_path / "home" / "checkpoints" / "large")
    engine.contexts = {"large": 16_384}
    async with serve() as server:
        own = (await server.client.get("/v1/limits")).json()["context_len"]
        assert (await server.client.get("/v1/limits", params={"checkpoint": "large"})).json()["context_len"] == own
        long = {"max_new_tokens": 9000}
        trace = await server.finished((await server.create(checkpoint="large", sampling=long))["id"])
        assert (trace["status"], trace["sampling"]["max_new_tokens"]) == ("completed", 9000)
        assert (await server.client.get("/v1/limits", params={"checkpoint": "large"})).json()["context_len"] == 16_384
        shown = {one["id"]: one["context_len"] for one in (await server.client.get("/v1/checkpoints")).json()["data"]}
        assert (shown["large"], shown["nano-omni-r1"]) == (16_384, own)
        branch = await server.client.post(
            f"/v1/traces/{trace['id']}/branches", json={"after_step": 0, "sampling": long}
        )
        assert branch.status_code == 201, branch.text


async def test_context_is_a_setting(serve: Serve) -> None:
    async with serve() as server:
        own = (await server.client.get("/v1/limits")).json()["context_len"]
    async with serve(context=own - 100) as server:
        limits = (await server.client.get("/v1/limits")).json()
        assert limits["context_len"] == own - 100
        room = (await server.client.post("/v1/limits", json={"question": "?", "images": 0})).json()
        assert room["room_tokens"] == own - 100 - room["prompt_tokens"]
