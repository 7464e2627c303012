"""Precision of a run: chosen by the hardware, kept on resume, and reported when emulated."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import model.precision
from model.precision import cpu_has_bf16
from tests.training.job_helpers import HYPER, events, make_context, pesft_spec
from training.jobs.loop import RunFolder
from training.jobs.precision import run_precision
from training.nano.stages import run as run_nano
from training.nano.vq import VQSpec
from training.perpo import job as perpo
from training.pesft import job as pesft
from training.pesft.loop import SFTSpec
from training.spec.hyperparameters import PeRPOHyperparameters, PeSFTHyperparameters

PERPO: dict[str, Any] = {
    "method": "perpo",
    "data": {"source": "unitasks", "num_samples": 8},
    "hyperparameters": {
        "steps": 1,
        "prompts_per_step": 1,
        "rollouts_per_prompt": 2,
        "oversampling": 1.0,
        "mini_batch_prompts": 1,
        "filter_metric": "none",
        "max_new_tokens": 8,
        "refill_rounds": 0,
    },
}


Hardware = Callable[[bool], None]


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Hardware:
    """Call it with whether this CPU should count as having bf16."""

    def pretend(has_bf16: bool) -> None:
        monkeypatch.setattr(model.precision, "cpu_has_bf16", lambda: has_bf16)

    return pretend


def job_spec(method: str, precision: str) -> dict[str, Any]:
    if method == "pesft":
        return pesft_spec(steps=1, precision=precision)
    return {**PERPO, "hyperparameters": {**PERPO["hyperparameters"], "precision": precision}}


def recorded(folder: Path) -> str:
    return str(json.loads((folder / "spec.json").read_text())["spec"]["precision"])


@pytest.mark.parametrize("method", ["pesft", "perpo"])
@pytest.mark.parametrize("has_bf16", [True, False])
def test_jobs_follow_the_hardware(
    tmp_path: Path, tiny_checkpoint: Path, hardware: Hardware, method: str, has_bf16: bool
) -> None:
    hardware(has_bf16)
    result = {"pesft": pesft, "perpo": perpo}[method].run(
        make_context(tmp_path, job_spec(method, "auto"), tiny_checkpoint)
    )
    expected = "bf16" if has_bf16 else "fp32"
    assert result["precision"] == recorded(tmp_path / "runs" / method) == expected
    assert f"precision of the forward: {expected} (auto requested)" in [e["line"] for e in events(tmp_path, "log")]
    assert not [e for e in events(tmp_path, "warning") if e["code"] == "precision_emulated"]


@pytest.mark.parametrize("method", ["pesft", "perpo"])
def test_emulated_bf16_is_honoured_with_a_warning(
    tmp_path: Path, tiny_checkpoint: Path, hardware: Hardware, method: str
) -> None:
    hardware(False)
    result = {"pesft": pesft, "perpo": perpo}[method].run(
        make_context(tmp_path, job_spec(method, "bf16"), tiny_checkpoint)
    )
    assert result["precision"] == "bf16"
    assert "precision_emulated" in [e["code"] for e in events(tmp_path, "warning")]


def test_resumed_run_keeps_its_precision(tmp_path: Path, hardware: Hardware, caplog: pytest.LogCaptureFixture) -> None:
    hardware(True)
    run = RunFolder(tmp_path, {"precision": run_precision("auto", "cpu", tmp_path, resume=False)}, resume=False)
    run.save_state({"step": 1})
    hardware(False)
    with caplog.at_level(logging.WARNING, "omni_r1.precision"):
        assert run_precision("auto", "cpu", tmp_path, resume=True) == "bf16"
    assert "emulates it" in caplog.text
    assert run_precision("auto", "cpu", tmp_path, resume=False) == "fp32"


def test_unrecorded_precision_was_bf16(tmp_path: Path, hardware: Hardware) -> None:
    hardware(False)
    RunFolder(tmp_path, {"steps": 3}, resume=False).save_state({"step": 1})
    assert run_precision("auto", "cpu", tmp_path, resume=True) == "bf16"
    assert SFTSpec.defaults()["precision"] == "bf16"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_nano_stages_follow_the_hardware(tmp_path: Path, hardware: Hardware, has_bf16: bool) -> None:
    if has_bf16 and not cpu_has_bf16():
        pytest.skip("emulated, these stages take minutes")
    hardware(has_bf16)
    folder = run_nano("vq", preset="smoke", out=tmp_path, threads=1)
    expected = "bf16" if has_bf16 else "fp32"
    assert recorded(folder) == recorded(folder / "decoder") == expected


def test_hardware_decides_by_default() -> None:
    assert PeSFTHyperparameters().precision == SFTSpec(1, 1.0).precision == VQSpec().precision == "auto"
    assert PeRPOHyperparameters().precision == "fp32"  # log-probabilities within 1e-4 of the sampler's
    assert "precision" not in HYPER
