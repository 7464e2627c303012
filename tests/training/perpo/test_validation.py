"""Validation, moving average and best checkpoint of a run, also when it is stopped and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.engine import Engine
from tests.tiny import make_tiny_checkpoint
from tests.training.perpo.test_job import HYPER, StopAfter, context, events, step_metrics
from training.jobs.context import JobError, JobStopped
from training.perpo import job as perpo
from training.perpo.ema import MovingAverage
from training.perpo.loading import load_prompts
from training.perpo.prompts import VALIDATION_SEEDS, WorldPrompts
from training.perpo.validation import Record, Validation
from training.spec.spec import UniTasksData, parse_spec
from training.world.world import RL_SEEDS

EVERYTHING = {
    "steps": 4,
    "save_every": 3,
    "schedule": "cosine",
    "ema_decay": 0.5,
    "validation": {"every": 2, "tasks": 5},
    "filter_metric": "any",
    "refill_rounds": 1,
    "credit": "step",
    "code_weights": "changed",
    "reward": {"functional": 0.5},
    "data": {"difficulty": "adaptive"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def judged_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base draws often; random weights draw nothing right, so the sum of its pixels decides."""
    load = perpo.load_base

    def loaded(ctx: Any, **how: Any) -> LoadedCheckpoint:
        base = load(ctx, **how)
        with torch.no_grad():
            base.transformer.lm_head.weight[base.vocab.boi_id] *= 3.0
        return base

    def judged(task: Any, seen: Any, drawn: list[Any]) -> list[bool | None]:
        return [None if image is None else sum(image.tobytes()) % 2 == 0 for image in drawn]

    monkeypatch.setattr(perpo, "load_base", loaded)
    monkeypatch.setattr("training.perpo.functional.drawing_verdicts", judged)


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model-lm.safetensors")


@pytest.mark.usefixtures("judged_drawings")
def test_resume_with_every_setting_is_bit_identical(base: Path, tmp_path: Path) -> None:
    whole = perpo.run(context(base, tmp_path / "whole", **EVERYTHING))
    metrics = step_metrics(tmp_path / "whole")
    assert sorted(metrics) == [0, 1, 2, 3, 4]
    assert [step for step, row in metrics.items() if "val/accuracy" in row] == [0, 2, 4]
    assert all(row["policy/first_ratio_off"] == 0.0 for row in metrics.values() if "policy/first_ratio_off" in row)
    assert any("policy/kl" in row for row in metrics.values())
    assert all(row["levels/mean"] > 1.0 for step, row in metrics.items() if step)
    per_step = 13  # at most: two rounds of two prompts, three rollouts each, and the step's end
    for stop in (3, 5 + 2, 5 + per_step, 5 + 2 * per_step + 2, 5 + 3 * per_step):
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(JobStopped):
            perpo.run(context(base, folder, stop=StopAfter(stop), **EVERYTHING))
        resumed = perpo.run(context(base, folder, resume=True, **EVERYTHING))
        assert step_metrics(folder) == metrics
        assert resumed["checkpoint"] == whole["checkpoint"]
        for name in ("try-step-3", "try-step-4"):
            one, other = (weights(f / "checkpoints" / name) for f in (folder, tmp_path / "whole"))
            assert all(torch.equal(one[key], other[key]) for key in other)


def test_checkpoint_holds_the_average_and_rollouts_the_raw_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    averages: list[dict[str, torch.Tensor]] = []
    update = MovingAverage.update

    def noted(self: MovingAverage, policy: Any) -> None:
        update(self, policy)
        averages.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})

    monkeypatch.setattr(MovingAverage, "update", noted)
    perpo.run(context(base, tmp_path / "with", steps=2, ema_decay=0.9, max_new_tokens=12))
    perpo.run(context(base, tmp_path / "without", steps=2, max_new_tokens=12))
    assert step_metrics(tmp_path / "with") == step_metrics(tmp_path / "without")
    made, raw = (weights(tmp_path / name / "checkpoints" / "try-step-2") for name in ("with", "without"))
    assert all(torch.equal(made[name], averages[1][name].bfloat16()) for name in made)
    assert not all(torch.equal(made[name], raw[name]) for name in made)


def test_moving_average_by_hand() -> None:
    policy = nn.Linear(1, 1, bias=False)
    policy.weight.data.fill_(0.0)
    average = MovingAverage(policy, 0.15)  # type: ignore[arg-type]
    for value, expected in ((1.0, 0.9), (2.0, 1.835)):  # d = min(.15, 1/10), then min(.15, 2/11)
        policy.weight.data.fill_(value)
        average.update(policy)  # type: ignore[arg-type]
        assert average.model.weight.item() == pytest.approx(expected)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(("decay", "engines"), [(None, 0), (0.9, 3)])
def test_validation_answers_with_the_engine_of_the_rollouts(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float | None, engines: int
) -> None:
    """A moving average has other weights, hence engines of its own."""
    made: list[Engine] = []

    def engine(*args: Any, **how: Any) -> Engine:
        made.append(Engine(*args, **how))
        return made[-1]

    monkeypatch.setattr("training.perpo.validation.Engine", engine)
    hyper = {"steps": 2, "max_new_tokens": 12, "validation": {"every": 1, "tasks": 3}}
    perpo.run(context(base, tmp_path, ema_decay=decay, **hyper))
    assert len(made) == engines
    assert sum("val/accuracy" in row for row in step_metrics(tmp_path).values()) == 3


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[tuple[float, float]]) -> None:
    """Validations find these accuracies and drawings, one after another."""
    left = list(values)

    def found(self: Validation, transformer: Any, check_stop: Any = None) -> dict[str, float]:
        accuracy, drawings = left.pop(0)
        return {"val/accuracy": accuracy, "val/drawings_right": drawings}

    monkeypatch.setattr(Validation, "__call__", found)


FAST = {"steps": 6, "max_new_tokens": 8, "save_every": 100, "sample_every": 100}


def test_best_checkpoint_is_the_result(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hyper = {**FAST, "validation": {"every": 2, "tasks": 3}}
    script = [(0.9, 0.9), (0.4, 0.1), (0.5, 0.2), (0.5, 0.1)]  # the start counts for nothing
    scripted(monkeypatch, script)
    result = perpo.run(context(base, tmp_path / "best", **hyper))
    assert (result["checkpoint"], result["step"], result["steps"]) == ("try-step-4", 4, 6)
    assert result["metrics"]["val/accuracy"] == 0.5
    assert [row["name"] for row in events(tmp_path / "best", "checkpoint")] == [
        "try-step-2",
        "try-step-4",
        "try-step-6",
    ]
    scripted(monkeypatch, script)
    assert perpo.run(context(base, tmp_path / "last", final="last", **hyper))["checkpoint"] == "try-step-6"


def test_run_ends_when_patience_is_used_up(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [(0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0.4, 0.9)])
    result = perpo.run(context(base, tmp_path, **FAST, validation={"every": 1, "tasks": 3, "patience": 2}))
    assert (result["checkpoint"], result["step"], result["steps"]) == ("try-step-1", 1, 3)
    assert any("has not improved since step 1" in row["line"] for row in events(tmp_path, "log"))
    again = perpo.run(context(base, tmp_path, **FAST, validation={"every": 1, "tasks": 3, "patience": 2}, resume=True))
    assert again == result  # nothing is validated again


def test_equal_accuracy_with_better_drawings_is_a_gain() -> None:
    record = Record()
    gains = [
        record.add(step, {"val/accuracy": accuracy, "val/drawings_right": drawings})
        for step, (accuracy, drawings) in enumerate([(0.9, 0.9), (0.5, 0.5), (0.5, 0.5), (0.5, 0.6), (0.4, 1.0)])
    ]
    assert gains == [False, True, False, True, False]
    assert (record.best, record.since) == (3, 1)
    assert Record(**record.state()) == record


def test_validation_tasks_are_never_trained_on(base: Path, tmp_path: Path) -> None:
    assert VALIDATION_SEEDS[-1] == RL_SEEDS[-1]
    ctx = context(base, tmp_path)
    loaded = perpo.load_base(ctx)
    assert loaded.vq is not None

    def prompts(first: int, count: int = 10) -> WorldPrompts:
        assert loaded.vq is not None
        data = UniTasksData(num_samples=count, first_seed=first)
        return WorldPrompts(data, 0, loaded.template, loaded.vq)

    held = prompts(RL_SEEDS[0]).hold_out(70)
    assert [prompt.task.seed for prompt in held if prompt.task] == list(VALIDATION_SEEDS[:70])
    for first in (VALIDATION_SEEDS[0] - 9, VALIDATION_SEEDS[69]):
        with pytest.raises(ValueError, match="reach into those of the validation"):
            prompts(first).hold_out(70)
    assert len(prompts(VALIDATION_SEEDS[0] - 10).hold_out(70)) == 70


def test_files_hold_out_their_last_rows(base: Path, tmp_path: Path) -> None:
    row = {"Question": "Where is the star?", "Text Reasoning Trace": "THOUGHT 1: I look."}
    rows = [json.dumps({**row, "Final Answer": str(i)}) for i in range(7)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    ctx = context(base, tmp_path)
    spec = {**ctx.spec.resolved(), "data": {"source": "jsonl", "path": str(tmp_path / "rows.jsonl")}}
    loaded = perpo.load_base(ctx)
    prompts = load_prompts(replace(ctx, spec=parse_spec(spec)), loaded)
    assert [prompt.reference for prompt in prompts.hold_out(3)] == ["4", "5", "6"]
    assert [prompts.take([i])[0].reference for i in range(len(prompts))] == ["0", "1", "2", "3"]
    hyper = {**HYPER, "validation": {"every": 1, "tasks": 4}}
    with pytest.raises(JobError, match="at most half") as error:
        perpo.run(replace(ctx, spec=parse_spec({**spec, "hyperparameters": hyper})))
    assert error.value.code == "bad_spec"
