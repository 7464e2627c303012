"""Jobs that cannot fit their device are refused with the figures, before the base is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import training.jobs.memory
from model.checkpoint.memory import training_needs
from model.checkpoint.shards import read_entries
from model.config import ModelConfig
from tests.training.job_helpers import make_context, pesft_spec
from training.jobs.context import JobError
from training.perpo import job as perpo
from training.pesft import job as pesft

LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0}
SPECS: dict[str, dict[str, Any]] = {
    "pesft": pesft_spec(steps=1, precision="fp32"),
    "perpo": {
        "method": "perpo",
        "data": {"source": "unitasks", "num_samples": 8},
        "hyperparameters": {"steps": 1, "precision": "fp32"},
    },
}


def needed(folder: Path, kind: str) -> int:
    """Bytes before the first token."""
    return training_needs(ModelConfig.read(folder), read_entries(folder), width=4, device="cpu", tokens=1)[kind]


@pytest.mark.parametrize("method", ["pesft", "perpo"])
def test_job_without_room_is_refused_before_loading(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    memory = needed(tiny_checkpoint, f"full_{method}") - 1
    monkeypatch.setattr(training.jobs.memory, "total_bytes", lambda _device: memory)

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the base is loaded")

    for module in (pesft, perpo):
        monkeypatch.setattr(module, "load_base", load)
    run = {"pesft": pesft.run, "perpo": perpo.run}[method]
    with pytest.raises(JobError) as error:
        run(make_context(tmp_path, SPECS[method], tiny_checkpoint))
    assert error.value.code == "insufficient_memory"
    assert "GiB" in error.value.detail
    assert "with `lora` it would be" in error.value.detail
    with_lora = {**SPECS[method], "hyperparameters": {**SPECS[method]["hyperparameters"], "lora": LORA}}
    with pytest.raises(AssertionError, match="the base is loaded"):
        run(make_context(tmp_path / "lora", with_lora, tiny_checkpoint))


@pytest.mark.parametrize("method", ["pesft", "perpo"])
def test_broken_base_is_reported_by_its_loading(tmp_path: Path, method: str) -> None:
    (tmp_path / "empty").mkdir()
    run = {"pesft": pesft.run, "perpo": perpo.run}[method]
    with pytest.raises(JobError, match="missing_file") as error:
        run(make_context(tmp_path / "job", SPECS[method], tmp_path / "empty"))
    assert error.value.code == "bad_checkpoint"
