"""A tiny checkpoint in memory, and the loop that every fast path is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.engine import Engine


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loaded(tiny_checkpoint: Path) -> LoadedCheckpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture
def engine(loaded: LoadedCheckpoint) -> Engine:
    return Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=16)
