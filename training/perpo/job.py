"""PeRPO: perception-calibrated relative policy optimisation in one loop (docs/method; Eqs. 4-16).

A step: sample G rollouts per prompt; score them; drop groups with equal rewards and sample more instead; compute
advantages within each group; old and reference log-probabilities under the trainer's own forward; then one pass of
clipped updates with a KL penalty over mini-batches of whole groups.

The engine samples from the module that the optimiser updates, and reloads it before every step. The reference stays the
start checkpoint. A step is a function of (weights, optimiser, seed, step): resumed and uninterrupted runs are
bit-identical at an equal thread count.

    python -m training.jobs.worker JOB_DIR        # with a job.json whose spec says method: perpo
"""

from __future__ import annotations

import copy
import time
from typing import Any

from tqdm import tqdm

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.engine.phases import LegalIds
from model.images.codes import decode_codes
from training.data.rows import DataError
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
)
from training.jobs.context import JobContext, JobError, JobStopped
from training.jobs.loop import RunFolder, SettingsChanged
from training.jobs.precision import job_precision
from training.perpo.collect import Collector, StepBatch
from training.perpo.failure_signs import FailureSigns
from training.perpo.prompts import FilePrompts, PromptOrder, PromptSet, WorldPrompts
from training.perpo.rollout import Sampler
from training.perpo.update import Updater
from training.scoring.rewards import Scorer
from training.spec.hyperparameters import PeRPOHyperparameters
from training.spec.spec import PeRPOSpec, UniTasksData

STAGE = "perpo"


def run(ctx: JobContext) -> dict[str, Any]:
    """Run the job; return the last checkpoint and the metrics of the last step.

    Raises:
        JobError: base or data are unusable, scoring fails, the loss is not finite, or the last save fails.
        JobStopped: a signal arrived; the state is saved.
    """
    job = _Run(ctx)
    start, total, began = job.step, job.hp.steps, ctx.clock()
    ctx.log.progress(job.stage, start, total)
    with tqdm(total=total, initial=start, desc=job.stage, mininterval=5) as bar:
        while job.step < total:
            job.log(job.learn())
            pace = (ctx.clock() - began) / (job.step - start)
            ctx.log.progress(job.stage, job.step, total, pace * (total - job.step))
            bar.update()
            last, stopping = job.step == total, bool(ctx.stop)
            at_turn = last or job.step % job.hp.save_every == 0
            if at_turn or stopping:
                job.save(whole=at_turn)
            if stopping and not last:
                raise JobStopped
    folder = ctx.checkpoint_folder(total)
    if folder not in stage_checkpoints(ctx):  # resumed between the last state and its checkpoint
        job.save()
    made = {"checkpoint": folder.name, "folder": str(folder), "step": total}
    return {**made, "metrics": job.metrics, "precision": job.hp.precision}


class _Run:
    """Policy, optimiser and position of one job; ``step`` and ``cursor`` count finished steps and used prompts."""

    def __init__(self, ctx: JobContext) -> None:
        spec = ctx.spec
        assert isinstance(spec, PeRPOSpec)
        self.ctx, self.stage = ctx, ctx.stage or STAGE
        self.base = base = load_base(ctx)
        assert base.vq is not None
        self.policy = base.transformer
        hp = spec.hyperparameters
        reference = copy.deepcopy(self.policy).eval().requires_grad_(False) if hp.kl_coef else None
        precision = job_precision(ctx, hp.precision, ctx.run_folder(self.stage))
        self.hp = hp = hp.model_copy(update={"precision": precision})
        prompts = load_prompts(ctx, base)
        scorer = Scorer(base.template, base.vq.codebook, base.manifest.perception, hp.reward)
        order = PromptOrder(len(prompts), spec.seed)
        self.collector = Collector(_sampler(base, prompts, hp), scorer, prompts, order, hp, spec.seed)
        self.updater = Updater(self.policy, reference, LegalIds.of(base.template, base.vocab), hp)
        self.folder = _open_run(ctx, self.stage, precision)
        self.step, self.cursor, self.metrics = 0, 0, dict[str, float]()
        self.signs = FailureSigns(precision=precision)
        if (state := self.folder.load_state()) is not None:
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["model"])
        self.updater.optimizer.load_state_dict(state["optimizer"])
        self.step, self.cursor, self.metrics = state["step"], state["cursor"], state["metrics"]
        self.signs = FailureSigns(precision=self.hp.precision, state=state["signs"])
        self.ctx.log.log(f"resumed after step {self.step}")

    def learn(self) -> StepBatch:
        """Take one step: sample, score and update; return what was sampled."""
        began = time.monotonic()
        try:
            batch = self.collector.collect(self.step, self.cursor, self.ctx.check_stop)
            drawn = time.monotonic()
            updated = self.updater.step(batch.kept, self.step) if batch.kept else {}
            check_finite(self.policy.state_dict(), self.step + 1)  # before replacing a good state
        except JobStopped:  # the step's samples are redrawn on resume: nothing was updated yet
            self.save(whole=False)
            raise
        except FloatingPointError as error:
            raise JobError("loss_not_finite", f"step {self.step + 1}: {error}; {last_good(self.ctx)}") from error
        self.step += 1
        self.cursor += batch.num_prompts
        speed = {
            "speed/tokens_per_s": batch.num_tokens / max(1e-9, drawn - began),
            "speed/rollout_s": drawn - began,
            "speed/update_s": time.monotonic() - drawn,
        }
        self.metrics = batch.metrics() | updated | speed
        return batch

    def save(self, *, whole: bool = True) -> None:
        """Save the state, with a checkpoint if ``whole``."""
        weights = self.policy.state_dict()
        state = {
            "step": self.step,
            "cursor": self.cursor,
            "model": weights,
            "optimizer": self.updater.optimizer.state_dict(),
            "signs": self.signs.state(),
            "metrics": self.metrics,
        }

        def write() -> None:
            self.folder.save_state(state)
            if whole:
                save_training_checkpoint(
                    self.ctx,
                    self.base,
                    stage=self.stage,
                    step=self.step,
                    transformer_state=weights,
                    run=self.folder,
                    metrics=self.metrics,
                    description=_description(self.base),
                    keep_states=self.hp.keep_states,
                )

        needed = bytes_of(state) + (checkpoint_bytes(self.base, weights) if whole else 0)
        save_step(self.ctx, write, step=self.step, needed=needed, last=self.step == self.hp.steps)

    def log(self, batch: StepBatch) -> None:
        """Log metrics, sampled traces and failure signs of the last step."""
        step, hp, log = self.step, self.hp, self.ctx.log
        if step % hp.log_every == 0 or step == hp.steps:
            log.metrics(self.stage, step, self.metrics)
        if step % hp.sample_every == 0:
            self._show(batch)
        if batch.errors:
            left_out = f"{len(batch.errors)} trajectories were left out ({batch.errors[0]})"
            log.warning("scoring_errors", f"step {step}: {left_out}")
        if len(batch.kept) < hp.prompts_per_step:
            log.log(f"step {step}: {len(batch.kept)} of {hp.prompts_per_step} groups after {batch.refills} refills")
        if not batch.kept:
            log.warning("degenerate_groups", f"step {step}: no group was left to learn from; the step changed nothing")
        for code, detail in self.signs.check(step, self.metrics):
            log.warning(code, f"step {step}: {detail}")

    def _show(self, batch: StepBatch) -> None:
        """Log the best and the worst trajectory of one group as sample events, a different group every step."""
        groups, vq = batch.kept or batch.seen, self.base.vq
        if not groups:
            return
        number = self.step % len(groups)
        prompt = groups[number].prompt
        scored = sorted(((r.reward, r) for r in groups[number].rollouts if r.reward), key=lambda pair: -pair[0].total)
        assert vq is not None
        for reward, rollout in scored if len(scored) < 2 else (scored[0], scored[-1]):
            codes = [c for _, c in reward.steps if c is not None]
            images = iter(decode_codes(vq, [*prompt.images[-1:], *codes]))
            question = next(images) if prompt.images else None
            self.ctx.log.sample(
                self.stage,
                self.step,
                question=prompt.question,
                question_image=question,
                steps=[{"text": text, "image": None if c is None else next(images)} for text, c in reward.steps],
                answer=reward.answer,
                reference=prompt.reference,
                slice=prompt.slice,
                rewards=reward.as_dict(),
                advantage=rollout.advantage if batch.kept else None,
                prompt=number,
                index=rollout.index,
            )


def load_prompts(ctx: JobContext, base: LoadedCheckpoint) -> PromptSet:
    """Load the prompts of a specification; log the excluded ones.

    Raises:
        JobError: ``bad_data`` or ``no_samples``.
    """
    spec = ctx.spec
    assert isinstance(spec, PeRPOSpec)
    assert base.vq is not None
    if isinstance(spec.data, UniTasksData):
        return WorldPrompts(spec.data, spec.seed, base.template, base.vq)
    try:
        found = FilePrompts(spec.data, base.template, base.vq, context_len=base.config.transformer.context_len)
    except (DataError, ValueError) as error:
        raise JobError("bad_data", str(error)) from error
    if found.intake.rejected:
        rejected = ctx.run_folder(ctx.stage or STAGE) / "rejected.jsonl"
        ctx.disk.write(lambda: found.intake.write(rejected))
        ctx.log.warning("samples_rejected", found.intake.summary())
    if short := found.intake.shortfall(spec.data.num_samples):
        ctx.log.warning("fewer_samples", short)
    if not len(found):
        raise JobError("no_samples", f"no prompt is left: {found.intake.summary()}")
    return found


def _sampler(base: LoadedCheckpoint, prompts: PromptSet, hp: PeRPOHyperparameters) -> Sampler:
    try:
        return Sampler(
            base.transformer,
            base.vocab,
            base.template,
            group_size=hp.rollouts_per_prompt,
            max_new_tokens=hp.max_new_tokens,
            max_prompt_len=prompts.longest,
            temperature=hp.temperature,
            top_p=hp.top_p,
            max_images=hp.max_images,
        )
    except ValueError as error:
        raise JobError("bad_spec", str(error)) from error


def _open_run(ctx: JobContext, stage: str, precision: str) -> RunFolder:
    spec, known = ctx.record({**ctx.spec.resolved(), "precision": precision}), {"precision": precision}
    try:
        return RunFolder(
            ctx.run_folder(stage),
            spec,
            resume=ctx.resume,
            defaults=known,
            upgrade=lambda old: without_old_home(old, spec),
            disk=ctx.disk,
        )
    except SettingsChanged as error:
        raise JobError("settings_changed", str(error)) from error


def _description(base: LoadedCheckpoint) -> str:
    return f"{base.name}, after reinforcement learning with the perception reward (PeRPO)."
