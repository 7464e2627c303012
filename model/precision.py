"""Precision of a computation: bf16 on devices with bf16 hardware, otherwise fp32.

The only place that decides. A CPU has bf16 hardware if it has AVX-512 BF16 or AMX and PyTorch may use them; other CPUs
emulate bf16, up to twenty times slower than fp32. Tokens are always sampled in fp32 on a CPU; bf16 serves training and
image decoding.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]
PrecisionChoice = Literal["auto", "fp32", "bf16"]

BF16_FEATURES = ("avx512_bf16", "amx_bf16")
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
ONEDNN_WITHOUT_BF16 = frozenset(("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"))

log = logging.getLogger("omni_r1.precision")


@cache
def cpu_has_bf16() -> bool:
    """Whether this CPU has bf16 hardware that PyTorch may use; probed and logged once per process.

    Respects `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA`, which limit PyTorch.
    """
    features: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    found = [name for name in BF16_FEATURES if features.get(name)]
    limit = next((value for name in ONEDNN_LIMITS if (value := os.environ.get(name, "").upper())), "")
    allowed = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and limit not in ONEDNN_WITHOUT_BF16
    if found and allowed:
        log.info("the CPU has bf16 in hardware (%s): used for training and for decoding images", ", ".join(found))
    else:
        why = "PyTorch is limited to older instructions" if found else "the CPU has no bf16 in hardware"
        log.info("%s: training and decoding of images use fp32", why)
    return bool(found) and allowed


def has_bf16(device: torch.device | str) -> bool:
    """Whether a device has bf16 hardware."""
    kind = torch.device(device).type
    if kind == "cpu":
        return cpu_has_bf16()
    return kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_precision(choice: PrecisionChoice, device: torch.device | str) -> Precision:
    """Resolve `auto` to bf16 on devices with bf16 hardware, otherwise fp32; explicit choices are kept."""
    if choice != "auto":
        return choice
    return "bf16" if has_bf16(device) else "fp32"


def is_emulated(precision: Precision, device: torch.device | str) -> bool:
    """Whether a device only emulates a precision."""
    return precision == "bf16" and not has_bf16(device)


def autocast(choice: PrecisionChoice, device: torch.device | str = "cpu") -> torch.autocast:
    """Context in which matrix products and convolutions run in the chosen precision, with fp32 weights."""
    enabled = resolve_precision(choice, device) == "bf16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def serving_dtype(device: torch.device) -> torch.dtype:
    """Precision of the weights for sampling: fp32 on a CPU, bf16 on a GPU with bf16 hardware."""
    return torch.bfloat16 if device.type != "cpu" and has_bf16(device) else torch.float32
