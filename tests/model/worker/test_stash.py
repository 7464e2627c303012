"""The stash of paused traces: a share of the memory, the oldest rows dropped first."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from model.worker import worker
from model.worker.requests import KVStash


@pytest.mark.parametrize(("gib", "mib"), [(1, 64), (4, 64), (64, 1024)])
def test_budget_is_a_share_of_the_memory(monkeypatch: pytest.MonkeyPatch, gib: int, mib: int) -> None:
    monkeypatch.setattr(worker, "total_bytes", lambda _device: gib << 30)
    made = worker.Worker(lambda _report: None)
    assert made._stash.budget == mib << 20
    made.post(worker.commands.Close())
    made.run()


def test_oldest_rows_make_room_for_new_ones() -> None:
    stash, model = KVStash(3 * 400), object()
    keys = [stash.put(model, partial(torch.full, (100,), float(number))) for number in range(4)]
    assert stash.num_bytes == 1200
    assert stash.take(model, keys[0]) is None
    rows = stash.take(model, keys[3])
    assert rows is not None
    assert rows.device.type == "cpu"
    assert rows.tolist() == [3.0] * 100
    assert stash.take(model, stash.put(model, partial(torch.zeros, 301))) is None, "larger than the budget"
    assert stash.take(object(), keys[2]) is None, "other weights"
    assert stash.num_bytes == 400


def test_rows_that_no_memory_is_left_for_are_computed_again() -> None:
    def fail(error: Exception) -> torch.Tensor:
        raise error

    stash = KVStash(1000)
    assert stash.put(object(), partial(fail, torch.OutOfMemoryError("CUDA out of memory"))) == ""
    with pytest.raises(RuntimeError, match="another"):
        stash.put(object(), partial(fail, RuntimeError("another")))
    assert stash.num_bytes == 0
