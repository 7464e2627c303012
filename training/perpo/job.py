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

import contextlib
import time
from typing import Any

from pydantic import ValidationError
from tqdm import tqdm

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.checkpoint.manifest import Perception
from model.config import LONGEST_CONTEXT
from model.engine.phases import LegalIds
from model.images.codes import decode_codes
from model.nets.lora import MergedState, load_trained_state, shared_copy, trained_state
from model.nets.transformer import Transformer
from training.cluster.pool import PoolError
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
    with_context_for,
)
from training.jobs.context import JobContext, JobError, JobStopped
from training.jobs.loop import RunFolder, SettingsChanged, load_optimizer
from training.jobs.lora import adapter_writer, base_dtype, begin
from training.jobs.memory import require_memory
from training.jobs.precision import job_precision
from training.perpo.batch import largest_part
from training.perpo.collect import Collector, StepBatch
from training.perpo.ema import MovingAverage
from training.perpo.failure_signs import FailureSigns
from training.perpo.loading import STAGE, held_out, load_prompts, make_sampler, rollout_engine, screen
from training.perpo.prompts import PromptOrder
from training.perpo.update import Updater
from training.perpo.validation import Record, Validation
from training.scoring.custom import RewardError
from training.scoring.custom_scorer import CustomScorer, open_custom
from training.scoring.rewards import Scorer
from training.spec.hyperparameters import PeRPOHyperparameters
from training.spec.spec import PeRPOSpec, parse_spec


def run(ctx: JobContext) -> dict[str, Any]:
    """Run the job; return the last checkpoint and the metrics of the last step.

    Raises:
        JobError: base or data are unusable, scoring fails, the loss is not finite, or the last save fails.
        JobStopped: a signal arrived; the state is saved.
    """
    with contextlib.ExitStack() as stack:
        job = _Run(ctx, stack)
        start, total, began = job.step, job.hp.steps, ctx.clock()
        ctx.log.progress(job.stage, start, total)
        bar = stack.enter_context(tqdm(total=total, initial=start, desc=job.stage, mininterval=5))
        job.close_step(first=True)
        while not job.over:
            job.show(job.learn())
            pace = (ctx.clock() - began) / (job.step - start)
            ctx.log.progress(job.stage, job.step, total, pace * (total - job.step))
            bar.update()
            job.close_step()
    return job.result()


class _Run:
    """Policy, optimiser and position of one job; ``step`` and ``cursor`` count finished steps and used prompts.

    A step is closed by its metrics, its validation and its checkpoint, in this order. A run that was stopped before
    that closes its last step first when it is resumed.
    """

    def __init__(self, ctx: JobContext, stack: contextlib.ExitStack) -> None:
        """``stack`` ends what has to end with the run."""
        spec = ctx.spec
        assert isinstance(spec, PeRPOSpec)
        self.ctx, self.stage = ctx, ctx.stage or STAGE
        hp = spec.hyperparameters
        precision = job_precision(ctx, hp.precision, ctx.run_folder(self.stage))
        self.hp = hp = hp.model_copy(update={"precision": precision})
        at_once = hp.rollouts_per_prompt * hp.mini_batch_prompts
        least = min(hp.max_new_tokens, hp.context or LONGEST_CONTEXT)
        require_memory(ctx, hp, largest_part(least, at_once), least)
        base = load_base(ctx, dtype=base_dtype(hp.lora, precision), context=hp.context)
        assert base.vq is not None
        if hp.reward.gamma:
            _require_calibration(base.manifest.perception, spec.base_checkpoint)
        prompts = load_prompts(ctx, base)
        held = [] if hp.validation is None else held_out(prompts, hp.validation.tasks)
        longest = prompts.longest + hp.max_new_tokens
        self.base = base = with_context_for(ctx, base, longest, hp.context)
        longest = min(longest, base.config.transformer.context_len)
        require_memory(ctx, hp, largest_part(longest, at_once), longest)
        assert base.vq is not None
        self.policy = base.transformer
        # With LoRA the frozen weights serve both.
        self.policy.requires_grad_(hp.lora is None)
        reference = shared_copy(self.policy).eval().requires_grad_(False) if hp.kl_coef else None
        begin(self.policy, hp.lora, recompute=hp.recompute, seed=spec.seed)
        self.levels = prompts.difficulty
        scorer = Scorer(base.template, base.vq.codebook, base.manifest.perception, hp.reward)
        engine = stack.enter_context(rollout_engine(ctx, base, prompts, hp))
        screen(ctx, base, prompts, scorer, hp, engine)
        self.ema = MovingAverage(self.policy, hp.ema_decay) if hp.ema_decay else None
        order = PromptOrder(len(prompts), spec.seed)
        if (custom := _open_custom(ctx, base, hp)) is not None:
            stack.callback(custom.close)
        sampler = make_sampler(base, prompts, hp, engine)
        # An average has weights of its own; actors answer for the job alone.
        shared = sampler.engine if engine is None and self.ema is None else None
        self.validation = Validation(base, held, scorer, hp, shared) if held else None
        self.collector = Collector(sampler, scorer, base.vq, prompts, order, hp, spec.seed, custom)
        self.updater = Updater(self.policy, reference, LegalIds.of(base.template, base.vocab), hp)
        self.folder = _open_run(ctx, self.stage, precision)
        self.step, self.cursor, self.metrics = 0, 0, dict[str, float]()
        self.signs = FailureSigns(precision=precision)
        self.record = Record()
        if (state := self.folder.load_state()) is not None:
            self._load(state)

    def _load(self, state: dict[str, Any]) -> None:
        load_trained_state(self.policy, state["model"])
        try:
            load_optimizer(self.updater.optimizer, state["optimizer"])
        except SettingsChanged as error:
            raise JobError("settings_changed", str(error)) from error
        self.step, self.cursor, self.metrics = state["step"], state["cursor"], state["metrics"]
        self.signs = FailureSigns(precision=self.hp.precision, state=state["signs"])
        self.record = Record(**state.get("record", {}))
        if self.ema is not None:
            self.ema.load(state["ema"])
        if self.levels is not None:
            self.levels.load(state["levels"])
        self.ctx.log.log(f"resumed after step {self.step}")

    @property
    def over(self) -> bool:
        """Whether this was the last step: all are done, or the validation has not improved for too long."""
        patience = 0 if self.hp.validation is None else self.hp.validation.patience
        return self.step >= self.hp.steps or 0 < patience <= self.record.since

    @property
    def made(self) -> Transformer:
        """The weights to validate and export: the average if there is one."""
        return self.policy if self.ema is None else self.ema.model

    def learn(self) -> StepBatch:
        """Take one step: sample, score and update; return what was sampled."""
        began = time.monotonic()
        try:
            batch = self.collector.collect(self.step, self.cursor, self.ctx.check_stop)
            drawn = time.monotonic()
            updated = self.updater.step(batch.kept, self.step) if batch.kept else {}
            check_finite(trained_state(self.policy), self.step + 1)  # before replacing a good state
            if self.ema is not None and batch.kept:
                self.ema.update(self.policy)
        except (JobStopped, PoolError):  # the step's samples are redrawn on resume: nothing was updated yet
            self.save(whole=False)
            raise
        except RewardError as error:
            self.save(whole=False)  # the earlier steps: the job can be resumed
            raise JobError(error.code, f"step {self.step + 1}: {error}; {last_good(self.ctx)}") from error
        except DataError as error:
            raise JobError("bad_data", f"step {self.step + 1}: {error}; {last_good(self.ctx)}") from error
        except FloatingPointError as error:
            raise JobError("loss_not_finite", f"step {self.step + 1}: {error}; {last_good(self.ctx)}") from error
        self.step += 1
        self.cursor += batch.num_prompts
        speed = {
            "speed/tokens_per_s": batch.num_tokens / max(1e-9, drawn - began),
            "speed/rollout_s": drawn - began,
            "speed/update_s": time.monotonic() - drawn,
        }
        levels = {} if self.levels is None else self.levels.learn(batch.seen)
        self.metrics = batch.metrics() | levels | updated | speed
        return batch

    def close_step(self, *, first: bool = False) -> None:
        """Validate, log and save the step, each at its turn.

        The session's ``first`` call is for the start, or for the step after which the run was stopped.

        Raises:
            JobStopped: a signal arrived; the state is saved.
        """
        hp, step = self.hp, self.step
        if self.validation is not None and self._is_validated() and self.record.validated != step:
            try:
                self._validate(self.validation)
            except JobStopped:
                self.save(whole=False)
                raise
        elif not first and (step % hp.log_every == 0 or step == hp.steps):
            self.ctx.log.metrics(self.stage, step, self.metrics)
        at_turn = step > 0 and (self.over or step % hp.save_every == 0 or self.record.best == step)
        if first and self.ctx.checkpoint_folder(step) in stage_checkpoints(self.ctx):
            return
        stopping = not first and bool(self.ctx.stop)
        if at_turn or stopping:
            self.save(whole=at_turn)
        if stopping and not self.over:
            raise JobStopped

    def _is_validated(self) -> bool:
        assert self.hp.validation is not None
        return self.step % self.hp.validation.every == 0 or self.step == self.hp.steps

    def _validate(self, validation: Validation) -> None:
        found = validation(self.made, self.ctx.check_stop)
        self.metrics |= found
        self.ctx.log.metrics(self.stage, self.step, self.metrics)
        if validation.errors:
            wrong = f"{len(validation.errors)} answers count as wrong ({validation.errors[0]})"
            self.ctx.log.warning("scoring_errors", f"validation at step {self.step}: {wrong}")
        self.record.add(self.step, self.metrics)
        if self.over and self.step < self.hp.steps:
            self.ctx.log.log(f"step {self.step}: the validation has not improved since step {self.record.best}")

    def save(self, *, whole: bool = True) -> None:
        """Save the state, with a checkpoint if ``whole``."""
        state = {
            "step": self.step,
            "cursor": self.cursor,
            "model": trained_state(self.policy),
            "ema": None if self.ema is None else self.ema.state(),
            "record": self.record.state(),
            "levels": None if self.levels is None else self.levels.state(),
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
                    transformer_state=MergedState(self.made),
                    run=self.folder,
                    metrics=self.metrics,
                    description=_description(self.base),
                    adapter=adapter_writer(self.made, self.hp.lora, base=self.ctx.spec.base_checkpoint),
                    keep_states=self.hp.keep_states,
                )

        needed = bytes_of(state) + (checkpoint_bytes(self.base) if whole else 0)
        save_step(self.ctx, write, step=self.step, needed=needed, last=self.over)

    def result(self) -> dict[str, Any]:
        """The job's result: the best checkpoint or the last one."""
        step, metrics = self.step, self.metrics
        if self.hp.final == "best" and self.record.best:
            step, metrics = self.record.best, self.record.values
        folder = self.ctx.checkpoint_folder(step)
        if folder not in stage_checkpoints(self.ctx):  # its turn fell on a full disk; the last one was written
            step, metrics, folder = self.step, self.metrics, self.ctx.checkpoint_folder(self.step)
        made = {"checkpoint": folder.name, "folder": str(folder), "step": step, "steps": self.step}
        made["context"] = self.base.config.transformer.context_len
        return {**made, "metrics": metrics, "precision": self.hp.precision}

    def show(self, batch: StepBatch) -> None:
        """Log sampled traces and failure signs of the last step."""
        step, hp, log = self.step, self.hp, self.ctx.log
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


def _open_custom(ctx: JobContext, base: LoadedCheckpoint, hp: PeRPOHyperparameters) -> CustomScorer | None:
    assert base.vq is not None
    try:
        return open_custom(hp.reward.custom, base.vq, stop=ctx.stop)
    except RewardError as error:
        raise JobError(error.code, error.detail) from error


def _require_calibration(perception: Perception | None, name: str) -> None:
    """Reject a scale without a cap: under it a white canvas earns most of R_Pe."""
    if perception is None or perception.energy_p95 is None:
        raise JobError(
            "uncalibrated",
            f"{name} has no scale for the perception reward, so blank drawings would earn it: run "
            "`omni-r1 calibrate CHECKPOINT --images DIR`, or set reward.gamma to 0",
        )


def _open_run(ctx: JobContext, stage: str, precision: str) -> RunFolder:
    spec, known = ctx.record({**ctx.spec.resolved(), "precision": precision}), {"precision": precision}
    try:
        return RunFolder(
            ctx.run_folder(stage),
            spec,
            resume=ctx.resume,
            defaults=known,
            upgrade=lambda old: _with_new_settings(without_old_home(old, spec)),
            disk=ctx.disk,
        )
    except SettingsChanged as error:
        raise JobError("settings_changed", str(error)) from error


def _with_new_settings(old: dict[str, Any]) -> dict[str, Any]:
    """Fill in the settings that an earlier version's record lacks, by what that version did."""
    spec = {key: value for key, value in old.items() if key != "precision"}
    try:
        whole = parse_spec({**spec, "hyperparameters": {"schedule": "constant", **spec["hyperparameters"]}})
    except (KeyError, ValidationError):
        return old
    return {**old, **whole.resolved()}


def _description(base: LoadedCheckpoint) -> str:
    return f"{base.name}, after reinforcement learning with the perception reward (PeRPO)."
