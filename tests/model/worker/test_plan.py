"""How a checkpoint is served: precision, context and traces at once within a budget; refused with figures before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.checkpoint import load_checkpoint, validate_checkpoint
from model.checkpoint.memory import needs_of
from model.checkpoint.report import folder_report
from model.checkpoint.shards import CheckpointError
from model.engine.commands import Configure, Report
from model.engine.messages import EngineError, EngineStatus, Finished, Reading
from model.quantisation import QuantKind
from model.worker.inprocess import InProcess
from model.worker.plan import ServingPlan, serving_plan
from model.worker.reading import STEPS, Progress, stored_bytes
from tests.model.sparse import chameleon_config, sparse_checkpoint
from tests.model.worker.traces import ask, collect

GIB = 1 << 30
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_checkpoint(tmp_path_factory.mktemp("sparse") / "7B", chameleon_config())


def plan(folder: Path, *, gib: float = 24, dtype: str = "bf16", **settings: Any) -> ServingPlan:
    return serving_plan(folder, Configure("cpu", 16, 1, dtype=dtype, **settings), CPU, int(gib * GIB))


def refusal(folder: Path, *, gib: float = 24, dtype: str = "bf16", **settings: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        plan(folder, gib=gib, dtype=dtype, **settings)
    assert error.value.code == "insufficient_memory"
    return error.value.detail


@pytest.mark.parametrize("quant", [None, "int8"])
@pytest.mark.parametrize("gib", [10, 12, 16, 20, 24, 40, 48, 80])
def test_plan_and_doctor_agree(seven_b: Path, gib: int, quant: QuantKind | None) -> None:
    report = folder_report(seven_b, device="cpu", dtype="bf16", memory=gib * GIB, quant=quant)
    if report["max_context"] < 4096:
        detail = refusal(seven_b, gib=gib, quant=quant)
        assert ("OMNI_R1_CONTEXT" if report["max_context"] else "weights") in detail
        assert ("OMNI_R1_QUANT=int8" in detail) == (gib in (10, 12) and quant is None)
        return
    served = plan(seven_b, gib=gib, quant=quant)
    assert served.quant == quant
    assert (served.context_len, served.num_slots) == (report["served_context"], report["concurrent_traces"])
    assert served.context_len == 4096
    assert report["kv_tokens"] == 4096 * report["concurrent_traces"]
    assert served.footprint.resident <= gib * GIB
    assert plan(seven_b, gib=gib, context=report["max_context"], quant=quant).num_slots >= 1
    if report["max_context"] < 16_384:
        assert "keys and values" in refusal(seven_b, gib=gib, context=report["max_context"] + 64, quant=quant)


def test_precision_decides_what_fits(seven_b: Path) -> None:
    assert plan(seven_b).dtype == torch.bfloat16
    detail = refusal(seven_b, dtype="fp32")
    assert "24.0 GiB" in detail
    assert "OMNI_R1_DTYPE=bf16" in detail
    assert refusal(seven_b, dtype="auto") == detail  # fp32 on a CPU
    assert "OMNI_R1_DTYPE" not in refusal(seven_b, gib=12)


def test_wide_windows_take_memory_at_work(seven_b: Path) -> None:
    """16 traces of 1,024 codes at once."""
    assert plan(seven_b, gib=17.2, speculation=32).num_slots == 1
    detail = refusal(seven_b, gib=17.2, speculation=1024)
    assert "OMNI_R1_SPECULATION=1024 lets a pass compute 16,384 positions; lower it" in detail


def test_numbers_that_a_device_lacks_are_refused(seven_b: Path) -> None:
    settings = Configure("mps", 16, 1, dtype="bf16", quant="fp8")
    with pytest.raises(CheckpointError, match="int8 works there"):
        serving_plan(seven_b, settings, torch.device("mps"), 80 * GIB)
    assert serving_plan(seven_b, replace(settings, quant="int8"), torch.device("mps"), 80 * GIB).quant == "int8"


def test_a_budget_holds_whole_contexts(seven_b: Path) -> None:
    one = needs_of(seven_b, width=2, device="cpu").kv_per_token * 4096 // (1 << 20)
    assert plan(seven_b, gib=80, kv_mb=one).num_slots == 1
    assert plan(seven_b, gib=80, kv_mb=3 * one - 1).num_slots == 2
    assert plan(seven_b, gib=80, kv_mb=100 * one).num_slots == 16
    assert plan(seven_b, gib=80, kv_mb=one, context=2048).num_slots == 2
    assert "at most 2,048" in refusal(seven_b, gib=80, kv_mb=one // 2)
    assert "one image takes 1,026 tokens" in refusal(seven_b, gib=80, kv_mb=one // 8)
    assert "takes 2.0 GiB of keys and values, and OMNI_R1_KV_MB allows 5.0 MiB" in refusal(seven_b, gib=80, kv_mb=5)
    assert "holds no image" in refusal(seven_b, gib=80, context=1026)


@pytest.fixture
async def small_engine(drawing_checkpoint: Path) -> AsyncIterator[InProcess]:
    """Two contexts of 600 tokens, more than the checkpoint's own 512, in bf16."""
    kv_mb = -(-2 * 600 * needs_of(drawing_checkpoint, width=2, device="cpu").kv_per_token // (1 << 20))
    engine = InProcess({"drawing": drawing_checkpoint}, dtype="bf16", kv_mb=kv_mb, context=600)
    await engine.start()
    yield engine
    await engine.close()


async def test_engine_keeps_to_its_settings(small_engine: InProcess) -> None:
    output = await collect(small_engine, ask("long", tokens=560))
    assert isinstance(output[-1], Finished)
    (model,) = small_engine.worker.models
    assert (model.engine.context_len, model.engine.cache.context_len) == (600, 600)
    assert model.engine.dtype == torch.bfloat16
    assert model.engine.cache.num_slots < 16


async def test_check_refuses_before_it_reads_the_weights(seven_b: Path, drawing_checkpoint: Path) -> None:
    """14 GB that do not fit are never read: the figures come from the headers."""
    engine = InProcess({"drawing": drawing_checkpoint}, kv_mb=1)
    await engine.start()
    with pytest.raises(EngineError) as error:
        await engine.check(str(seven_b))
    assert error.value.code == "insufficient_memory"
    await engine.close()


class Watched(InProcess):
    """Keeps every reading that the worker reports."""

    readings: list[Reading | None]

    def _receive(self, message: Report) -> None:
        if isinstance(message, EngineStatus):
            self.readings.append(message.reading)
        super()._receive(message)


async def test_readings_grow_to_the_whole_and_end(drawing_checkpoint: Path) -> None:
    """Of the first load and of a check: bytes of all tensors, then nothing."""
    engine = Watched({"drawing": drawing_checkpoint})
    engine.readings = []
    await engine.start()
    await engine.wait_ready()
    await engine.check(str(drawing_checkpoint))
    while engine.status().reading is not None:
        await asyncio.sleep(0)
    await engine.close()
    whole = stored_bytes(drawing_checkpoint)
    seen = [reading for reading in engine.readings if reading is not None]
    assert {reading.total for reading in seen} == {whole}
    assert seen[-1].done <= whole
    assert engine.readings[-1] is None


def test_progress_counts_every_byte_once_and_reports_hundredths(drawing_checkpoint: Path) -> None:
    seen: list[Reading] = []
    progress = Progress(drawing_checkpoint, "checkpoint drawing", seen.append)
    load_checkpoint(drawing_checkpoint, on_bytes=progress)
    done = [reading.done for reading in seen]
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (0, stored_bytes(drawing_checkpoint))
    assert len(done) <= STEPS + 1
    seen.clear()
    progress = Progress(drawing_checkpoint, "checkpoint drawing", seen.append)
    validate_checkpoint(drawing_checkpoint, on_bytes=progress)
    assert seen[-1] == Reading(stored_bytes(drawing_checkpoint), stored_bytes(drawing_checkpoint))
