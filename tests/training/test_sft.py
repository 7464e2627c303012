"""The supervised loop: exact resume, packing that changes nothing, and what the perception loss trains."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import TransformerConfig
from model.template import Rendered
from model.transformer import Transformer
from training.data import TokenSet, make_batch
from training.loop import CosineSchedule, RunFolder
from training.sft import SFTSpec, batch_loss, train_sft

VOCAB, CODES, WIDTH = 40, 16, 8
ID_TO_CODE = torch.tensor([i - 4 if 4 <= i < 4 + CODES else -1 for i in range(VOCAB)])
SPEC = SFTSpec(steps=8, lr=1e-2, max_tokens=64, warmup=2, perception_weight=1.0)


def small() -> Transformer:
    config = TransformerConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        max_position_embeddings=64,
    )  # fmt: skip
    model = Transformer(config)
    model.init_weights(0)
    return model


def sequences() -> TokenSet:
    rng = np.random.default_rng(0)
    return TokenSet.build(
        [
            Rendered([0, *rng.integers(4, VOCAB, size=n).tolist()], [0] * 4 + [1] * (n - 3))
            for n in rng.integers(8, 24, size=20)
        ],
        64,
    )


def codebook() -> Tensor:
    return torch.randn(CODES, WIDTH, generator=torch.Generator().manual_seed(1))


def losses(folder: Path) -> list[str]:
    return [line.split('"seconds"')[0] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_and_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    whole = small()
    train_sft(SPEC, whole, codebook(), ID_TO_CODE, sequences(), tmp_path / "whole")

    class StopAfterThree(torch.optim.AdamW):
        """Sends this process SIGTERM in its third step, as a job's cancel does."""

        steps = 0

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            super().step(closure)
            StopAfterThree.steps += 1
            if StopAfterThree.steps == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    stopped = small()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", StopAfterThree)
        with pytest.raises(KeyboardInterrupt):
            train_sft(SPEC, stopped, codebook(), ID_TO_CODE, sequences(), tmp_path / "parts")
    assert StopAfterThree.steps == 3
    resumed = small()
    train_sft(SPEC, resumed, codebook(), ID_TO_CODE, sequences(), tmp_path / "parts", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_run_is_not_resumed_with_other_settings(tmp_path: Path) -> None:
    train_sft(replace(SPEC, steps=1), small(), codebook(), ID_TO_CODE, sequences(), tmp_path)
    with pytest.raises(ValueError, match="other settings \\(lr\\)"):
        train_sft(replace(SPEC, steps=1, lr=1.0), small(), codebook(), ID_TO_CODE, sequences(), tmp_path, resume=True)


def test_packed_loss_is_that_of_one_sequence_at_a_time() -> None:
    model, data = small(), sequences()
    projection = torch.nn.Linear(32, WIDTH, bias=False)
    with torch.autocast("cpu", enabled=False):
        whole = make_batch(data, np.arange(6), ID_TO_CODE)
        packed = batch_loss(model, projection, codebook(), whole, replace(SPEC, perception_weight=0.0))[0].item()
        alone = [make_batch(data, np.array([i]), ID_TO_CODE) for i in range(6)]
        parts = [
            batch_loss(model, projection, codebook(), b, replace(SPEC, perception_weight=0.0))[0].item()
            * len(b.targets)
            for b in alone
        ]
    assert packed == pytest.approx(sum(parts) / len(whole.targets), rel=2e-3)  # bf16 autocast


def test_the_perception_loss_trains_w_and_falls(tmp_path: Path) -> None:
    data, model = sequences(), small()
    batch = make_batch(data, np.arange(len(data)), ID_TO_CODE)
    start = torch.nn.Linear(32, WIDTH, bias=False)
    before = batch_loss(model, start, codebook(), batch, SPEC)[1]["loss/perception"]
    learned = train_sft(replace(SPEC, steps=60), model, codebook(), ID_TO_CODE, data, tmp_path)
    after = batch_loss(model, learned, codebook(), batch, SPEC)[1]["loss/perception"]
    assert after < 0.8 * before


def test_lambda_zero_has_no_perception_term() -> None:
    batch = make_batch(sequences(), np.arange(4), ID_TO_CODE)
    projection = torch.nn.Linear(32, WIDTH, bias=False)
    loss, metrics = batch_loss(small(), projection, codebook(), batch, replace(SPEC, perception_weight=0.0))
    assert "loss/perception" not in metrics
    assert loss.item() == pytest.approx(metrics["loss/ce"])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_saved_state(tmp_path: Path) -> None:
    model = small()
    train_sft(replace(SPEC, steps=2), model, codebook(), ID_TO_CODE, sequences(), tmp_path / "run")
    before = (tmp_path / "run" / "state.pt").read_bytes()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 1"):
        train_sft(replace(SPEC, steps=2), model, codebook(), ID_TO_CODE, sequences(), tmp_path / "other")
    assert (tmp_path / "run" / "state.pt").read_bytes() == before
    assert not (tmp_path / "other" / "state.pt").exists()


def test_the_schedule_warms_up_peaks_and_ends_at_its_floor() -> None:
    schedule = CosineSchedule(1.0, total=100, warmup=10, floor=0.1)
    assert schedule.lr(0) == pytest.approx(0.1)
    assert schedule.lr(9) == pytest.approx(1.0)
    assert schedule.lr(55) == pytest.approx(0.55)  # half of the way between 1.0 and 0.1
    assert schedule.lr(100) == pytest.approx(0.1)


def test_metrics_behind_the_saved_state_are_dropped_on_resume(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {"a": 1}, resume=False)
    run.log(5, {"loss/ce": 1.0})
    run.save_state({"step": 5})
    run.log(10, {"loss/ce": 0.5})
    again = RunFolder(tmp_path, {"a": 1}, resume=True)
    state = again.load_state()
    assert state is not None
    assert state["step"] == 5
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
