"""The supervised loop: exact resume, equivalent packing, and the effect of the perception loss."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import TransformerConfig
from model.nets.transformer import PackedAttention, Transformer
from model.text.template import Rendered
from training.data.token_sets import TokenSet, make_batch, micro_batches
from training.jobs.loop import RunFolder, StopFlag
from training.jobs.schedules import ConstantSchedule, CosineSchedule, LinearSchedule
from training.pesft.loop import SFTModel, SFTSpec, accumulate, batch_loss, make_projection, train_sft

VOCAB, CODES, WIDTH = 40, 16, 8
ID_TO_CODE = torch.tensor([i - 4 if 4 <= i < 4 + CODES else -1 for i in range(VOCAB)])
SPEC = SFTSpec(steps=8, lr=1e-2, max_tokens=64, warmup=2, perception_weight=1.0)


def small() -> Transformer:
    config = TransformerConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
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


def started(spec: SFTSpec, transformer: Transformer | None = None) -> SFTModel:
    return SFTModel.start(spec, transformer or small(), codebook(), ID_TO_CODE)


def with_w(transformer: Transformer, projection: torch.nn.Linear) -> SFTModel:
    return SFTModel(transformer, codebook(), ID_TO_CODE, projection)


def losses(folder: Path) -> list[str]:
    return [line.split('"seconds"')[0] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    whole = small()
    train_sft(SPEC, started(SPEC, whole), sequences(), tmp_path / "whole")

    class StopAfterThree(torch.optim.AdamW):
        """Sends this process SIGTERM in its third step, like a job's cancel."""

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
            train_sft(SPEC, started(SPEC, stopped), sequences(), tmp_path / "parts")
    assert StopAfterThree.steps == 3
    resumed = small()
    train_sft(SPEC, started(SPEC, resumed), sequences(), tmp_path / "parts", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_resume_rejects_other_settings(tmp_path: Path) -> None:
    train_sft(replace(SPEC, steps=1), started(SPEC), sequences(), tmp_path)
    with pytest.raises(ValueError, match="other settings \\(lr\\)"):
        train_sft(replace(SPEC, steps=1, lr=1.0), started(SPEC), sequences(), tmp_path, resume=True)


def test_packed_loss_equals_single_sequences() -> None:
    model, data = small(), sequences()
    projection = torch.nn.Linear(32, WIDTH, bias=False)
    with torch.autocast("cpu", enabled=False):
        whole = make_batch(data, np.arange(6), ID_TO_CODE)
        packed = batch_loss(with_w(model, projection), whole, replace(SPEC, perception_weight=0.0))[0].item()
        alone = [make_batch(data, np.array([i]), ID_TO_CODE) for i in range(6)]
        parts = [
            batch_loss(with_w(model, projection), b, replace(SPEC, perception_weight=0.0))[0].item() * len(b.targets)
            for b in alone
        ]
    assert packed == pytest.approx(sum(parts) / len(whole.targets), rel=2e-3)  # bf16 autocast


def gradients(batches: list[np.ndarray], spec: SFTSpec) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    """Loss, metrics and every gradient of one optimiser batch in these parts."""
    model, data = small(), sequences()
    projection = torch.nn.Linear(32, WIDTH, bias=False)
    torch.nn.init.normal_(projection.weight, generator=torch.Generator().manual_seed(2))
    parts = [make_batch(data, part, ID_TO_CODE) for part in batches]
    loss, metrics = accumulate(with_w(model, projection), parts, spec)
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert projection.weight.grad is not None
    return loss, metrics, grads | {"W": projection.weight.grad}


@pytest.mark.parametrize("parts", [2, 3, 8], ids=["two", "three", "one sequence at a time"])
def test_invariant_8_micro_batches_and_packing_are_equivalent(parts: int) -> None:
    """Loss, metrics and every gradient, including the perception loss and W."""
    spec = replace(SPEC, precision="fp32")
    indices = np.arange(8)
    loss, metrics, whole = gradients([indices], spec)
    split = micro_batches(indices, sequences().lengths, parts, by="samples")
    assert len(split) == parts
    part_loss, part_metrics, summed = gradients(split, spec)
    assert part_loss == pytest.approx(loss, rel=1e-6)
    assert part_metrics == pytest.approx(metrics, rel=1e-5)
    assert set(whole) == set(summed)
    for name, gradient in whole.items():
        assert (summed[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_mean_per_micro_batch_differs() -> None:
    """As in the authors' code: sequences of different lengths then weigh alike."""
    spec = replace(SPEC, precision="fp32", normalisation="micro_batch")
    indices = np.arange(4)
    one, _, _ = gradients([indices], spec)
    batch, _, _ = gradients([indices], replace(spec, normalisation="batch"))
    assert one == pytest.approx(batch)  # a single part is the same either way
    alone = [gradients([np.array([i])], spec)[0] for i in indices]
    together, metrics, _ = gradients([np.array([i]) for i in indices], spec)
    assert together == pytest.approx(sum(alone) / 4, rel=1e-6)
    assert abs(together - batch) > 1e-4
    assert metrics["loss/ce"] + metrics["loss/perception"] != pytest.approx(together)  # the metrics are plain means


def test_micro_batches_balance_tokens() -> None:
    lengths = np.array([10, 1, 1, 1, 1, 6, 10])
    indices = np.array([6, 1, 2, 3, 4, 5, 0])
    by_tokens = micro_batches(indices, lengths, 3)
    assert [int(lengths[part].sum()) for part in by_tokens] == [10, 10, 10]
    assert [len(part) for part in micro_batches(indices, lengths, 3, by="samples")] == [3, 2, 2]
    assert np.concatenate(by_tokens).tolist() == indices.tolist()
    assert len(micro_batches(indices[:2], lengths, 5, by="samples")) == 2  # never an empty part


def test_state_at_token_is_not_predicting_state() -> None:
    model, data = small(), sequences()
    batch = make_batch(data, np.arange(4), ID_TO_CODE)
    projection = torch.nn.Linear(32, WIDTH, bias=False)
    spec = replace(SPEC, precision="fp32")
    predicting = batch_loss(with_w(model, projection), batch, spec)[1]["loss/perception"]
    at_token = batch_loss(with_w(model, projection), batch, replace(spec, perception_state="token"))[1]
    with torch.no_grad():
        hidden = model(batch.ids, batch.layout.positions, PackedAttention(batch.layout))
        places = (ID_TO_CODE[batch.ids] >= 0).nonzero().squeeze(1)
        places = torch.tensor([p for p in places.tolist() if p in (batch.predictors + 1).tolist()])
        error = (projection(hidden[places]) - codebook()[ID_TO_CODE[batch.ids[places]]]).square().sum(-1).mean()
    assert at_token["loss/perception"] == pytest.approx(error.item(), rel=1e-5)
    assert predicting != pytest.approx(error.item(), rel=1e-3)


def test_frozen_projection_is_seeded_and_constant(tmp_path: Path) -> None:
    spec = replace(SPEC, steps=3, perception_projection="frozen")
    start = make_projection(spec, 32, WIDTH)
    assert start.bias is not None
    assert not torch.equal(start.weight, make_projection(replace(spec, seed=1), 32, WIDTH).weight)
    model = started(spec)
    train_sft(spec, model, sequences(), tmp_path)
    assert torch.equal(start.weight, model.projection.weight)
    assert torch.equal(start.bias, model.projection.bias)


def test_sample_batches_have_fixed_size() -> None:
    data = sequences()
    plan = replace(SPEC, batch_samples=6).make_plan(data)
    assert plan.steps_per_epoch == 3
    for step in range(6):
        assert len(plan[step]) == 6
    left_out = [set(range(20)) - set(np.concatenate([plan[3 * e + i] for i in range(3)]).tolist()) for e in range(2)]
    assert left_out[0] != left_out[1]
    assert replace(SPEC, batch_samples=99).make_plan(data).steps_per_epoch == 1


def test_linear_and_constant_schedules() -> None:
    linear = LinearSchedule(1.0, total=10)
    assert [linear.lr(s) for s in (0, 5, 10)] == pytest.approx([1.0, 0.5, 0.0])  # transformers' default
    assert LinearSchedule(1.0, total=12, warmup=2).lr(0) == pytest.approx(0.5)
    assert LinearSchedule(1.0, total=12, warmup=2).lr(7) == pytest.approx(0.5)
    assert [ConstantSchedule(2.0, warmup=4).lr(s) for s in (0, 3, 99)] == pytest.approx([0.5, 2.0, 2.0])


def test_run_without_newer_settings_can_resume(tmp_path: Path) -> None:
    spec = replace(SPEC, steps=1)
    train_sft(spec, started(SPEC), sequences(), tmp_path)
    path = tmp_path / "spec.json"
    written = json.loads(path.read_text())
    del written["spec"]["micro_batches"]
    path.write_text(json.dumps(written))
    train_sft(spec, started(SPEC), sequences(), tmp_path, resume=True)
    changed = replace(spec, micro_batches=2)
    with pytest.raises(ValueError, match=r"other settings \(micro_batches\)"):
        train_sft(changed, started(SPEC), sequences(), tmp_path, resume=True)


def test_perception_loss_trains_w_and_falls(tmp_path: Path) -> None:
    data, model = sequences(), started(SPEC)
    batch = make_batch(data, np.arange(len(data)), ID_TO_CODE)
    start = with_w(model.transformer, torch.nn.Linear(32, WIDTH, bias=False))
    before = batch_loss(start, batch, SPEC)[1]["loss/perception"]
    train_sft(replace(SPEC, steps=60), model, data, tmp_path)
    after = batch_loss(model, batch, SPEC)[1]["loss/perception"]
    assert after < 0.8 * before


def test_lambda_weighs_the_perception_loss() -> None:
    batch = make_batch(sequences(), np.arange(4), ID_TO_CODE)
    projection = torch.nn.Linear(32, WIDTH, bias=False)
    for weight in (1.0, 0.25):
        loss, metrics = batch_loss(with_w(small(), projection), batch, replace(SPEC, perception_weight=weight))
        assert metrics["loss/perception"] > 1.0
        assert loss.item() == pytest.approx(metrics["loss/ce"] + weight * metrics["loss/perception"])


def test_lambda_zero_has_no_perception_term() -> None:
    batch = make_batch(sequences(), np.arange(4), ID_TO_CODE)
    projection = torch.nn.Linear(32, WIDTH, bias=False)
    loss, metrics = batch_loss(with_w(small(), projection), batch, replace(SPEC, perception_weight=0.0))
    assert "loss/perception" not in metrics
    assert loss.item() == pytest.approx(metrics["loss/ce"])


def test_non_finite_loss_keeps_saved_state(tmp_path: Path) -> None:
    model = small()
    train_sft(replace(SPEC, steps=2), started(SPEC, model), sequences(), tmp_path / "run")
    before = (tmp_path / "run" / "state.pt").read_bytes()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 1"):
        train_sft(replace(SPEC, steps=2), started(SPEC, model), sequences(), tmp_path / "other")
    assert (tmp_path / "run" / "state.pt").read_bytes() == before
    assert not (tmp_path / "other" / "state.pt").exists()


def test_schedule_warms_up_and_decays_to_floor() -> None:
    schedule = CosineSchedule(1.0, total=100, warmup=10, floor=0.1)
    assert schedule.lr(0) == pytest.approx(0.1)
    assert schedule.lr(9) == pytest.approx(1.0)
    assert schedule.lr(55) == pytest.approx(0.55)  # halfway between 1.0 and 0.1
    assert schedule.lr(100) == pytest.approx(0.1)


def test_half_a_metrics_row_is_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {"a": 1}, resume=False)
    run.log(5, {"loss/ce": 1.0})
    run.save_state({"step": 5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "se')
    assert RunFolder(tmp_path, {"a": 1}, resume=True).load_state() is not None
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_metrics_after_saved_state_are_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {"a": 1}, resume=False)
    run.log(5, {"loss/ce": 1.0})
    run.save_state({"step": 5})
    run.log(10, {"loss/ce": 0.5})
    again = RunFolder(tmp_path, {"a": 1}, resume=True)
    state = again.load_state()
    assert state is not None
    assert state["step"] == 5
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_signal_after_a_request_is_the_first_one() -> None:
    """A server that is started again signals workers that have begun to stop: they still save."""
    with StopFlag() as stop:
        stop.request()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
