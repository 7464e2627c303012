"""Fused kernels: what they compute (in Triton's interpreter), and when they are not used."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from model.nets import fused

ROOT = Path(__file__).parents[3]
CUDA = torch.device("cuda")
TRITON = os.environ.get("STUDIO_TEST_TRITON")  # a folder with the package


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    fused.works.cache_clear()
    yield
    fused.works.cache_clear()


@pytest.mark.skipif(not (TRITON or find_spec("triton")), reason="Triton is not installed: make test-triton installs it")
def test_kernels_compute_what_pytorch_does() -> None:
    path = os.pathsep.join(filter(None, (str(ROOT), TRITON)))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.model.nets.interpreted"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_kernels_are_for_passes_that_ask_for_them_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "works", lambda *_: True)
    x, exact = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        assert not fused.serves(x)
        with fused.kernels(True):
            assert fused.serves(x)
            assert not fused.serves(exact)
            with ThreadPoolExecutor() as other:
                assert not other.submit(lambda: fused.serves(x)).result(), "another thread's passes are its own"
            with fused.kernels(False):
                assert not fused.serves(x)
            assert fused.serves(x)
        assert not fused.serves(x)
    with fused.kernels(True):
        assert not fused.serves(x)


def test_without_triton_nothing_is_tried_or_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused, "triton", None)
    assert not fused.works(CUDA, torch.bfloat16)
    assert not caplog.records


@pytest.mark.parametrize("fails", ["compile", "differ"])
def test_kernels_that_fail_or_differ_are_tried_once(
    fails: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def agree(*given: object, **_: object) -> bool:
        tried.append(given)
        if fails == "compile":
            raise SyntaxError("ptxas: no such architecture")
        return False

    monkeypatch.setattr(fused, "triton", object())
    monkeypatch.setattr(fused, "agree", agree)
    with caplog.at_level(logging.WARNING):
        assert not any(fused.works(CUDA, torch.bfloat16) for _ in range(3))
    assert len(tried) == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no fused kernels" in line
    assert ("ptxas" if fails == "compile" else "differ") in line


def test_too_little_memory_to_try_says_nothing_about_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def agree(*_: object, **__: object) -> bool:
        raise torch.OutOfMemoryError("2 GB")

    monkeypatch.setattr(fused, "triton", object())
    monkeypatch.setattr(fused, "agree", agree)
    with pytest.raises(torch.OutOfMemoryError):
        fused.works(CUDA, torch.bfloat16)
    monkeypatch.setattr(fused, "agree", lambda *_, **__: True)
    assert fused.works(CUDA, torch.bfloat16)
