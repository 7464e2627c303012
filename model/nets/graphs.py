"""Forward passes of fixed shape as CUDA graphs: one launch instead of ten kernels a layer.

A graph repeats the kernels of a pass on the memory that they used when it was captured; the weights' and the pass's own
(:class:`model.nets.paged_attention.PagedAttention` with a fixed shape) must stay where they are. Without CUDA, and if a
graph cannot be captured or computes something else, passes run as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from model.nets import fused
from model.nets.attention import Attention
from model.nets.paged_attention import TOLERANCE, PagedAttention

# Of hidden states, relative: over 32 layers of random weights in bf16 rounding makes .015, a wrong rotation .23.
MOST_DIFFERENCE = 0.1

log = logging.getLogger("omni_r1.engine")


class Graphs:
    """Calls a forward pass, as a graph where its shape is fixed."""

    def __init__(self, run: Callable[[Tensor, Tensor, Attention], Tensor], device: torch.device) -> None:
        """`run`: ids [T], positions [T], attention -> hidden states [T, D]."""
        self._run = run
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # by T, with the hidden states
        self._works = self._fuses = device.type == "cuda"

    @torch.inference_mode()
    def __call__(self, ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Hidden states [T, D]; those of a graph are valid until the next pass of T tokens."""
        if not (self._works and isinstance(attention, PagedAttention) and attention.is_fixed):
            return self._run(ids, positions, attention)
        captured = self._captured.get(len(ids))
        if captured is None:
            return self._capture(ids, positions, attention)
        graph, hidden = captured
        graph.replay()
        return hidden

    def _capture(self, ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Run a pass plainly and capture it, with fused kernels if they work."""
        plain = self._run(ids, positions, attention)
        if self._fuses and fused.works(plain.device, plain.dtype):
            self._fuses = self._capture_checked(ids, positions, attention, plain, fuse=True)
            if self._fuses:
                return plain
        self._works = self._capture_checked(ids, positions, attention, plain, fuse=False)
        if not self._works:
            self._captured.clear()
        return plain

    def _capture_checked(
        self, ids: Tensor, positions: Tensor, attention: Attention, plain: Tensor, *, fuse: bool
    ) -> bool:
        """Whether a graph of the pass computes the same hidden states; then it is kept."""
        graph = torch.cuda.CUDAGraph()
        pool = next((graph.pool() for graph, _ in self._captured.values()), None)  # graphs never run at the same time
        try:
            with fused.kernels(fuse):
                expected = self._run(ids, positions, attention) if fuse else plain  # compiles what is captured
                # Other threads decode images and load checkpoints meanwhile.
                with torch.cuda.graph(graph, pool=pool, stream=_stream(), capture_error_mode="thread_local"):
                    hidden = self._run(ids, positions, attention)
            graph.replay()
            if not torch.allclose(hidden, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                raise RuntimeError("a graph's hidden states are not those of the pass")
            if fuse and _difference(expected, plain) > MOST_DIFFERENCE:
                raise RuntimeError("fused kernels compute something else")
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler's errors are of many types
            log.warning("no %s, so steps take longer: %s", "fused kernels" if fuse else "CUDA graphs", error)
            return False
        self._captured[len(ids)] = graph, hidden
        return True


@cache
def _stream() -> torch.cuda.Stream:
    """One, since graphs share memory only within a stream; its kernels keep its priority in the graph."""
    return torch.cuda.Stream(priority=-1)


def _difference(one: Tensor, other: Tensor) -> float:
    """The difference's norm over the other's; NaN counts as 0."""
    one, other = one.float().nan_to_num(), other.float().nan_to_num()
    return float((one - other).norm() / other.norm().clamp(min=1e-9))
