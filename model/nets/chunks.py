"""Functions of many rows, computed in parts, so that what stands between input and result never exists for all rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_parts(function: Callable[..., tuple[Tensor, ...]], size: int, *rows: Tensor) -> tuple[Tensor, ...]:
    """The results of a function of tensors with equally many rows, at most ``size`` of them at once.

    Results have a row for each, too. Several parts are computed again in the backward; a single one is not.
    """
    if len(rows[0]) <= size:
        return function(*rows)
    parts = zip(*(tensor.split(size) for tensor in rows), strict=True)
    results = [checkpoint(function, *part, use_reentrant=False) for part in parts]
    return tuple(torch.cat(one) for one in zip(*results, strict=True))
