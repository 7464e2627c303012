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
from model.config import ModelConfig
from model.engine.commands import Configure
from model.engine.engine import Engine
from model.engine.messages import Failed, Finished, QueuePosition
from model.engine.phases import images_that_fit
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


@pytest.mark.parametrize("gib", [16, 24, 40, 48, 80])
def test_plan_and_doctor_agree(seven_b: Path, gib: int) -> None:
    report = folder_report(seven_b, device="cuda", dtype="bf16", memory=gib * GIB)
    if report["max_context"] < 4096:
        with pytest.raises(CheckpointError, match=r"OMNI_R1_CONTEXT to at most|one image takes"):
            plan(seven_b, gib)
        return
    served = plan(seven_b, gib)
    assert served.num_slots == 16
    assert abs(served.context_len - report["served_context"]) <= PAGE
    assert served.alone == (not report["fits_twice"])
    assert served.twice_kv_mb == report["twice_kv_mb"]
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
    assert plan(seven_b, 80, kv_mb=40 * page).context_len == 40 * PAGE, "a trace may have all of them"
    assert plan(seven_b, 80, kv_mb=1 << 20).num_pages == 16 * 64, "no more than all traces could fill"
    assert plan(seven_b, 80, kv_mb=1 << 20, context=4096).num_pages == 16 * 16
    with pytest.raises(CheckpointError, match="OMNI_R1_CONTEXT to at most 3,840"):
        plan(seven_b, 80, kv_mb=16 * page - 1)


@pytest.mark.parametrize(("gib", "two", "contexts"), [(24, False, 4), (48, True, 4), (79, True, 11), (80, True, 11)])
def test_two_fit_where_half_of_a_card_is_ample(seven_b: Path, gib: int, two: bool, contexts: int) -> None:
    """The second is planned with what the first's work leaves, and its pages are counted before it is loaded."""
    first = plan(seven_b, gib)
    assert first.num_pages is not None
    assert first.num_pages * PAGE >= contexts * 4096
    assert first.alone != two
    work = GIB // 2  # graphs and the like, beside what is counted
    second = plan(seven_b, gib - 0.5).footprint
    assert (first.footprint.resident + max(second.resident, second.loading) <= gib * GIB - work) == two
    if not two:
        assert first.twice_kv_mb == 0
        assert first.footprint.resident > (gib - 4) * GIB, "nothing is kept for what does not fit"


def test_budget_that_a_refusal_names_lets_two_in(seven_b: Path) -> None:
    alone = plan(seven_b, 40)
    assert alone.alone
    two = plan(seven_b, 40, kv_mb=alone.twice_kv_mb)
    assert two.footprint.resident + max(two.footprint.resident, two.footprint.loading) <= 40 * GIB
    assert two.context_len >= 4096
    assert not plan(seven_b, 80).alone
    assert plan(seven_b, 24).twice_kv_mb == 0


@pytest.mark.parametrize("gib", [23.5, 24, 48, 80])
def test_ten_drawings_fit_behind_an_image(seven_b: Path, gib: float) -> None:
    """A context is what the card gives, at most 16,384; the checkpoint's own is 4,096."""
    served = plan(seven_b, gib)
    assert 10 <= images_that_fit(served.context_len - 1026 - 200, 1026) <= 15
    assert served.num_pages is not None
    assert served.num_pages * PAGE >= served.context_len
    assert served.footprint.context_len == served.context_len
    assert plan(seven_b, gib, context=5000).context_len == 5000
    assert plan(seven_b, 20).context_len < served.context_len


def test_wide_windows_leave_less_context(seven_b: Path) -> None:
    narrow, wide = (
        serving_plan(seven_b, Configure("cuda", 16, 1, speculation, "bf16"), GPU, 22 * GIB) for speculation in (1, 1024)
    )
    assert wide.context_len < narrow.context_len
    assert wide.num_pages is not None
    assert wide.num_pages * PAGE >= wide.context_len


def test_short_contexts_stay(drawing_checkpoint: Path) -> None:
    """A checkpoint that was trained on short sequences knows no longer ones."""
    served = plan(drawing_checkpoint, 24)
    assert served.context_len == ModelConfig.read(drawing_checkpoint).transformer.context_len < 4096


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
