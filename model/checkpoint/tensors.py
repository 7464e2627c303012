"""Tensors of a checkpoint's files, read one by one, each in the form and on the device where it stays."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.checkpoint.memory import MAPPED_BYTES
from model.checkpoint.shards import CheckpointError, TensorEntry
from model.nets.quantised import quantise
from model.quantisation import QuantKind

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Keep:
    """The form in which tensors stay: a device, a precision, which matrices are quantised, and what is merged in.

    What it returns shares no memory with the mapped file, which may be replaced.
    """

    device: str | torch.device
    dtype: torch.dtype
    quant: QuantKind | None = None
    matrices: Collection[str] = ()
    merge: Callable[[str, Tensor, str | torch.device], Tensor] = lambda _name, tensor, _device: tensor

    def quantises(self, name: str) -> bool:
        """Whether a tensor is quantised."""
        return self.quant is not None and name in self.matrices

    def __call__(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The tensors that stay, by name: the given one, or its numbers and scales."""
        tensor = self.merge(name, tensor, self.device)
        if self.quant is None or name not in self.matrices:
            return {name: tensor.to(self.device, self.dtype, copy=True)}
        values, scale = quantise(tensor, self.quant, self.device)
        return {name: values, scale_of(name): scale}


def scale_of(name: str) -> str:
    """The name of a quantised matrix's scales in a state dict."""
    return name.removesuffix("weight") + "scale"


def iterate(folder: Path, entries: Mapping[str, TensorEntry], names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for the named tensors, file by file; a tensor is valid until the next one.

    The file is mapped anew after every `MAPPED_BYTES`, since the pages read count as memory of this process.
    """
    for file in sorted({entries[name].file for name in names}):
        here = [name for name in names if entries[name].file == file]
        while here:
            mapped = 0
            try:
                with safe_open(folder / file, framework="pt") as tensors:
                    while here and mapped < MAPPED_BYTES:
                        name = here.pop(0)
                        tensor = tensors.get_tensor(name)
                        mapped += tensor.nbytes
                        yield name, tensor
                        del tensor
            except SafetensorError as error:
                raise CheckpointError("broken_file", f"{folder / file}: {error}") from error


def read_tensors(
    folder: Path,
    entries: Mapping[str, TensorEntry],
    names: list[str],
    keep: Keep,
    on_bytes: Callable[[int], None],
) -> dict[str, Tensor]:
    """What `keep` makes of each of the named tensors; `on_bytes` receives the bytes of each in the file."""
    state: dict[str, Tensor] = {}
    for name, tensor in iterate(folder, entries, names):
        state |= keep(name, tensor)
        on_bytes(tensor.nbytes)
        del tensor
    return state


def overwrite(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write tensors in the places of those of the same names and shapes in a safetensors file, in its dtypes."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name, tensor in tensors:
            stored = header[name]
            file.seek(8 + length + stored["data_offsets"][0])
            numbers = tensor.to("cpu", DTYPES[stored["dtype"]]).contiguous()
            file.write(numbers.view(torch.uint8).numpy().tobytes())
