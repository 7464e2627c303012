"""The processes ("ranks") that train one model together, each on a device of its own.

A run on one device has :data:`ALONE`, whose methods cost nothing. Sums travel as fp64, exact for counts. Imports torch
only to talk to others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The others wait while rank 0 waits for disk space. The launcher, not a timeout, ends a group that lost a rank.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among ``size``; rank 0 alone writes files and reports."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def device_of(self, device: torch.device) -> torch.device:
        """This rank's device of a kind: GPU number ``rank`` of several."""
        if self.size == 1 or device.type != "cuda":
            return device
        import torch

        return torch.device("cuda", self.rank)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks; every rank must call it."""
        if self.size == 1:
            return list(values)
        import torch

        total = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return [float(value) for value in total]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank; every rank must call it."""
        return self.sums([float(flag)])[0] > 0

    def wait(self) -> None:
        """Return once every rank is here."""
        self.sums([0.0])  # an empty sum would not wait


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The group that torchrun's environment describes; without one, this process alone.

    Collectives of CPU tensors go through gloo on every device, those of GPU tensors through NCCL. ``device`` is a name
    of :func:`model.engine.device.resolve_device`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
