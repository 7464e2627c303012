"""One thread, an engine, and a recorder of the sampled sequences."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from model.worker.inprocess import InProcess
from tests.model.worker.traces import Recorder, Steps, engine_of


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
async def engine(drawing_checkpoint: Path) -> AsyncIterator[InProcess]:
    """A ready engine with four slots and the drawing checkpoint."""
    async with engine_of(drawing_checkpoint) as engine:
        yield engine


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


@pytest.fixture
def steps(engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(engine, monkeypatch)
