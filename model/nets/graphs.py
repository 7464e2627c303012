"""Forward passes of fixed shape as CUDA graphs: one launch instead of ten kernels a layer.

A graph repeats the kernels of a pass on the memory that they used when it was captured; the weights' and the pass's own
(:class:`model.nets.paged_attention.PagedAttention` with a fixed shape) must stay where they are. Without CUDA, and if a
graph cannot be captured or computes something else, passes run as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from model.nets.attention import Attention
from model.nets.paged_attention import TOLERANCE, PagedAttention

log = logging.getLogger("omni_r1.engine")


class Graphs:
    """Calls a forward pass, as a graph where its shape is fixed."""

    def __init__(self, run: Callable[[Tensor, Tensor, Attention], Tensor], device: torch.device) -> None:
        """`run`: ids [T], positions [T], attention -> hidden states [T, D]."""
        self._run = run
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # by T, with the hidden states
        self._works = device.type == "cuda"

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
        """Run a pass plainly and capture it."""
        plain = self._run(ids, positions, attention)
        graph = torch.cuda.CUDAGraph()
        pool = next((graph.pool() for graph, _ in self._captured.values()), None)  # graphs never run at the same time
        try:
            # Other threads decode images and load checkpoints meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                hidden = self._run(ids, positions, attention)
            graph.replay()
            if not torch.allclose(hidden, plain, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                raise RuntimeError("a graph's hidden states are not those of the pass")
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("no CUDA graphs, so steps take longer: %s", error)
            self._works = False
            self._captured.clear()
        else:
            self._captured[len(ids)] = graph, hidden
        return plain
