"""One server on the real engine for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.app.traces.real import Studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A server with the shipped checkpoints; tests may restart it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        running = Studio(tmp_path_factory.mktemp("studio") / "home", monkeypatch)
        yield running
        running.close()
    torch.set_num_threads(threads)
