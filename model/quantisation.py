"""Weight-only quantisation: names and sizes, without torch. The arithmetic is in :mod:`model.nets.quantised`."""

from __future__ import annotations

from typing import Literal

QuantKind = Literal["int8", "fp8"]
BLOCK = 1 << 24  # numbers of a matrix that are quantised, or restored for a product, at once
