"""An engine on a tiny checkpoint, with one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.engine import Engine


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def engine(loaded: LoadedCheckpoint) -> Engine:
    return Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=16)
