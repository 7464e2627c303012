"""The fused kernels in Triton's interpreter, on a CPU: `TRITON_INTERPRET=1 python -m tests.model.nets.interpreted`."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor

from model.config import TransformerConfig
from model.nets import fused
from model.nets.attention import CausalAttention
from model.nets.page_cache import PageCache
from model.nets.transformer import Transformer

CPU = torch.device("cpu")


def kernels_agree_on_random_shapes() -> None:
    rng = Random(0)
    for number in range(24):
        dtype, dim = fused.DTYPES[number % 3], 2 * rng.randint(1, 66)
        shape = {"tokens": rng.randint(1, 9), "inner": rng.choice((1, 7, 1_024, 1_025, 2_500))}
        assert fused.agree(CPU, dtype, dim, **shape), (dtype, dim, shape)


def wrong_kernel_is_found(patch: pytest.MonkeyPatch) -> None:
    original = fused.silu_product
    with patch.context() as inner:
        inner.setattr(fused, "silu_product", lambda x: original(x) * 1.1)
        assert not fused.agree(CPU, torch.bfloat16, 64)


def forward_is_the_same(patch: pytest.MonkeyPatch) -> None:
    """A whole pass and steps over pages, with every kernel and with none."""
    config = TransformerConfig(
        vocab_size=64,
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
        intermediate_size=40,
        max_position_embeddings=128,
    )
    transformer = Transformer(config).eval().requires_grad_(False)
    transformer.init_weights(0)
    for name, parameter in transformer.named_parameters():
        if "norm" in name:
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    ids = [3 * i % 64 for i in range(40)]

    @torch.inference_mode()
    def states() -> list[Tensor]:
        both = torch.tensor([ids, list(range(len(ids)))])
        whole = transformer(both[:1], both[1:], CausalAttention())
        cache = PageCache(config, 2, 128, num_pages=20, page=8)
        cache.prefill(0, ids, transformer)
        cache.prefill(1, ids[:9], transformer)
        for slot, length in ((0, 43), (1, 12)):
            assert cache.reserve(slot, length)
        return [whole, transformer(*cache.windows([1, 2, 3, 4], [40, 9], [3, 1]))]

    plain, used = states(), set[str]()
    for name in ("rms_norm", "norm_rotate", "silu_product", "write_rows"):
        patch.setattr(fused, name, _noted(getattr(fused, name), used))
    patch.setattr(fused, "serves", lambda _: True)
    for one, other in zip(plain, states(), strict=True):
        assert torch.allclose(one, other, atol=1e-5), (one - other).abs().max()
    assert len(used) == 4, used


def _noted(kernel: object, used: set[str]) -> object:
    def call(*given: object) -> object:
        used.add(str(kernel))
        return kernel(*given)  # type: ignore[operator]

    return call


def main() -> None:
    with pytest.MonkeyPatch.context() as patch:
        kernels_agree_on_random_shapes()
        wrong_kernel_is_found(patch)
        forward_is_the_same(patch)


if __name__ == "__main__":
    main()
