"""Counts the memory of tensors while code runs."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of tensors, made under it, that exist at once; `peak` is the most. Mapped files do not count.

    With `dtype`, only tensors of this type count.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.peak = 0
        self._dtype = dtype

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(tensor) for tensor in _tensors((args, kwargs))}
        found = call(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            if _storage(tensor) not in given and self._dtype in (None, tensor.dtype):
                self._hold(tensor.untyped_storage())
        self.peak = max(self.peak, sum(self.held.values()))
        return found

    def _hold(self, storage: torch.UntypedStorage) -> None:
        mapped = storage.device.type == "cpu" and storage.filename is not None
        if not mapped and id(storage) not in self.held:
            self.held[id(storage)] = storage.nbytes()
            weakref.finalize(storage, self.held.pop, id(storage), None)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
