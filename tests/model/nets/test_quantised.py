"""Matrices in one byte a number: what is stored, and that products are those of the restored matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from model.nets import quantised
from model.nets.quantised import Quantised, QuantisedLinear, product, quantise
from model.quantisation import QuantKind

KINDS: tuple[QuantKind, ...] = ("int8", "fp8")


def a_matrix(rows: int = 37, columns: int = 24) -> Tensor:
    """Rows of very different sizes, one of zeros, one with a single large number."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    weight *= torch.logspace(-6, 6, rows)[:, None]
    weight[3] = 0.0
    weight[5, 7] = 1e4
    return weight


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_restored_to_the_nearest_of_the_type(kind: QuantKind) -> None:
    weight = a_matrix()
    values, scale = quantise(weight, kind, "cpu")
    assert values.element_size() == 1
    assert scale.shape == (37, 1)
    restored = values.float() * scale
    largest = weight.abs().amax(1, keepdim=True)
    if kind == "int8":
        assert ((restored - weight).abs() <= largest / 254 * 1.001).all()
    else:  # three bits of mantissa, and numbers below 2^-6 in steps of 2^-9
        assert ((restored - weight).abs() <= (weight.abs() / 16 + largest / 448 / 1024) * 1.001).all()
    torch.testing.assert_close(restored.abs().amax(1, keepdim=True), largest)  # also of the row of zeros


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_restored_matrix(
    kind: QuantKind, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece, and in blocks of a few rows and columns, which change nothing else."""
    weight = a_matrix() / 1e4
    x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2)).to(dtype)
    values, scale = quantise(weight, kind, "cpu")
    expected = (x.double() @ (values.double() * scale).t()).to(dtype)
    whole = product(x, Quantised(values.t(), scale.view(-1)))
    monkeypatch.setattr(quantised, "BLOCK", 24 * 5)
    values_by_block, scale_by_block = quantise(weight, kind, "cpu")
    assert torch.equal(values_by_block.view(torch.int8), values.view(torch.int8))
    assert torch.equal(scale_by_block, scale)
    for found in (whole, product(x, Quantised(values.t(), scale.view(-1)))):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)


def test_every_number_of_fp8_is_restored_exactly() -> None:
    """A row of all 254, the smallest and zeros included, times one."""
    numbers = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(torch.float8_e4m3fn)
    numbers = numbers[~numbers.float().isnan()][None]
    for dtype in (torch.float32, torch.bfloat16):
        found = Quantised(numbers, torch.ones(254)).product(torch.ones(1, 1, dtype=dtype))
        assert torch.equal(found.float(), numbers.float())


@pytest.mark.parametrize("kind", KINDS)
def test_some_outputs_are_those_of_all(kind: QuantKind) -> None:
    linear = nn.Linear(24, 37, bias=False)
    layer = QuantisedLinear(linear, kind)
    x, some = torch.randn(3, 24), torch.tensor([30, 2, 2, 0])
    few = Quantised(layer.weight.t(), layer.scale.view(-1)).columns(some)
    assert few.values.is_contiguous()
    torch.testing.assert_close(few.product(x), layer(x)[:, some])
    torch.testing.assert_close(layer(x), linear(x), rtol=0.2, atol=0.2)
