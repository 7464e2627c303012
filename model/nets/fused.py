"""Small operations of a layer as one GPU kernel each, in Triton: ten launches a layer in a decode step instead of 16.

For passes that become CUDA graphs (:mod:`model.nets.graphs`): a graph saves the host's time for a call, which is longer
for these than for PyTorch's operations. They need CUDA, Triton, and results that agree with those operations (tried
once for each device and precision); they compute in fp32 and round once, at the end.

Legend: T tokens, D width, H heads, K head dim, J key/value heads, I width of the MLP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch's builds for CPUs come without it
    triton = tl = None

log = logging.getLogger("omni_r1.engine")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TOLERANCE = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 1e-4}  # of numbers of about 1
SHAPES = ((64, 1_500), (80, 4_096), (128, 11_008))  # head dims and widths with which they are tried
BLOCK = 1_024  # numbers that a program copies or multiplies at a time


_thread = threading.local()


@contextmanager
def kernels(on: bool) -> Iterator[None]:
    """Whether this thread's passes use the kernels, where they work."""
    before, _thread.on = getattr(_thread, "on", False), on
    try:
        yield
    finally:
        _thread.on = before


def serves(x: Tensor) -> bool:
    """Whether an operation on this tensor uses a kernel."""
    if not getattr(_thread, "on", False) or x.dtype not in DTYPES or torch.is_grad_enabled():
        return False
    return works(x.device, x.dtype)


@cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compile on a device and agree with PyTorch's operations there.

    Raises:
        torch.OutOfMemoryError: there is too little memory to try.
    """
    if triton is None or device.type != "cuda":
        return False
    try:
        if all(agree(device, dtype, head_dim, inner=width) for head_dim, width in SHAPES):
            return True
        reason = "they differ from PyTorch's operations"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler's errors are of many types
        reason = f"{type(error).__name__}: {error}"
    log.warning("no fused kernels, so steps take longer: %s", reason)
    return False


@torch.no_grad()
def agree(device: torch.device, dtype: torch.dtype, head_dim: int, *, tokens: int = 3, inner: int = 1_500) -> bool:
    """Whether every kernel gives what the plain operations give, on noise."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    heads, kv_heads = 3, 2
    qkv = noise(tokens, heads + kv_heads, head_dim)
    qk, v = qkv[:, :heads], qkv[:, heads:]
    weight, bias = noise(heads, head_dim), noise(heads, head_dim)
    angles = torch.randn(tokens, 1, head_dim // 2, generator=generator)
    rotation = torch.polar(torch.ones_like(angles), angles).to(device)
    unit = F.layer_norm(qk.float(), (head_dim,), None, None, 1e-5)
    pairs = torch.view_as_complex((unit * weight.float() + bias.float()).unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * rotation).flatten(-2)
    gate, up = (gate_up := noise(tokens, 2 * inner)).float().chunk(2, dim=-1)
    keys, values = torch.zeros(2, tokens + 2, kv_heads, head_dim, device=device, dtype=dtype).unbind()
    target = torch.arange(tokens, device=device).flip(0) + 1
    write_rows(qk[:, :kv_heads], v, keys, values, target)
    row, scale = noise(tokens, inner), noise(inner)
    pairs_of_results = [
        (rms_norm(row, scale, 1e-5), F.rms_norm(row.float(), (inner,), scale.float(), 1e-5)),
        (norm_rotate(qk, weight, bias, rotation, 1e-5), turned),
        (silu_product(gate_up), F.silu(gate) * up),
        (keys, torch.zeros_like(keys).index_copy_(0, target, qk[:, :kv_heads])),
        (values, torch.zeros_like(values).index_copy_(0, target, v)),
    ]
    tolerance = TOLERANCE[dtype]
    near = (torch.isclose(a.float(), b.float(), rtol=tolerance, atol=tolerance).all() for a, b in pairs_of_results)
    return all(bool(one) for one in near)


@torch.library.custom_op("omni_r1::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] over its root mean square, times weight [D]."""
    width = x.shape[-1]
    rows, out = x.contiguous().view(-1, width), torch.empty(x.shape, device=x.device, dtype=x.dtype)
    with torch.cuda.device_of(x):
        _rms_norm[(len(rows),)](rows, weight, out, width, eps, BLOCK=triton.next_power_of_2(width))
    return out


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty(x.shape, device=x.device, dtype=x.dtype)


@torch.library.custom_op("omni_r1::norm_rotate", mutates_args=())
def norm_rotate(qk: Tensor, weight: Tensor, bias: Tensor, rotation: Tensor, eps: float) -> Tensor:
    """LayerNorm of each head and RoPE on interleaved pairs: qk [..., T, H, K] -> the same shape, contiguous.

    Args:
        qk: queries and keys; the numbers of a token lie together.
        weight: of the norm, [H, K].
        bias: of the norm, [H, K].
        rotation: [..., T, 1, K / 2], complex.
        eps: of the norm.
    """
    heads, dim = qk.shape[-2:]
    rows, out = qk.flatten(0, -3), torch.empty(qk.shape, device=qk.device, dtype=qk.dtype)
    angles = torch.view_as_real(rotation).contiguous()
    if rows.stride()[1:] != (dim, 1):
        rows = rows.contiguous()
    grid, stride = (len(rows) * heads,), rows.stride(0)
    shape = {"HALF": dim // 2, "BLOCK": triton.next_power_of_2(dim // 2)}
    with torch.cuda.device_of(qk):
        _norm_rotate[grid](rows, weight.contiguous(), bias.contiguous(), angles, out, stride, heads, eps, **shape)
    return out


@norm_rotate.register_fake
def _(qk: Tensor, weight: Tensor, bias: Tensor, rotation: Tensor, eps: float) -> Tensor:
    return torch.empty(qk.shape, device=qk.device, dtype=qk.dtype)


@torch.library.custom_op("omni_r1::silu_product", mutates_args=())
def silu_product(gate_up: Tensor) -> Tensor:
    """SiLU(gate) * up: [..., 2 * I], the gate first -> [..., I]."""
    inner = gate_up.shape[-1] // 2
    rows, out = gate_up.contiguous().view(-1, 2 * inner), gate_up.new_empty(*gate_up.shape[:-1], inner)
    with torch.cuda.device_of(gate_up):
        _silu_product[(len(rows), triton.cdiv(inner, BLOCK))](rows, out, inner, BLOCK=BLOCK)
    return out


@silu_product.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)


@torch.library.custom_op("omni_r1::write_rows", mutates_args=("keys", "values"))
def write_rows(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, target: Tensor) -> None:
    """Copy the T rows of k and v [T, J, K] to the places `target` [T] of keys and values [places, J, K]."""
    width = k.shape[1] * k.shape[2]
    k, v = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in (k, v))
    grid, strides = (len(k), triton.cdiv(width, BLOCK)), (k.stride(0), v.stride(0))
    with torch.cuda.device_of(k):
        _write_rows[grid](k, v, keys, values, target, *strides, width, BLOCK=BLOCK)


@write_rows.register_fake
def _(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, target: Tensor) -> None:
    return None


def _kernel(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


@_kernel
def _rms_norm(x, weight, out, width, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One token."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    inside = place < width
    numbers = tl.load(x + row * width + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(numbers * numbers, 0) / width + eps)
    product = numbers * scale * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + place, product.to(out.dtype.element_ty), mask=inside)


@_kernel
def _norm_rotate(  # type: ignore[no-untyped-def]
    x, weight, bias, rotation, out, stride, heads, eps, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """One head of one token; pairs are read as their even and odd numbers."""
    row = tl.program_id(0).to(tl.int64)
    token, head = row // heads, row % heads
    pair = 2 * tl.arange(0, BLOCK)
    inside = pair < 2 * HALF
    source, place = x + token * stride + head * 2 * HALF + pair, head * 2 * HALF + pair
    even = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(source + 1, mask=inside, other=0.0).to(tl.float32)
    mean = (tl.sum(even, 0) + tl.sum(odd, 0)) / (2 * HALF)
    even, odd = tl.where(inside, even - mean, 0.0), tl.where(inside, odd - mean, 0.0)
    scale = tl.rsqrt((tl.sum(even * even, 0) + tl.sum(odd * odd, 0)) / (2 * HALF) + eps)
    even = even * scale * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    odd = odd * scale * tl.load(weight + place + 1, mask=inside, other=0.0).to(tl.float32)
    even += tl.load(bias + place, mask=inside, other=0.0).to(tl.float32)
    odd += tl.load(bias + place + 1, mask=inside, other=0.0).to(tl.float32)
    angle = rotation + token * 2 * HALF + pair
    cos, sin = tl.load(angle, mask=inside, other=0.0), tl.load(angle + 1, mask=inside, other=0.0)
    result = out + row * 2 * HALF + pair
    tl.store(result, (even * cos - odd * sin).to(out.dtype.element_ty), mask=inside)
    tl.store(result + 1, (even * sin + odd * cos).to(out.dtype.element_ty), mask=inside)


@_kernel
def _silu_product(gate_up, out, inner, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of one token."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < inner
    gate = tl.load(gate_up + row * 2 * inner + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * inner + inner + place, mask=inside, other=0.0).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * inner + place, product.to(out.dtype.element_ty), mask=inside)


@_kernel
def _write_rows(k, v, keys, values, target, k_stride, v_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block of one token's keys and of its values."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < width
    to = tl.load(target + row).to(tl.int64) * width + place
    tl.store(keys + to, tl.load(k + row * k_stride + place, mask=inside), mask=inside)
    tl.store(values + to, tl.load(v + row * v_stride + place, mask=inside), mask=inside)
