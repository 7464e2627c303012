"""LoRA pairs merged into the matrices of a base, one at a time: no second copy of the weights, nothing attached.

Legend: D inputs, F outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.checkpoint.parts import WEIGHTS, Parts, read_pairs
from model.checkpoint.shards import CheckpointError, TensorEntry


class Merge:
    """W -> W + s B A for every matrix that has pairs, computed in fp32; other tensors stay as they are."""

    def __init__(self, parts: Parts, entries: Mapping[str, TensorEntry]) -> None:
        """Read the adapters of a checkpoint whose base has these tensors.

        Raises:
            CheckpointError: an adapter cannot be used, or belongs to another base (:func:`read_pairs`).
        """
        shapes = {name: entry.shape for name, entry in entries.items()}
        self._pairs: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
        for folder in parts.adapters:
            settings, _ = read_pairs(folder, shapes)
            for name, a, b in load_pairs(folder, shapes):
                self._pairs.setdefault(f"{name}.weight", []).append((a, b, settings.scale))

    @property
    def names(self) -> frozenset[str]:
        """The names of the tensors that change."""
        return frozenset(self._pairs)

    def __call__(self, name: str, tensor: Tensor, device: str | torch.device = "cpu") -> Tensor:
        """The tensor [F, D] to keep, in fp32 on ``device`` if it changed; the given one is not written to."""
        for a, b, scale in self._pairs.get(name, ()):
            product = b.to(device, torch.float32) @ a.to(device, torch.float32)
            tensor = product.mul_(scale).add_(tensor.to(device))
        return tensor


def load_pairs(folder: Path, base: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every projection of an adapter with A [R, D] and B [F, R]; raises as :func:`read_pairs`."""
    _, pairs = read_pairs(folder, base)
    tensors = load_file(folder / WEIGHTS)
    for name, pair in pairs.items():
        yield name, tensors[pair.a], tensors[pair.b]


def require_finite_pairs(parts: Parts, entries: Mapping[str, TensorEntry]) -> None:
    """Reject adapters with NaN or infinite values.

    Raises:
        CheckpointError: ``not_finite``, naming the projection.
    """
    shapes = {name: entry.shape for name, entry in entries.items()}
    for folder in parts.adapters:
        for name, *matrices in load_pairs(folder, shapes):
            if not all(torch.isfinite(matrix).all() for matrix in matrices):
                raise CheckpointError("not_finite", f"{folder}: {name} holds NaN or infinite values")
