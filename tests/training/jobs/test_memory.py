"""Jobs that cannot fit their device are refused with the figures, before the base is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import training.jobs.memory
from model.checkpoint.memory import training_needs
from model.checkpoint.shards import read_entries
from model.config import ModelConfig
from tests.training.job_helpers import events, make_context, pesft_spec
from training.jobs.context import JobError
from training.jobs.memory import figures_of
from training.perpo import job as perpo
from training.pesft import job as pesft
from training.spec.hyperparameters import PeRPOHyperparameters, PeSFTHyperparameters
from training.spec.spec import parse_spec

LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0}
SPECS: dict[str, dict[str, Any]] = {
    "pesft": pesft_spec(steps=1, precision="fp32"),
    "perpo": {
        "method": "perpo",
        "data": {"source": "unitasks", "num_samples": 8},
        "hyperparameters": {"steps": 1, "precision": "fp32"},
    },
}


# Tokens at once and context that are certain before the data is read: completions of the default length, packed.
CERTAIN = {"pesft": (1,), "perpo": (2_048, 330)}
RUN = {"pesft": pesft.run, "perpo": perpo.run}


def needed(folder: Path, spec: dict[str, Any], kind: str, tokens: int = 1, context: int | None = None) -> int:
    """Bytes of a job with so many tokens at once, and rollouts in such a context."""
    hyper = parse_spec({"base_checkpoint": "tiny", **spec}).hyperparameters
    assert isinstance(hyper, PeSFTHyperparameters | PeRPOHyperparameters)
    config, entries = ModelConfig.read(folder), read_entries(folder)
    return training_needs(config, entries, width=4, device="cpu", figures=figures_of(hyper, tokens, context))[kind]


def with_hyper(method: str, **hyper: Any) -> dict[str, Any]:
    return {**SPECS[method], "hyperparameters": {**SPECS[method]["hyperparameters"], **hyper}}


@pytest.mark.parametrize("method", ["pesft", "perpo"])
def test_job_without_room_is_refused_before_loading(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    memory = needed(tiny_checkpoint, with_hyper(method, lora=LORA), f"lora_{method}", *CERTAIN[method])
    monkeypatch.setattr(training.jobs.memory, "total_bytes", lambda _device: memory)

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the base is loaded")

    for module in (pesft, perpo):
        monkeypatch.setattr(module, "load_base", load)
    with pytest.raises(JobError) as error:
        RUN[method](make_context(tmp_path, SPECS[method], tiny_checkpoint))
    assert error.value.code == "insufficient_memory"
    assert "GiB" in error.value.detail
    assert "with `lora` it would be" in error.value.detail
    assert "with `recompute` it would be" in error.value.detail
    with pytest.raises(AssertionError, match="the base is loaded"):
        RUN[method](make_context(tmp_path / "lora", with_hyper(method, lora=LORA), tiny_checkpoint))


@pytest.mark.parametrize("method", ["pesft", "perpo"])
def test_job_that_would_die_in_its_first_step_is_refused_before_it(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The lengths of the data are known once it is read."""
    asked: list[object] = []
    memory = needed(tiny_checkpoint, SPECS[method], f"full_{method}", *CERTAIN[method])

    def total(device: object) -> int:
        asked.append(device)
        return memory

    monkeypatch.setattr(training.jobs.memory, "total_bytes", total)
    with pytest.raises(JobError, match="tokens at a time") as error:
        RUN[method](make_context(tmp_path, SPECS[method], tiny_checkpoint))
    assert (error.value.code, len(asked)) == ("insufficient_memory", 2)
    assert not events(tmp_path, "metrics")


def test_settings_count_in_the_figures(tiny_checkpoint: Path) -> None:
    def of(method: str, kind: str, **hyper: Any) -> int:
        return needed(tiny_checkpoint, with_hyper(method, **hyper), f"{kind}_{method}", 256)

    for method in ("pesft", "perpo"):
        assert of(method, "full", recompute=True) < of(method, "full")
        assert of(method, "lora", lora=LORA) < of(method, "lora", lora={**LORA, "rank": 8})
        assert of(method, "lora", lora={**LORA, "targets": ["q_proj"]}) < of(method, "lora", lora=LORA)
    full = of("perpo", "full")
    assert of("perpo", "full", ema_decay=0.9) > full > of("perpo", "full", kl_coef=0.0)
    assert of("perpo", "full", rollout_actors=2) < full
    looks = {"every": 1, "tasks": 4}
    assert of("perpo", "full", validation=looks) == full  # with the engine of the rollouts
    own = of("perpo", "full", validation=looks, ema_decay=0.9) - of("perpo", "full", ema_decay=0.9)
    assert own == full - of("perpo", "full", rollout_actors=2)


@pytest.mark.parametrize("method", ["pesft", "perpo"])
def test_broken_base_is_reported_by_its_loading(tmp_path: Path, method: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match="missing_file") as error:
        RUN[method](make_context(tmp_path / "job", SPECS[method], tmp_path / "empty"))
    assert error.value.code == "bad_checkpoint"
