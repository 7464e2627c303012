"""bf16 only on supporting hardware, decided in one place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.precision import autocast, cpu_has_bf16, is_emulated, resolve_precision, serving_dtype

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh_probe() -> Iterator[None]:
    cpu_has_bf16.cache_clear()
    yield
    cpu_has_bf16.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, *features: str, level: str = "AVX512", onednn: str = "") -> None:
    """A CPU with these features, and PyTorch's limits."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(features, True))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", onednn)


@pytest.mark.parametrize("features", [("avx512_bf16",), ("amx_bf16", "amx_tile"), ("avx512_bf16", "amx_bf16")])
def test_hardware_bf16_is_used(monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...]) -> None:
    pretend(monkeypatch, "avx2", "avx512_f", *features)
    assert cpu_has_bf16()
    assert resolve_precision("auto", "cpu") == "bf16"
    assert not is_emulated("bf16", "cpu")


@pytest.mark.parametrize(
    ("features", "level", "onednn"),
    [
        (("avx2",), "AVX2", ""),
        (("avx2", "avx512_f", "avx512_vnni"), "AVX512", ""),
        (("avx512_bf16", "amx_bf16"), "AVX2", ""),
        (("avx512_bf16",), "DEFAULT", ""),
        (("avx512_bf16",), "AVX512", "AVX2"),
        (("avx512_bf16",), "AVX512", "avx512_core_vnni"),
        (("neon",), "DEFAULT", ""),
    ],
)
def test_other_cpus_and_limits_mean_fp32(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], level: str, onednn: str
) -> None:
    pretend(monkeypatch, *features, level=level, onednn=onednn)
    assert resolve_precision("auto", "cpu") == "fp32"
    assert is_emulated("bf16", "cpu")


def test_an_explicit_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "avx2", level="AVX2")
    assert resolve_precision("bf16", "cpu") == "bf16"
    pretend(monkeypatch, "avx512_bf16")
    cpu_has_bf16.cache_clear()
    assert resolve_precision("fp32", "cpu") == "fp32"


@pytest.mark.parametrize("has_it", [True, False])
def test_autocast_follows_the_probe(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    pretend(monkeypatch, *["avx512_bf16"] * has_it)
    x = torch.ones(2, 2)
    with autocast("auto"):
        assert (x @ x).dtype == (torch.bfloat16 if has_it else torch.float32)
    with autocast("fp32"):
        assert (x @ x).dtype == torch.float32
    with autocast("bf16"):
        assert (x @ x).dtype == torch.bfloat16


def test_cpu_tokens_are_sampled_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "avx512_bf16", "amx_bf16")
    assert serving_dtype(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize(
    "limit", ["ATEN_CPU_CAPABILITY=avx2", "ATEN_CPU_CAPABILITY=default", "ONEDNN_MAX_CPU_ISA=AVX2"]
)
def test_environment_limits_are_respected(limit: str) -> None:
    name, value = limit.split("=")
    code = "from model.precision import cpu_has_bf16; print(cpu_has_bf16())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, name: value},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_choice_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pretend(monkeypatch, "avx2", level="AVX2")
    with caplog.at_level("INFO", "omni_r1.precision"):
        cpu_has_bf16()
        cpu_has_bf16()
    assert [record.getMessage() for record in caplog.records] == [
        "the CPU has no bf16 in hardware: training and decoding of images use fp32"
    ]


def test_nothing_else_opens_an_autocast() -> None:
    """No computation may run in an unresolved precision."""
    sources = [p for folder in ("app", "model", "training", "tests/benchmarks") for p in (ROOT / folder).rglob("*.py")]
    found = [p.name for p in sources if re.search(r"\btorch\.(cpu\.amp\.|amp\.)?autocast\(", p.read_text("utf-8"))]
    assert found == ["precision.py"]
