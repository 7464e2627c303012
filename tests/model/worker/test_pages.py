"""Serving with keys and values in pages, as on a GPU, here on a CPU."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.memory import needs_of
from model.checkpoint.report import folder_report
from model.checkpoint.shards import CheckpointError
from model.engine.commands import Configure
from model.engine.engine import Engine
from model.engine.messages import Failed, Finished, QueuePosition
from model.nets.page_cache import PageCache
from model.nets.paged_attention import PagedAttention
from model.paging import CHUNK, PAGE
from model.worker.inprocess import InProcess
from model.worker.plan import ServingPlan, serving_plan
from tests.model.sparse import chameleon_config, sparse_checkpoint
from tests.model.worker.traces import Recorder, ask, collect

GIB = 1 << 30
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.worker.plan.has_kernel", lambda *_: True)


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_checkpoint(tmp_path_factory.mktemp("sparse") / "7B", chameleon_config())


def plan(folder: Path, gib: float, **settings: int) -> ServingPlan:
    return serving_plan(folder, Configure("cuda", 16, 1, dtype="bf16", **settings), GPU, int(gib * GIB))  # type: ignore


@pytest.mark.parametrize("gib", [16, 24, 40, 80])
def test_plan_and_doctor_agree(seven_b: Path, gib: int) -> None:
    report = folder_report(seven_b, device="cuda", dtype="bf16", memory=gib * GIB)
    if report["max_context"] < 4096:
        with pytest.raises(CheckpointError, match=r"OMNI_R1_CONTEXT to at most|one image takes"):
            plan(seven_b, gib)
        return
    served = plan(seven_b, gib)
    assert served.num_slots == 16
    assert served.num_pages is not None
    assert served.num_pages * PAGE >= 4096 * report["concurrent_traces"]
    assert abs(served.num_pages * PAGE - report["kv_tokens"]) < PAGE
    assert served.footprint.resident <= gib * GIB
    longest = plan(seven_b, gib, context=report["max_context"])
    assert longest.num_pages is not None
    assert longest.num_pages * PAGE >= report["max_context"]


def test_budget_is_counted_in_pages(seven_b: Path) -> None:
    page = needs_of(seven_b, width=2, device="cuda").kv_per_token * PAGE >> 20
    assert plan(seven_b, 80, kv_mb=16 * page).num_pages == 16
    assert plan(seven_b, 80, kv_mb=40 * page + 1).num_pages == 40
    assert plan(seven_b, 80, kv_mb=1 << 20).num_pages == 16 * 16, "no more than all traces could fill"
    with pytest.raises(CheckpointError, match="OMNI_R1_CONTEXT to at most 3,840"):
        plan(seven_b, 80, kv_mb=16 * page - 1)


@pytest.fixture
async def engine(drawing_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[InProcess]:
    """With forty pages of 16 positions, little more than a context."""
    monkeypatch.setattr("model.worker.models.Engine", small_pages)
    engine = InProcess({"drawing": drawing_checkpoint}, num_slots=16)
    await engine.start()
    yield engine
    await engine.close()


def small_pages(*arguments: Any, num_pages: int, **options: Any) -> Engine:
    return Engine(*arguments, num_pages=40, page=16, **options)


async def test_thirty_traces_take_turns_and_none_changes(
    engine: InProcess, drawing_checkpoint: Path, recorder: Recorder
) -> None:
    alone = {seed: await collect(engine, ask(f"alone-{seed}", seed=seed)) for seed in range(3)}
    core = engine.worker.models["drawing"].engine
    assert isinstance(core.cache, PageCache)
    traces = await asyncio.gather(*(collect(engine, ask(f"t{seed}", seed=seed)) for seed in range(30)))
    assert all(isinstance(outputs[-1], Finished) for outputs in traces)
    assert any(isinstance(output, QueuePosition) for output in traces[-1])
    for seed, single in alone.items():
        recorder.assert_same_trace(drawing_checkpoint, f"alone-{seed}", single, f"t{seed}", traces[seed])
    assert core.cache.num_free == 40


async def test_prompt_that_fails_between_steps_ends_alone(engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a part of it lacks memory while others run, or all of it when it starts."""
    attend = PagedAttention.__call__

    def short_of_memory(self: PagedAttention, layer: int, q: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        if len(q) == CHUNK * 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return attend(self, layer, q, *more)

    long = replace(ask("long", tokens=5, images=False), question="ж" * 100)
    short = [replace(ask(name, seed=seed), images=(), question="?") for seed, name in enumerate(("one", "two"))]
    monkeypatch.setattr(PagedAttention, "__call__", short_of_memory)
    *others, failed = await asyncio.gather(*(collect(engine, request) for request in (*short, long)))
    assert [type(outputs[-1]) for outputs in others] == [Finished, Finished]
    assert isinstance(failed[-1], Failed)
    assert "Tried to allocate 2.00 GiB" in failed[-1].detail
    core = engine.worker.models["drawing"].engine
    assert isinstance(core.cache, PageCache)
    assert core.cache.num_free == 40
