"""One thread, and a recorder of the sampled sequences."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.model.worker.traces import Recorder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)
