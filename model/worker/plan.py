"""How a checkpoint is served on a device: precision, context, traces at once. Decided from headers, before loading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint.memory import MemoryNeeds, memory_needs
from model.checkpoint.parts import weights_of
from model.checkpoint.shards import CheckpointError, read_entries
from model.config import ConfigError, ModelConfig
from model.engine.commands import Configure
from model.engine.messages import Footprint
from model.nets.paged_attention import has_kernel
from model.paging import PAGE
from model.precision import serving_dtype
from model.quantisation import QuantKind

GIB = 1 << 30
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ServingPlan:
    """Precision and form of the weights, tokens of a context, traces at once, and the memory of all that.

    `num_pages`: of the KV cache; None: it has a context for each trace. `alone`: it takes more than half of the device
    by default, so that no other of its size fits beside it; `twice_kv_mb` is a budget with which one does, or 0.
    """

    dtype: torch.dtype
    context_len: int
    num_slots: int
    footprint: Footprint
    quant: QuantKind | None = None
    num_pages: int | None = None
    alone: bool = False
    twice_kv_mb: int = 0


def serving_plan(folder: Path, settings: Configure, device: torch.device, memory: int) -> ServingPlan:
    """Decide how a folder is served within `memory` bytes: the KV cache gets `kv_mb`, or what weights and work leave.

    Without `kv_mb` that is of half of the memory where that is enough (`MemoryNeeds.share`).

    Raises:
        CheckpointError: ``insufficient_memory`` with the figures; or the folder is invalid.
    """
    folder = weights_of(folder)  # pairs of an adapter vanish in them
    try:
        config = ModelConfig.read(folder)
    except ConfigError as error:
        code = "unsupported" if (folder / "config.json").is_file() else "missing_file"
        raise CheckpointError(code, str(error)) from error
    dtype = serving_dtype(device) if settings.dtype == "auto" else _DTYPES[settings.dtype]
    image, own = config.vq.codes_per_image + 2, config.transformer.context_len
    if (settings.context or own) <= image:
        given = settings.context or own
        raise _too_little(f"a context of {given:,} tokens holds no image: one takes {image:,} (OMNI_R1_CONTEXT)")
    if settings.quant == "fp8" and device.type == "mps":
        raise CheckpointError("unsupported", "OMNI_R1_QUANT=fp8: an Apple GPU has no such numbers; int8 works there")
    entries, t = read_entries(folder), config.transformer
    paged = has_kernel(device, dtype, t.head_dim, t.num_heads // t.num_kv_heads)

    def needs_with(quant: QuantKind | None) -> MemoryNeeds:
        return memory_needs(config, entries, width=dtype.itemsize, device=device.type, quant=quant, paged=paged)

    needs = needs_with(settings.quant)
    if needs.loading_peak > memory:
        byte = settings.quant is None and needs_with("int8").loading_peak <= memory
        raise _too_little(
            f"loading its {_size(needs.weights)} of weights takes {_size(needs.loading_peak)}, and "
            f"{device.type} has {_size(memory)} for it{_half(dtype)}"
            f"{'; OMNI_R1_QUANT=int8 stores a number in one byte' * byte}"
        )
    share = needs.share(memory) if settings.kv_mb is None else memory
    drawn = settings.num_slots * settings.speculation  # positions of the widest pass of a step
    context = settings.context or needs.default_context(own, share)
    if settings.context is None and context > own:
        room = needs.kv_budget(share, drawn) if settings.kv_mb is None else settings.kv_mb << 20
        context = max(own, min(context, room // needs.kv_of(1) * PAGE))
    one, widest = needs.kv_of(context), max(context, drawn)
    budget = needs.kv_budget(share, widest) if settings.kv_mb is None else settings.kv_mb << 20
    slots = min(settings.num_slots, budget // one)
    if not slots:
        fits = budget // needs.kv_of(1) * PAGE if paged else budget // needs.kv_per_token
        source = "OMNI_R1_KV_MB allows" if settings.kv_mb is not None else "the device has, beside the weights,"
        narrow = settings.kv_mb is None and needs.kv_budget(share, context) >= one
        remedy = f"set OMNI_R1_CONTEXT to at most {fits:,}" if fits > image else f"one image takes {image:,} tokens"
        if narrow:
            remedy = f"OMNI_R1_SPECULATION={settings.speculation} lets a pass compute {widest:,} positions; lower it"
        raise _too_little(
            f"a trace of {context:,} tokens takes {_size(one)} of keys and values, "
            f"and {source} {_size(budget)}: {remedy}"
        )
    pages, held = None, slots * one
    if paged:  # traces take pages as they grow, so more of them run than whole contexts fit
        slots, held = settings.num_slots, min(budget, settings.num_slots * one)
        pages = held // needs.kv_of(1)
        held = pages * needs.kv_of(1)
    resident = needs.weights + held
    footprint = Footprint(resident, max(resident, needs.loading_peak), context)
    alone = settings.kv_mb is None and share == memory
    twice = needs.twice_kv(memory, context if settings.context else own) >> 20
    return ServingPlan(dtype, context, slots, footprint, settings.quant, pages, alone, twice)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.1f} MiB"


def _half(dtype: torch.dtype) -> str:
    return "; OMNI_R1_DTYPE=bf16 halves it" if dtype == torch.float32 else ""


def _too_little(detail: str) -> CheckpointError:
    return CheckpointError("insufficient_memory", detail)
