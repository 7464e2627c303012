"""The PeSFT job: data of any source -> packed batches -> L_CE + lambda L_Pe -> servable checkpoints.

``run(ctx)`` reads the data once (rejected rows are counted and listed), trains with `pesft.loop.train_sft` and saves a
checkpoint every ``save_every`` steps. A resumed run is bit-identical: the sequences are kept in the run's folder, and
batches and learning rates are functions of (seed, step).

Launch: ``python -m training.jobs.worker JOB_DIR``, as the server does for ``POST /v1/jobs {"method": "pesft", ...}``.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.checkpoint.manifest import ImageCount
from model.nets.lora import MergedState
from training.data.code_cache import CodeCache
from training.data.drills import rehearsal
from training.data.rows import DataError, Intake
from training.data.samples import SEEDS_A_RUN, SampleEncoder, build_token_set, trace_samples
from training.data.token_sets import ImageCoder, TokenSet, id_to_code
from training.home_paths import without_old_home
from training.jobs.checkpoints import (
    bytes_of,
    check_finite,
    checkpoint_bytes,
    last_good,
    load_base,
    save_step,
    save_training_checkpoint,
    stage_checkpoints,
    step_of,
    with_context_for,
)
from training.jobs.context import JobContext, JobError, JobStopped
from training.jobs.loop import RunFolder, RunStopped, SettingsChanged
from training.jobs.lora import adapter_writer, base_dtype, begin
from training.jobs.memory import require_memory
from training.jobs.precision import job_precision
from training.pesft.looks import Looks
from training.pesft.loop import RunHost, SFTModel, SFTSpec, State, train_sft
from training.spec.spec import PeSFTSpec

DESCRIPTION = "Answers questions about images by drawing its way there (PeSFT)."
CACHE, ABOUT, DRILLS = "data.npz", "data.json", "drills.npz"
DRILL_SEEDS = 10_000_000  # the base has used those from 0 up
MANY_REJECTED = 0.5  # above this share of rejected samples, the warning blames the data


def run(ctx: JobContext) -> dict[str, Any]:
    """Train; return the object for ``result.json``.

    Raises:
        JobError: the base or the data cannot be used, the loss is not finite, or the last checkpoint was not written.
        JobStopped: stopped; the state is saved.
    """
    spec = ctx.spec
    assert isinstance(spec, PeSFTSpec)
    hyper = spec.hyperparameters
    stage = ctx.stage or "pesft"
    started = time.monotonic()
    folder = ctx.run_folder(stage)
    precision = job_precision(ctx, hyper.precision, folder)
    draws = hyper.variant == "interleaved"
    hyper = hyper.model_copy(update={"precision": precision})
    require_memory(ctx, hyper)
    base = load_base(
        ctx, template=hyper.template, must_draw=draws, dtype=base_dtype(hyper.lora, precision), context=hyper.context
    )
    base = with_context_for(ctx, base, hyper.max_len or 0, hyper.context)
    data, account = _shared_data(ctx, base, folder)
    images = question_images(data, base.vocab.boi_id, base.manifest.images)
    base = replace(base, manifest=replace(base.manifest, images=images))
    data = with_drills(ctx, base, data, folder)
    settings = replace(sft_settings(spec, data, stage), precision=precision)
    require_memory(ctx, hyper, longest_part(settings, data, ctx.ranks.size))
    begin(base.transformer, hyper.lora, recompute=hyper.recompute, seed=spec.seed)
    job = _Job(ctx, base, stage, settings)
    assert base.vq is not None
    model = SFTModel.start(settings, base.transformer, base.vq.codebook, id_to_code(base.vocab))
    model.spread(ctx.ranks, ctx.device)
    try:
        job.begin()
        train_sft(settings, model, data, folder, resume=ctx.resume, host=job, ranks=ctx.ranks)
    except RunStopped as stop:
        raise JobStopped from stop
    except SettingsChanged as error:
        raise JobError("settings_changed", str(error)) from error
    except FloatingPointError as error:
        raise JobError("loss_not_finite", f"{error}; {last_good(ctx)}") from error
    if not ctx.ranks.first:
        return {}
    last = stage_checkpoints(ctx)[-1]
    return {
        "checkpoint": last.name,
        "folder": str(last),
        "steps": settings.steps,
        "metrics": job.metrics,
        "precision": settings.precision,
        "context": base.config.transformer.context_len,
        "data": account,
        "seconds": round(time.monotonic() - started, 1),
    }


class _Job(RunHost):
    """Logs the loop's progress and writes its checkpoints."""

    quiet = None

    def __init__(self, ctx: JobContext, base: LoadedCheckpoint, stage: str, settings: SFTSpec) -> None:
        spec = ctx.spec
        assert isinstance(spec, PeSFTSpec)
        self.ctx, self.base, self.stage, self.total = ctx, base, stage, settings.steps
        self.hyper = spec.hyperparameters
        self.save_every, self.log_every = self.hyper.save_every, self.hyper.log_every
        self.stop, self.disk = ctx.stop, ctx.disk
        self.metrics: dict[str, float] = {}
        self._looks: Looks | None = None
        self._began: tuple[float, int] | None = None  # time and step of this session's first log row

    def begin(self) -> None:
        """Called before the first step of this session."""
        looks = self.hyper.sample_every and self.hyper.variant == "interleaved"
        if looks and self.ctx.ranks.size > 1:
            self.ctx.log.log("the model is spread over devices, so it is not looked at while it trains")
        elif looks:
            self._looks = Looks.of(self.ctx, self.base, self.hyper.show_samples)
            if not self.ctx.resume:
                self._look(0)
        done = stage_checkpoints(self.ctx) if self.ctx.resume else []
        self.ctx.log.progress(self.stage, step_of(done[-1]) if done else 0, self.total)

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics = metrics
        self.ctx.log.metrics(self.stage, step, metrics)
        now = self.ctx.clock()
        self._began = self._began or (now, step)
        since, first = self._began
        eta = (now - since) / (step - first) * (self.total - step) if step > first else None
        self.ctx.log.progress(self.stage, step, self.total, eta)

    def on_step(self, step: int) -> None:
        if self._looks is not None and (step % self.hyper.sample_every == 0 or step == self.total):
            self._look(step)

    def _look(self, step: int) -> None:
        if self._looks is None:
            return
        try:
            self._looks.show(self.stage, step)
        except Exception as error:  # looks are optional: the job continues without them
            self._looks = None
            self.ctx.log.log(f"looks at the model are given up: {type(error).__name__}: {error}")

    def on_save(self, step: int, run: RunFolder, state: State) -> None:
        check_finite(state["model"], step)  # before replacing the good state
        transformer = self.base.transformer
        weights = state["model"] if self.hyper.lora is None else MergedState(transformer)

        def write() -> None:
            run.save_state(state)
            save_training_checkpoint(
                self.ctx,
                self.base,
                stage=self.stage,
                step=step,
                transformer_state=weights,
                run=run,
                metrics=self.metrics,
                description=DESCRIPTION,
                perception={f"perception.{name}": tensor for name, tensor in state["projection"].items()}
                if self.hyper.perception_weight
                else None,
                adapter=adapter_writer(transformer, self.hyper.lora, base=self.ctx.spec.base_checkpoint),
                keep_states=self.hyper.keep_states,
            )

        needed = bytes_of(state) + checkpoint_bytes(self.base)
        save_step(self.ctx, write, step=step, needed=needed, last=step == self.total)


def question_images(data: TokenSet, boi_id: int, before: ImageCount) -> ImageCount:
    """Image count of a question: at least what every question of the data had."""
    starts = (data.ids == boi_id) & ~data.loss_mask.astype(bool)
    counts = np.add.reduceat(starts, data.offsets[:-1], dtype=np.int64)
    return ImageCount(int(counts.min()), max(int(counts.max()), before.max))


def sft_settings(spec: PeSFTSpec, data: TokenSet, label: str) -> SFTSpec:
    """The loop's settings; steps are computed from epochs if missing."""
    hyper = spec.hyperparameters
    settings = SFTSpec(
        steps=hyper.steps or 1,
        lr=hyper.lr,
        seed=spec.seed,
        max_tokens=hyper.batch_tokens,
        warmup=hyper.warmup,
        floor=hyper.floor,
        weight_decay=hyper.weight_decay,
        clip_norm=hyper.clip_norm,
        perception_weight=hyper.perception_weight if hyper.variant == "interleaved" else 0.0,
        perception_reduction=hyper.perception_reduction,
        label=label,
        extra={"drills": hyper.drills} if hyper.drills else {},
        schedule=hyper.schedule,
        betas=hyper.betas,
        batch_samples=hyper.batch_samples,
        micro_batches=hyper.micro_batches,
        normalisation=hyper.normalisation,
        perception_projection=hyper.perception_projection,
        perception_state=hyper.perception_state,
        precision=hyper.precision,
        lora=None if hyper.lora is None else hyper.lora.model_dump(mode="json"),
        recompute=hyper.recompute,
    )
    if hyper.steps is not None:
        return settings
    return replace(settings, steps=max(1, math.ceil(hyper.epochs * settings.make_plan(data).steps_per_epoch)))


def longest_part(settings: SFTSpec, data: TokenSet, ranks: int) -> int:
    """Tokens of the largest part of a batch that is computed at once."""
    plan, lengths = settings.make_plan(data), data.lengths
    batches = (plan[step] for step in range(settings.steps))
    return max(int(lengths[part].sum()) for batch in batches for part in settings.parts(batch, lengths, ranks))


def _shared_data(ctx: JobContext, base: LoadedCheckpoint, folder: Path) -> tuple[TokenSet, dict[str, Any]]:
    """The job's sequences: rank 0 makes them, the others read what it keeps."""
    if ctx.ranks.first:
        data, account = load_data(ctx, base, folder)
        ctx.ranks.wait()
        return data, account
    ctx.ranks.wait()
    return TokenSet.load(folder / CACHE), json.loads((folder / ABOUT).read_text("utf-8"))["account"]


def longest(spec: PeSFTSpec, base: LoadedCheckpoint) -> int:
    """Tokens of the longest sequence that is trained on."""
    context = base.config.transformer.context_len
    return min(spec.hyperparameters.max_len or context, context)


def with_drills(ctx: JobContext, base: LoadedCheckpoint, data: TokenSet, folder: Path) -> TokenSet:
    """The sequences and ``drills`` of the base's training, in the job's template; rank 0 makes them.

    Drills rehearse what the traces show too little of: PeSFT on a few thousand traces forgets to draw at the right
    place. Their seeds are above those of the base.
    """
    spec = ctx.spec
    assert isinstance(spec, PeSFTSpec)
    share, cache = spec.hyperparameters.drills, folder / DRILLS
    if not share:
        return data
    if ctx.ranks.first and not (ctx.resume and cache.exists()):
        assert base.vq is not None
        count = max(1, round(share / (1 - share) * len(data)))
        first = DRILL_SEEDS + spec.seed % 100 * SEEDS_A_RUN
        coder = ImageCoder(base.vq, device=ctx.device)
        made = rehearsal(first, count, coder, base.template, longest(spec, base), base.manifest.lineage)
        ctx.disk.replace(cache, made.save)
        ctx.log.log(f"{len(made):,} drills join the {len(data):,} traces")
    ctx.ranks.wait()
    return data.joined(TokenSet.load(cache))


def load_data(ctx: JobContext, base: LoadedCheckpoint, folder: Path) -> tuple[TokenSet, dict[str, Any]]:
    """The job's sequences and a summary of its samples; cached results of an earlier session are reused.

    Raises:
        JobError: ``bad_data``, or ``no_samples`` if nothing is left.
        JobStopped: stopped while reading.
    """
    spec = ctx.spec
    assert isinstance(spec, PeSFTSpec) and base.vq is not None  # noqa: PT018
    hyper = spec.hyperparameters
    max_len = longest(spec, base)
    wanted = {
        "data": ctx.record(spec.data.model_dump(mode="json")),
        "seed": spec.seed,
        "variant": hyper.variant,
        "template": base.template.name,
        "max_len": max_len,
        "base": spec.base_checkpoint,
    }
    cache, about = folder / CACHE, folder / ABOUT
    if ctx.resume and cache.exists() and about.exists():
        known = json.loads(about.read_text("utf-8"))
        old = without_old_home(known["wanted"], wanted)
        if {**old, "base": Path(old["base"]).name} == wanted:  # older versions recorded a path
            return TokenSet.load(cache), known["account"]
    total = spec.data.num_samples or 0
    began = ctx.clock()

    def on_chunk(seen: int) -> None:
        ctx.check_stop()
        left = max(0, total - seen)
        ctx.log.progress("data", seen, max(total, seen), left * (ctx.clock() - began) / seen)

    try:
        data, intake = build_token_set(
            trace_samples(spec.data, spec.seed, base.vq.config.resolution),
            SampleEncoder(
                ImageCoder(base.vq, device=ctx.device, known=CodeCache.of_job(ctx.folder, base.vq)), base.vocab
            ),
            base.template,
            variant=hyper.variant,
            max_len=max_len,
            on_chunk=on_chunk,
        )
    except (DataError, ValueError) as error:
        raise JobError("bad_data", str(error)) from error
    _log_intake(ctx, intake, folder, spec.data.num_samples)
    if data is None:
        raise JobError("no_samples", f"nothing is left to train on: {intake.summary()}")
    account = {**intake.to_json(), "tokens": int(data.offsets[-1]), "response_tokens": int(data.loss_mask.sum())}
    text = json.dumps({"wanted": wanted, "account": account})
    ctx.disk.replace(cache, data.save)
    ctx.disk.replace(about, lambda path: path.write_text(text, "utf-8"))
    return data, account


def _log_intake(ctx: JobContext, intake: Intake, folder: Path, wanted: int | None) -> None:
    ctx.log.log(intake.summary())
    ctx.log.report("data", intake.to_json())
    if short := intake.shortfall(wanted):
        ctx.log.warning("fewer_samples", short)
    if not intake.rejected:
        return
    ctx.disk.write(lambda: intake.write(folder / "rejected.jsonl"))
    share = len(intake.rejected) / intake.total
    advice = "; more than half: is this the right format and the right checkpoint?" if share > MANY_REJECTED else ""
    ctx.log.warning("samples_rejected", intake.summary() + advice)
