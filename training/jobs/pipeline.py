"""The pipeline job: the complete recipe as one job, zero? -> pesft -> perpo -> benchmark.

Each stage runs the method of its name with its own specification, starting from the newest checkpoint of the stages
before. Stage results are kept in ``runs/pipeline.json``: a resumed job skips the finished stages and resumes inside the
unfinished one.

Launch: ``python -m training.jobs.worker JOB_DIR``, as the server does for ``POST /v1/jobs {"method": "pipeline",
...}``.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.jobs.context import JobContext, JobError
from training.spec.spec import AnySpec, BenchmarkSpec, JsonlData, PeRPOSpec, PeSFTSpec, PipelineSpec, ZeroSpec

MODULES = {
    "zero": "training.zero.job",
    "pesft": "training.pesft.job",
    "perpo": "training.perpo.job",
    "benchmark": "training.benchmark.job",
}

StageRun = Callable[[JobContext], dict[str, Any]]


def run(ctx: JobContext, *, methods: Mapping[str, StageRun] | None = None) -> dict[str, Any]:
    """Run the unfinished stages; return the object for ``result.json``.

    Args:
        ctx: the job.
        methods: replace the methods in tests.

    Raises:
        JobError: a stage failed; the detail names it.
        JobStopped: stopped, inside a stage or between two.
    """
    spec = ctx.spec
    assert isinstance(spec, PipelineSpec)
    path = ctx.folder / "runs" / "pipeline.json"
    ctx.disk.write(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    done = _read(ctx, path) if ctx.resume else {}
    _write(ctx, path, done)
    for number, stage in enumerate(spec.stages, 1):
        if stage in done:
            ctx.log.log(f"stage {number} of {len(spec.stages)}, {stage}, is done already")
            continue
        ctx.check_stop()
        ctx.log.log(f"stage {number} of {len(spec.stages)}: {stage}")
        context = _context(ctx, spec, stage, done)
        method = methods[stage] if methods is not None else importlib.import_module(MODULES[stage]).run
        try:
            done[stage] = method(context)
        except JobError as error:
            raise JobError(error.code, f"stage {stage}: {error.detail}") from error
        _write(ctx, path, done)
    newest = _newest(done)
    result: dict[str, Any] = {"stages": done}
    if newest is not None:
        result |= {"checkpoint": newest["checkpoint"], "folder": newest["folder"]}
    result["metrics"] = next((done[s]["metrics"] for s in reversed(spec.stages) if "metrics" in done[s]), {})
    return result


def _context(ctx: JobContext, spec: PipelineSpec, stage: str, done: Mapping[str, Any]) -> JobContext:
    """The stage's context: its own specification, and the newest checkpoint as its base."""
    newest = _newest(done)
    name = spec.base_checkpoint if newest is None else str(newest["checkpoint"])
    folder = ctx.base_folder if newest is None else Path(newest["folder"])
    made = {str(r["checkpoint"]): Path(r["folder"]) for r in done.values() if "checkpoint" in r}
    context = ctx.for_stage(stage, stage_spec(spec, stage, name, done), folder)
    return replace(context, checkpoints={**ctx.checkpoints, spec.base_checkpoint: ctx.base_folder, **made})


def stage_spec(spec: PipelineSpec, stage: str, base: str, done: Mapping[str, Any]) -> AnySpec:
    """Build the specification of one stage.

    Args:
        spec: of the pipeline.
        stage: its name.
        base: the checkpoint to start from.
        done: results of the stages before it.
    """
    hyper, data = spec.hyperparameters, spec.data
    common: dict[str, Any] = {
        "base_checkpoint": base,
        "seed": spec.seed,
        "gpu": spec.gpu,
        "output_name": spec.output_name,
        "threads": spec.threads,
    }
    if stage == "zero":
        assert hyper.zero is not None and data.zero is not None  # noqa: PT018
        # PeSFT is the next stage if present; otherwise Zero's own.
        zero = hyper.zero.model_copy(update={"pesft": None}) if hyper.pesft is not None else hyper.zero
        return ZeroSpec(**common, data=data.zero, hyperparameters=zero)
    if stage == "pesft":
        assert hyper.pesft is not None
        if hyper.zero is None:
            assert data.pesft is not None
            return PeSFTSpec(**common, data=data.pesft, hyperparameters=hyper.pesft)
        pesft = hyper.pesft.model_copy(update={"template": hyper.pesft.template or hyper.zero.template})
        return PeSFTSpec(**common, data=JsonlData(path=str(done["zero"]["traces"])), hyperparameters=pesft)
    if stage == "perpo":
        assert hyper.perpo is not None and data.perpo is not None  # noqa: PT018
        return PeRPOSpec(**common, data=data.perpo, hyperparameters=hyper.perpo)
    assert hyper.benchmark is not None and data.benchmark is not None  # noqa: PT018
    benchmark = hyper.benchmark
    if benchmark.compare_with in done:  # a stage of this job: use its checkpoint
        other = done[str(benchmark.compare_with)]["checkpoint"]
        benchmark = benchmark.model_copy(update={"compare_with": None if other == base else str(other)})
    return BenchmarkSpec(**common, data=data.benchmark, hyperparameters=benchmark)


def _newest(done: Mapping[str, Any]) -> dict[str, Any] | None:
    """Result of the last stage with a checkpoint."""
    for stage in ("perpo", "pesft", "zero"):
        if "checkpoint" in done.get(stage, {}):
            found: dict[str, Any] = done[stage]
            return found
    return None


def _read(ctx: JobContext, path: Path) -> dict[str, Any]:
    """Results of an earlier session; those whose checkpoint is gone are dropped."""
    try:
        known = ctx.located(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    out: dict[str, Any] = {}
    for stage, result in known.items():  # in the order of completion
        if "folder" in result and not (Path(result["folder"]) / "manifest.json").exists():
            break
        out[stage] = result
    return out


def _write(ctx: JobContext, path: Path, done: Mapping[str, Any]) -> None:
    text = json.dumps(ctx.record(done), indent=1, default=str)
    ctx.disk.replace(path, lambda temporary: temporary.write_text(text, "utf-8"))
