"""Matrices stored in one byte a number: symmetric int8 or fp8 (e4m3), with an fp32 scale for each output.

Only weights are quantised. A product restores blocks of a matrix in the precision of its inputs, so it gives what a
product with the restored matrix gives, up to rounding, and needs little memory besides. A matrix is quantised when it
is loaded, once; training never sees one.

Legend: D inputs, F outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.low_rank import TARGETS
from model.quantisation import BLOCK, QuantKind

FP16_SCALE = 256.0
_STORED = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}  # type, and the largest number


@dataclass(frozen=True, slots=True)
class Quantised:
    """A matrix in the engine's layout."""

    values: Tensor  # [D, F] int8 or fp8
    scale: Tensor  # [F] fp32

    @property
    def nbytes(self) -> int:
        """Bytes of numbers and scales."""
        return self.values.nbytes + self.scale.nbytes

    def contiguous_copy(self) -> Quantised:
        """A copy with memory of its own."""
        return Quantised(self.values.clone(memory_format=torch.contiguous_format), self.scale.clone())

    def columns(self, index: Tensor) -> Quantised:
        """Some of the outputs, copied."""
        bits = self.values.view(torch.int8)  # not every device can index fp8
        kept = bits.new_empty(len(bits), len(index))
        for part, place in zip(index.split(4096), kept.split(4096, 1), strict=True):
            place.copy_(bits[:, part])
        return Quantised(kept.view(self.values.dtype), self.scale[index])

    def product(self, x: Tensor) -> Tensor:
        """x [..., D] times the matrix -> [..., F], in x's precision."""
        inputs, outputs = self.values.shape
        width = max(1, BLOCK // inputs)
        if outputs <= width:
            out = x @ _restored(self.values, x.dtype)
        else:
            out = x.new_empty(*x.shape[:-1], outputs)
            for start in range(0, outputs, width):
                out[..., start : start + width] = x @ _restored(self.values[:, start : start + width], x.dtype)
        return out.mul_(self.scale * FP16_SCALE if _is_restored_as_fp16(self.values) else self.scale)


def _restored(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers before their scales, in a precision; those of fp8 on a CPU are `FP16_SCALE` times as small.

    Shifted to the places of fp16, the bits of an fp8 number are that number over 256. torch's own conversion on a CPU
    takes eight times as long.
    """
    if not _is_restored_as_fp16(values):
        return values.to(dtype)
    bits = values.view(torch.int8).to(torch.int16)  # the sign fills the upper byte
    return bits.bitwise_left_shift(7).bitwise_and_(~(1 << 14)).view(torch.float16).to(dtype)


def _is_restored_as_fp16(values: Tensor) -> bool:
    return values.dtype == torch.float8_e4m3fn and values.device.type == "cpu"


Matrix = Tensor | Quantised  # [D, F]


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """x [..., D] times a matrix [D, F]."""
    return matrix.product(x) if isinstance(matrix, Quantised) else x @ matrix


def quantise(weight: Tensor, kind: QuantKind, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Quantise a matrix [F, D] block by block -> numbers [F, D] and scales [F, 1], on `device`.

    The largest number of a row becomes the largest of the type; a row of zeros has the scale 1.
    """
    dtype, largest = _STORED[kind]
    values = torch.empty(weight.shape, dtype=dtype, device=device)
    scale = torch.empty(len(weight), 1, device=device)
    rows = max(1, BLOCK // weight.shape[1])
    for start in range(0, len(weight), rows):
        block = weight[start : start + rows].to(device, torch.float32, copy=True)
        step = block.abs().amax(1, keepdim=True).div_(largest)
        step.masked_fill_(step == 0, 1.0)
        block.div_(step)
        values[start : start + rows] = (block.round_() if kind == "int8" else block).to(dtype)
        scale[start : start + rows] = step
    return values, scale


class QuantisedLinear(nn.Module):
    """In place of a linear layer without bias: its matrix in one byte a number."""

    weight: Tensor  # [F, D] int8 or fp8
    scale: Tensor  # [F, 1] fp32

    def __init__(self, linear: nn.Linear, kind: QuantKind) -> None:
        """Quantise a layer; one on the meta device gives shapes only, without torch's slow meta arithmetic."""
        super().__init__()
        given, device = linear.weight.detach(), linear.weight.device
        empty = torch.empty(given.shape, dtype=_STORED[kind][0], device=device), torch.empty(len(given), 1)
        values, scale = empty if device.type == "meta" else quantise(given, kind, device)
        self.register_buffer("weight", values)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., F]."""
        return Quantised(self.weight.t(), self.scale.view(-1)).product(x)


Linear = nn.Linear | QuantisedLinear


def quantise_linears(transformer: nn.Module, kind: QuantKind) -> None:
    """Replace the projections of every layer and the head; embedding and norms keep their precision."""
    for name, module in list(transformer.named_modules()):
        parent, _, own = name.rpartition(".")
        if isinstance(module, nn.Linear) and own in (*TARGETS, "lm_head"):
            setattr(transformer.get_submodule(parent), own, QuantisedLinear(module, kind))


def is_quantised(transformer: nn.Module) -> bool:
    """Whether a transformer has quantised layers."""
    return any(isinstance(module, QuantisedLinear) for module in transformer.modules())
