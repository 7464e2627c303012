"""Which device the engine runs on: auto, cpu, cuda or mps, with a clear word when what was asked for is not there."""

from __future__ import annotations

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


class DeviceError(ValueError):
    """The device asked for does not exist here."""


def resolve_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one, then Apple's, then the CPU.

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


def serving_dtype(device: torch.device) -> torch.dtype:
    """fp32 on a CPU (equal tokens whoever shares the batch), bf16 on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the platform does not tell."""
    try:
        with open("/proc/self/statm") as file:
            import resource

            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
