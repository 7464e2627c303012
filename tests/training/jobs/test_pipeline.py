"""The complete recipe as one job: inputs of each stage, resume, and one real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from tests.tiny import make_tiny_checkpoint
from tests.training.contexts import StopAfter, events_of, job
from training.jobs import pipeline
from training.jobs.context import JobContext, JobError, JobStopped
from training.spec.spec import PRESETS, BenchmarkSpec, PeRPOSpec, PeSFTSpec, PipelineSpec, ZeroSpec, parse_spec

WORLD = {"source": "unitasks", "num_samples": 8}
RECIPE: dict[str, Any] = {
    "method": "pipeline",
    "seed": 3,
    "data": {"zero": WORLD, "perpo": WORLD, "benchmark": WORLD},
    "hyperparameters": {"zero": {}, "benchmark": {"compare_with": "pesft"}},
}


class Stages:
    """Replaces the methods: records their inputs and writes checkpoints."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.contexts: dict[str, JobContext] = {}
        self.failing: dict[str, Exception] = {}

    def __getitem__(self, stage: str) -> Callable[[JobContext], dict[str, Any]]:
        def run(ctx: JobContext) -> dict[str, Any]:
            self.ran.append(stage)
            self.contexts[stage] = ctx
            if stage in self.failing:
                raise self.failing[stage]
            if stage == "zero":
                return {"traces": str(ctx.folder / "traces.jsonl"), "accepted": 8, "report": {}}
            if stage == "benchmark":
                return {"metrics": {"accuracy/all": 0.5}}
            folder = ctx.checkpoint_folder(4)
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text("{}")
            return {"checkpoint": folder.name, "folder": str(folder), "metrics": {"loss/ce": 1.0}}

        return run


def run(ctx: JobContext, stages: Stages) -> dict[str, Any]:
    return pipeline.run(ctx, methods=stages)  # type: ignore[arg-type]


def test_stages_start_from_the_newest_checkpoint(tmp_path: Path) -> None:
    stages, base = Stages(), tmp_path / "base"
    ctx = job(tmp_path / "job", RECIPE, base)
    result = run(ctx, stages)
    assert stages.ran == ["zero", "pesft", "perpo", "benchmark"]
    specs = {name: context.spec for name, context in stages.contexts.items()}
    assert [type(specs[s]) for s in stages.ran] == [ZeroSpec, PeSFTSpec, PeRPOSpec, BenchmarkSpec]
    assert [specs[s].base_checkpoint for s in stages.ran] == [
        "tiny",
        "tiny",
        "made-pesft-step-4",
        "made-perpo-step-4",
    ]
    assert stages.contexts["pesft"].base_folder == base
    assert stages.contexts["perpo"].base_folder == ctx.folder / "checkpoints" / "made-pesft-step-4"
    assert {s.seed for s in specs.values()} == {3}
    assert result["checkpoint"] == "made-perpo-step-4"
    assert result["metrics"] == {"accuracy/all": 0.5}


def test_pesft_trains_on_zero_traces(tmp_path: Path) -> None:
    stages = Stages()
    run(job(tmp_path / "job", RECIPE, tmp_path), stages)
    zero, pesft = stages.contexts["zero"].spec, stages.contexts["pesft"].spec
    assert isinstance(zero, ZeroSpec)
    assert isinstance(pesft, PeSFTSpec)
    assert zero.hyperparameters.pesft is None  # the pipeline has a stage for it
    assert pesft.data.source == "jsonl"
    assert pesft.data.path == str(tmp_path / "job" / "traces.jsonl")
    assert pesft.hyperparameters.template == zero.hyperparameters.template == "tagged"


def test_benchmark_compares_with_an_earlier_stage(tmp_path: Path) -> None:
    stages = Stages()
    run(job(tmp_path / "job", RECIPE, tmp_path / "base"), stages)
    context = stages.contexts["benchmark"]
    assert isinstance(context.spec, BenchmarkSpec)
    assert context.spec.hyperparameters.compare_with == "made-pesft-step-4"
    assert context.checkpoints["made-pesft-step-4"] == tmp_path / "job" / "checkpoints" / "made-pesft-step-4"
    assert context.checkpoints["tiny"] == tmp_path / "base"


def test_zero_trains_without_a_pesft_stage(tmp_path: Path) -> None:
    recipe = {
        "method": "pipeline",
        "data": {"zero": WORLD},
        "hyperparameters": {"zero": {}, "pesft": None, "perpo": None, "benchmark": None},
    }
    stages = Stages()
    run(job(tmp_path / "job", recipe, tmp_path), stages)
    zero = stages.contexts["zero"].spec
    assert isinstance(zero, ZeroSpec)
    assert zero.hyperparameters.pesft is not None


def test_finished_stages_are_not_repeated(tmp_path: Path) -> None:
    stages = Stages()
    stages.failing["perpo"] = JobError("loss_not_finite", "step 3: nan")
    with pytest.raises(JobError, match="stage perpo: step 3") as caught:
        run(job(tmp_path / "job", RECIPE, tmp_path), stages)
    assert caught.value.code == "loss_not_finite"
    stages.failing, stages.ran = {"perpo": JobStopped()}, []
    with pytest.raises(JobStopped):
        run(job(tmp_path / "job", RECIPE, tmp_path, resume=True), stages)
    assert stages.ran == ["perpo"]
    assert stages.contexts["perpo"].resume
    assert stages.contexts["perpo"].base_folder.name == "made-pesft-step-4"
    stages.failing, stages.ran = {}, []
    run(job(tmp_path / "job", RECIPE, tmp_path, resume=True), stages)
    assert stages.ran == ["perpo", "benchmark"]


def test_stop_between_stages_is_obeyed(tmp_path: Path) -> None:
    stages = Stages()
    with pytest.raises(JobStopped):
        run(job(tmp_path / "job", RECIPE, tmp_path, stop=StopAfter(1)), stages)
    assert stages.ran == ["zero"]
    run(job(tmp_path / "job", RECIPE, tmp_path, resume=True), stages)
    assert stages.ran == ["zero", "pesft", "perpo", "benchmark"]


def test_stage_without_its_checkpoint_is_repeated(tmp_path: Path) -> None:
    stages = Stages()
    ctx = job(tmp_path / "job", RECIPE, tmp_path)
    run(ctx, stages)
    manifest = ctx.folder / "checkpoints" / "made-pesft-step-4" / "manifest.json"
    manifest.unlink()
    manifest.parent.rmdir()
    for left in (ctx.folder / "checkpoints" / "made-perpo-step-4").iterdir():
        left.unlink()
    (ctx.folder / "checkpoints" / "made-perpo-step-4").rmdir()
    stages.ran = []
    run(job(tmp_path / "job", RECIPE, tmp_path, resume=True), stages)
    assert stages.ran == ["pesft", "perpo", "benchmark"]


def test_job_without_resume_starts_over(tmp_path: Path) -> None:
    stages = Stages()
    stages.failing["pesft"] = JobStopped()
    for _ in range(2):
        with pytest.raises(JobStopped):
            run(job(tmp_path / "job", RECIPE, tmp_path), stages)
    assert stages.ran == ["zero", "pesft"] * 2


def test_pipeline_presets_specify_every_stage() -> None:
    for preset in PRESETS.values():
        spec = parse_spec(preset.spec)
        if isinstance(spec, PipelineSpec):
            done: dict[str, Any] = {"zero": {"traces": "t.jsonl"}, "pesft": {"checkpoint": "p"}}
            for stage in spec.stages:
                assert pipeline.stage_spec(spec, stage, "base", done).method == stage


def test_complete_recipe_runs_on_tiny_checkpoint(tmp_path: Path) -> None:
    """zero -> pesft -> perpo -> benchmark for real, stopped inside PeRPO and resumed."""
    base = make_tiny_checkpoint(tmp_path / "base" / "tiny", context_len=768)
    recipe = {
        "method": "pipeline",
        "data": {"zero": {**WORLD, "num_samples": 4}, "perpo": WORLD, "benchmark": {**WORLD, "num_samples": 4}},
        "hyperparameters": {
            "zero": {"candidates": 2, "max_steps": 1, "copied_share": 1.0, "min_accepted": 0.0},
            "pesft": {"steps": 1, "batch_samples": 2, "sample_every": 0},
            "perpo": {
                "steps": 2,
                "prompts_per_step": 2,
                "rollouts_per_prompt": 2,
                "mini_batch_prompts": 2,
                "oversampling": 1.0,
                "max_new_tokens": 16,
                "filter_metric": "none",
                "save_every": 1,
            },
            "benchmark": {"max_new_tokens": 16, "compare_with": "pesft"},
        },
    }

    class StopInPerpo:
        """Raised by PeRPO's first checkpoint."""

        def __bool__(self) -> bool:
            return any((tmp_path / "job" / "checkpoints").glob("made-perpo-step-1"))

    with pytest.raises(JobStopped):
        pipeline.run(job(tmp_path / "job", recipe, base, stop=StopInPerpo()))
    done = json.loads((tmp_path / "job" / "runs" / "pipeline.json").read_text())
    assert list(done) == ["zero", "pesft"]
    ctx = job(tmp_path / "job", recipe, base, resume=True)
    result = pipeline.run(ctx)
    assert list(result["stages"]) == ["zero", "pesft", "perpo", "benchmark"]
    assert result["checkpoint"] == "made-perpo-step-2"
    made = load_checkpoint(result["folder"])
    assert (made.template.name, made.manifest.base) == ("tagged", "made-pesft-step-1")
    comparison = result["stages"]["benchmark"]["comparison"]
    assert (comparison["first"], comparison["second"]) == ("made-pesft-step-1", "made-perpo-step-2")
    assert {p["stage"] for p in events_of(ctx, "progress")} >= {"zero", "pesft", "perpo", "benchmark"}
    assert [c["name"] for c in events_of(ctx, "checkpoint")] == [
        "made-pesft-step-1",
        "made-perpo-step-1",
        "made-perpo-step-2",
    ]
