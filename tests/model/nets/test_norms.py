"""Norms for training on a CPU: values and gradients of the plain operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from model.nets.norms import QKNormRotate, RMSNorm
from model.nets.transformer import rotate


def test_rms_norm_equals_the_plain_operations() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    inputs = (x.float().requires_grad_(), weight.float().requires_grad_())
    plain = (x.requires_grad_(), weight.requires_grad_())
    grad = torch.randn(7, 12)
    ours, theirs = RMSNorm.apply(*inputs, 1e-5), F.rms_norm(plain[0], (12,), plain[1], 1e-5)
    ours.backward(grad)
    theirs.backward(grad.double())
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    for one, other in zip(inputs, plain, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


def test_qk_norm_with_rotation_equals_plain_operations() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 3, 8), torch.randn(3, 8), torch.randn(3, 8)
    rotation = torch.polar(torch.ones(5, 1, 4), torch.randn(5, 1, 4))
    ours = [t.clone().requires_grad_() for t in (x, weight, bias)]
    plain = [t.clone().requires_grad_() for t in (x, weight, bias)]
    grad = torch.randn(5, 3, 8)
    one = QKNormRotate.apply(*ours, rotation, 1e-5)
    other = rotate(torch.addcmul(plain[2], F.layer_norm(plain[0], (8,), None, None, 1e-5), plain[1]), rotation)
    one.backward(grad)
    other.backward(grad)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_norm_dtypes_under_autocast() -> None:
    x, weight = torch.randn(4, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = RMSNorm.apply(x, weight, 1e-5)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
