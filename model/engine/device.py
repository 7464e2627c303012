"""Device selection: auto, cpu, cuda or mps, with a clear error when the requested device is missing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import psutil
import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
CPU_SLOTS = 64  # more sequences at once take memory and are hardly faster on a CPU

_SHORTAGES = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


class DeviceError(ValueError):
    """The requested device does not exist on this machine."""


def resolve_device(name: str) -> torch.device:
    """Resolve `auto` to CUDA, else MPS, else the CPU.

    Raises:
        DeviceError: an unknown name, or no such device on this machine.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    match name:
        case "auto":
            return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
        case "cpu":
            return torch.device("cpu")
        case "cuda" if has_cuda:
            return torch.device("cuda")
        case "cuda":
            why = "this PyTorch is a CPU build" if torch.version.cuda is None else "PyTorch sees no NVIDIA GPU"
            raise DeviceError(f"OMNI_R1_DEVICE=cuda, but {why}; use auto or cpu")
        case "mps" if has_mps:
            return torch.device("mps")
        case "mps":
            raise DeviceError("OMNI_R1_DEVICE=mps, but PyTorch sees no Apple GPU; use auto or cpu")
    raise DeviceError(f"OMNI_R1_DEVICE={name} is unknown; use one of {', '.join(DEVICES)}")


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def total_bytes(device: torch.device | None) -> int:
    """Memory of the device; for a CPU that of the machine or its container."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    return min([int(psutil.virtual_memory().total), *_cgroup("memory.max")])


def free_bytes(device: torch.device | None) -> int:
    """Bytes of `total_bytes` that can still be allocated."""
    if device is not None and device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    limits = zip(_cgroup("memory.max"), _cgroup("memory.current"), _cgroup("memory.stat"), strict=False)
    left = [limit - used + cached for limit, used, cached in limits]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out; torch's allocator on a CPU, Metal and cuBLAS have no exception of their own."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORTAGES)


def _cgroup(name: str) -> list[int]:
    """A cgroup limit or counter as a list of one; empty when missing or "max".

    For `memory.stat`, the reclaimable file cache.
    """
    try:
        words = Path("/sys/fs/cgroup", name).read_text().split()
        return [int(words[words.index("inactive_file") + 1 if len(words) > 1 else 0])]
    except (OSError, ValueError):
        return []


def beside_steps() -> AbstractContextManager[object]:
    """For a thread that computes while steps run: on CUDA, neither's kernels wait in a queue behind the other's.

    What it computes must have reached the host before another thread uses it.
    """
    return torch.cuda.stream(_side_stream()) if torch.cuda.is_initialized() else nullcontext()


@cache
def _side_stream() -> torch.cuda.Stream:
    """One, since each has memory of its own; the steps' graphs have a higher priority."""
    return torch.cuda.Stream(priority=0)


def useful_slots(wanted: int, device: torch.device) -> int:
    """Number of `wanted` sequences worth running at once on a device."""
    return min(wanted, CPU_SLOTS) if device.type == "cpu" else wanted
