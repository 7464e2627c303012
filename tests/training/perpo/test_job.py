"""The PeRPO loop on a tiny checkpoint: data, updates, logs, stop and resume."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint.checkpoint import validate_checkpoint
from tests.app.stream_events import check_worker_event
from tests.tiny import make_tiny_checkpoint
from training.jobs.context import JobContext, JobError, JobStopped
from training.jobs.log import JobLog
from training.jobs.worker import SUCCEEDED, run_job
from training.perpo import job as perpo
from training.perpo import update as policy_update
from training.perpo.collect import Collector, StepBatch
from training.perpo.prompts import PromptOrder, WorldPrompts
from training.perpo.rollout import Prompt, Rollout, RolloutGroup
from training.scoring.rewards import RewardBreakdown
from training.spec.hyperparameters import PeRPOHyperparameters
from training.spec.spec import parse_spec

HYPER = {
    "steps": 3,
    "lr": 1e-3,
    "warmup": 0,
    "prompts_per_step": 2,
    "rollouts_per_prompt": 3,
    "oversampling": 1.0,
    "mini_batch_prompts": 1,
    "filter_metric": "none",
    "max_new_tokens": 48,
    "save_every": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


class StopAfter:
    """True from its n-th check: it is checked after each of the 6 rollouts of a step, and at the step's end."""

    def __init__(self, asks: int) -> None:
        self.left = asks

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left <= 0


STEP = 7  # checks per step


def context(
    base: Path,
    folder: Path,
    *,
    resume: bool = False,
    stop: Any = None,
    data: dict[str, Any] | None = None,
    **hyper: Any,
) -> JobContext:
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "method": "perpo",
        "base_checkpoint": "tiny",
        "data": {"source": "unitasks", "num_samples": 40, **(data or {})},
        "hyperparameters": {**HYPER, **hyper},
        "seed": 5,
    }
    ctx = JobContext(
        folder=folder,
        spec=parse_spec(spec),
        base_folder=base,
        checkpoints={},
        log=JobLog(folder, tensorboard=False),
        output_prefix="try",
        resume=resume,
    )
    return ctx if stop is None else replace(ctx, stop=stop)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for row in rows:
        check_worker_event(row)
    return [row["data"] for row in rows if row["type"] == kind]


def step_metrics(folder: Path) -> dict[int, dict[str, float]]:
    """The last row of each step, without timings."""
    return {
        row["step"]: {k: v for k, v in row["values"].items() if not k.startswith("speed/")}
        for row in events(folder, "metrics")
    }


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of three steps with two mini-batches each."""
    folder = tmp_path_factory.mktemp("job") / "whole"
    return folder, perpo.run(context(base, folder))


def test_first_mini_batch_has_ratio_one(whole: tuple[Path, dict[str, Any]]) -> None:
    metrics = step_metrics(whole[0])
    assert sorted(metrics) == [1, 2, 3]
    for values in metrics.values():
        assert values["policy/first_ratio_off"] == 0.0
        assert values["policy/first_clip_frac"] == 0.0
        assert values["policy/ratio_max"] > 1.0  # the second mini-batch sees updated weights
        assert values["mismatch/max"] <= 1e-4
        assert values["optim/updates"] == 2.0


def test_reference_stays_the_start_checkpoint(whole: tuple[Path, dict[str, Any]]) -> None:
    metrics = step_metrics(whole[0])
    assert 0.0 < metrics[1]["policy/kl"] < metrics[2]["policy/kl"] < metrics[3]["policy/kl"]


def test_run_writes_servable_updated_checkpoints(base: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    folder, result = whole
    logged = events(folder, "checkpoint")
    assert [row["name"] for row in logged] == ["try-step-2", "try-step-3"]
    assert result["checkpoint"] == "try-step-3"
    assert result["folder"] == logged[-1]["folder"]
    manifest = validate_checkpoint(logged[-1]["folder"])
    assert (manifest.base, manifest.lineage["stage"], manifest.lineage["step"]) == ("tiny", "perpo", 3)
    assert (Path(logged[-1]["folder"]) / "train" / "state.pt").is_file()
    start = load_file(base / "model-lm.safetensors")
    end = load_file(Path(logged[-1]["folder"]) / "model-lm.safetensors")
    changed = sum(int((end[k].float() != start[k].bfloat16().float()).sum()) for k in start)
    assert changed / sum(t.numel() for t in start.values()) > 0.1
    vq = [(f / "model-vq.safetensors").read_bytes() for f in (base, Path(logged[-1]["folder"]))]
    assert vq[0] == vq[1]


def test_every_metric_and_warning_is_documented(whole: tuple[Path, dict[str, Any]]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "perpo.md").read_text()
    logged = {key.removesuffix("_std") for row in events(whole[0], "metrics") for key in row["values"]}
    assert {key for key in logged if f"`{key}`" not in page} == set()
    source = "".join(path.read_text() for path in Path(perpo.__file__).parent.glob("*.py"))
    codes = set(re.findall(r'(?:\badd|warning)\(\s*"(\w+)"', source)) | {"copied_pictures", "capped_pictures"}
    assert len(codes) >= 9
    assert {code for code in codes if f"`{code}`" not in page} == set()


def test_worker_runs_perpo_as_a_job(base: Path, tmp_path: Path) -> None:
    spec = {
        "method": "perpo",
        "base_checkpoint": "tiny",
        "data": {"source": "unitasks", "num_samples": 4},
        "hyperparameters": {**HYPER, "steps": 1, "max_new_tokens": 12},
    }
    job = {"spec": spec, "base": {"name": "tiny", "folder": str(base)}, "output_prefix": "job"}
    assert run_job(tmp_path, job) == SUCCEEDED
    assert json.loads((tmp_path / "result.json").read_text())["checkpoint"] == "job-step-1"
    assert list((tmp_path / "tensorboard").rglob("events.out.*"))


def test_sampled_traces_have_rewards_and_images(whole: tuple[Path, dict[str, Any]]) -> None:
    samples = events(whole[0], "sample")
    assert {row["step"] for row in samples} == {1, 2, 3}
    for row in samples:
        assert set(row["rewards"]) == {"total", "accuracy", "format", "perception"}
        assert row["reference"]
        assert row["advantage"] is not None
        assert (whole[0] / row["question_image"]).is_file()
        for step in row["steps"]:
            assert step["image"] is None or (whole[0] / step["image"]).is_file()
    by_step = [[row["rewards"]["total"] for row in samples if row["step"] == k] for k in (1, 2, 3)]
    assert all(len(totals) == 2 and totals[0] >= totals[1] for totals in by_step)  # the best and the worst


@pytest.mark.parametrize(
    ("asks", "steps"),
    [(STEP, 1), (2 * STEP, 2), (STEP + 3, 1)],
    ids=["after a step without a checkpoint", "after one with a checkpoint", "in the middle of the second step"],
)
def test_resumed_run_equals_the_uninterrupted_one(
    base: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, asks: int, steps: int
) -> None:
    folder = tmp_path / "parts"
    with pytest.raises(JobStopped):
        perpo.run(context(base, folder, stop=StopAfter(asks)))
    assert sorted(step_metrics(folder)) == list(range(1, steps + 1))
    result = perpo.run(context(base, folder, resume=True))
    assert step_metrics(folder) == step_metrics(whole[0])
    one, other = (load_file(Path(r["folder"]) / "model-lm.safetensors") for r in (result, whole[1]))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_steps_use_new_prompts_in_order(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    take = WorldPrompts.take

    def noted(self: WorldPrompts, numbers: Sequence[int]) -> list[Prompt]:
        used.extend(numbers)
        return take(self, numbers)

    monkeypatch.setattr(WorldPrompts, "take", noted)
    perpo.run(context(base, tmp_path, steps=2))
    order = PromptOrder(40, seed=5)
    assert used == [order[n] for n in range(4)]  # two per step
    assert len(set(used)) == 4


def test_resume_rejects_other_settings(base: Path, tmp_path: Path) -> None:
    with pytest.raises(JobStopped):
        perpo.run(context(base, tmp_path, stop=StopAfter(STEP)))
    with pytest.raises(JobError, match="other settings"):
        perpo.run(context(base, tmp_path, resume=True, lr=0.5))


def test_step_without_informative_groups_is_skipped(base: Path, tmp_path: Path) -> None:
    # random weights never answer correctly: all accuracies of a group are 0
    perpo.run(context(base, tmp_path, filter_metric="accuracy", steps=1, refill_rounds=1, max_new_tokens=12))
    values = step_metrics(tmp_path)[1]
    assert (values["groups/kept"], values["groups/dropped_share"], values["groups/skipped"]) == (0.0, 1.0, 1.0)
    assert values["groups/refills"] == 1.0
    assert "policy/kl" not in values
    assert "degenerate_groups" in [row["code"] for row in events(tmp_path, "warning")]
    start, end = (load_file(f / "model-lm.safetensors") for f in (base, tmp_path / "checkpoints" / "try-step-1"))
    assert all(torch.equal(end[k], start[k].bfloat16()) for k in start)


def test_non_finite_loss_keeps_the_last_checkpoint(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(logprobs: torch.Tensor, reference: torch.Tensor, estimator: str) -> torch.Tensor:
        calls.append(1)
        return (logprobs - reference) * (1.0 if len(calls) <= 4 else float("nan"))

    monkeypatch.setattr(policy_update, "kl_estimate", broken)
    with pytest.raises(JobError, match="step 3: the loss is nan; the last good checkpoint is try-step-2") as error:
        perpo.run(context(base, tmp_path))
    assert error.value.code == "loss_not_finite"
    validate_checkpoint(tmp_path / "checkpoints" / "try-step-2")
    assert not (tmp_path / "checkpoints" / "try-step-3").exists()


def test_too_many_scoring_errors_end_the_job(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = perpo.Scorer.score
    calls = []

    def sometimes(self: perpo.Scorer, *args: Any, **kwargs: Any) -> RewardBreakdown:
        calls.append(1)
        if len(calls) % 6 == 1:
            raise RuntimeError("no codebook")
        return score(self, *args, **kwargs)

    monkeypatch.setattr(perpo.Scorer, "score", sometimes)
    perpo.run(context(base, tmp_path / "few", steps=1, reward={"max_error_share": 0.2}))
    assert step_metrics(tmp_path / "few")[1]["scoring/error_share"] == pytest.approx(1 / 6)
    warnings = {row["code"]: row["detail"] for row in events(tmp_path / "few", "warning")}
    assert "RuntimeError: no codebook" in warnings["scoring_errors"]
    with pytest.raises(JobError, match=r"1 of 6 trajectories could not be scored \(RuntimeError: no codebook\)"):
        perpo.run(context(base, tmp_path / "many", steps=1))


def test_base_without_decoder_is_rejected(tmp_path: Path) -> None:
    blind = make_tiny_checkpoint(tmp_path / "no-decoder", decoder=False)
    with pytest.raises(JobError, match="decoder"):
        perpo.run(context(blind, tmp_path / "job"))


def test_full_disk_costs_only_a_checkpoint(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, full = perpo.save_training_checkpoint, {2}

    def maybe(ctx: JobContext, *args: Any, step: int, **kwargs: Any) -> Path:
        if step in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(ctx, *args, step=step, **kwargs)

    monkeypatch.setattr(perpo, "save_training_checkpoint", maybe)
    hyper = {"max_new_tokens": 8, "sample_every": 10}
    assert perpo.run(context(base, tmp_path / "once", **hyper))["checkpoint"] == "try-step-3"
    assert [row["code"] for row in events(tmp_path / "once", "warning")].count("save_failed") == 1
    full.add(3)
    with pytest.raises(JobError, match="step 3 could not be written") as error:
        perpo.run(context(base, tmp_path / "always", **hyper))
    assert error.value.code == "save_failed"


def test_unusable_data_is_rejected(base: Path, tmp_path: Path) -> None:
    ctx = context(base, tmp_path)
    for path, code in ((tmp_path / "missing", "bad_data"), (tmp_path / "empty.jsonl", "no_samples")):
        (tmp_path / "empty.jsonl").write_text('{"Question": ""}\n')
        spec = {**ctx.spec.resolved(), "data": {"source": "jsonl", "path": str(path)}}
        with pytest.raises(JobError) as error:
            perpo.run(replace(ctx, spec=parse_spec(spec)))
        assert error.value.code == code
    assert "empty.jsonl:1" in (tmp_path / "runs" / "perpo" / "rejected.jsonl").read_text()


# --- group selection, with a fake sampler ---


class FakeSampler:
    """Groups of two with predefined accuracies, in order of the calls."""

    def __init__(self, accuracies: Sequence[tuple[float, float]]) -> None:
        self.accuracies = list(accuracies)
        self.used: list[tuple[int, int]] = []  # first index and number of prompts of each call

    def sample(self, prompts: Sequence[Prompt], *, first: int, **_: Any) -> list[RolloutGroup]:
        self.used.append((first, len(prompts)))
        groups = []
        for prompt in prompts:
            logged = self.accuracies.pop(0)
            rollouts = [Rollout(i, [round(a * 100)], b"\1", [0.0], "stop") for i, a in enumerate(logged)]
            groups.append(RolloutGroup(prompt, rollouts))
        return groups


class FakeScorer:
    """The accuracy is the token's hundredth; totals all differ, like a continuous reward."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, response: list[int], reference: str, **_: Any) -> RewardBreakdown:
        self.calls += 1
        accuracy = response[0] / 100
        return RewardBreakdown(accuracy + self.calls / 1e4, accuracy, 1.0, 0.0)


class FakePrompts:
    longest = 4

    def __len__(self) -> int:
        return 100

    def take(self, numbers: Sequence[int]) -> list[Prompt]:
        return [Prompt(n, (1, 2), "?", (), "red") for n in numbers]


def collected(accuracies: Sequence[tuple[float, float]], **hyper: Any) -> tuple[StepBatch, FakeSampler]:
    sampler = FakeSampler(accuracies)
    hp = PeRPOHyperparameters(**{"prompts_per_step": 2, "oversampling": 2.0, "refill_rounds": 3, **hyper})
    collector = Collector(sampler, FakeScorer(), None, FakePrompts(), PromptOrder(100, 0), hp, seed=0)  # type: ignore[arg-type]
    return collector.collect(step=0, cursor=0), sampler


EQUAL, MIXED = (1.0, 1.0), (0.0, 1.0)


def test_groups_of_equal_accuracy_are_dropped() -> None:
    batch, sampler = collected([EQUAL, MIXED, (0.0, 0.0), MIXED])
    assert sampler.used == [(0, 4)]  # 2 groups wanted, oversampling 2
    assert len(batch.kept) == 2
    assert (batch.dropped, batch.refills, batch.num_prompts) == (2, 0, 4)


def test_refills_replace_missing_groups() -> None:
    batch, sampler = collected([EQUAL] * 4 + [MIXED] + [EQUAL] * 3 + [EQUAL, MIXED])
    # 4 sampled, none kept: 2 missing, 4 sampled, one kept: 1 missing, 2 sampled, one kept
    assert sampler.used == [(0, 4), (4, 4), (8, 2)]
    assert (len(batch.kept), batch.refills, batch.num_prompts) == (2, 2, 10)
    batch, sampler = collected([EQUAL] * 100)
    assert sampler.used == [(0, 4), (4, 4), (8, 4), (12, 4)]
    assert (len(batch.kept), batch.refills, batch.dropped) == (0, 3, 16)


def test_surplus_groups_do_not_count_as_dropped() -> None:
    batch, _ = collected([MIXED] * 4)
    assert (len(batch.kept), len(batch.seen), batch.dropped) == (2, 4, 0)


def test_filter_may_use_total_or_nothing() -> None:
    assert len(collected([EQUAL] * 4, filter_metric="total")[0].kept) == 2
    assert len(collected([EQUAL] * 4, filter_metric="none")[0].kept) == 2


def test_every_epoch_shuffles_every_prompt() -> None:
    order = PromptOrder(10, seed=3)
    epochs = [[order[e * 10 + i] for i in range(10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == [PromptOrder(10, seed=3)[i] for i in range(10)]
    assert epochs[0] != [PromptOrder(10, seed=4)[i] for i in range(10)]


def test_metrics_include_dropped_groups() -> None:
    batch, _ = collected([EQUAL, MIXED, EQUAL, MIXED])
    values = batch.metrics()
    assert values["reward/accuracy"] == pytest.approx(6 / 8)
    assert values["groups/dropped_share"] == 0.5
    assert values["response/len"] == 1.0
