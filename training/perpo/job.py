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
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
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
from training.perpo.failure_signs import FailureSigns
from training.perpo.prompts import FilePrompts, PromptOrder, PromptSet, WorldPrompts
from training.perpo.rollout import RolloutGroup, Sampler
from training.perpo.update import Updater
from training.scoring.rewards import RewardBreakdown, Scorer, reward_metrics, score_all
from training.spec.hyperparameters import PeRPOHyperparameters
from training.spec.spec import PeRPOSpec, UniTasksData

STAGE = "perpo"


@dataclass
class StepBatch:
    """Groups sampled in one step, and those it learns from."""

    seen: list[RolloutGroup] = field(default_factory=list)
    kept: list[RolloutGroup] = field(default_factory=list)
    dropped: int = 0
    refills: int = 0
    errors: list[str] = field(default_factory=list)
    num_prompts: int = 0

    def rewards(self) -> list[RewardBreakdown]:
        """Rewards of all scored trajectories."""
        return [r.reward for group in self.seen for r in group.rollouts if r.reward is not None]


def run(ctx: JobContext) -> dict[str, Any]:
    """Run the job; return the last checkpoint and the metrics of the last step.

    Raises:
        JobError: base or data are unusable, scoring fails, the loss is not finite, or the last save fails.
        JobStopped: a signal arrived; the state is saved.
    """
    spec = ctx.spec
    assert isinstance(spec, PeRPOSpec)
    hp = spec.hyperparameters
    base = load_base(ctx)
    policy, stage = base.transformer, ctx.stage or STAGE
    reference = copy.deepcopy(policy).eval().requires_grad_(False) if hp.kl_coef else None
    precision = job_precision(ctx, hp.precision, ctx.run_folder(stage))
    hp = hp.model_copy(update={"precision": precision})
    prompts = load_prompts(ctx, base)
    order = PromptOrder(len(prompts), spec.seed)
    sampler = _sampler(base, prompts, hp)
    assert base.vq is not None
    scorer = Scorer(base.template, base.vq.codebook, base.manifest.perception, hp.reward)
    updater = Updater(policy, reference, LegalIds.of(base.template, base.vocab), hp)
    run_folder, state = _open_run(ctx, stage, precision)
    start, cursor, signs = 0, 0, FailureSigns(precision=hp.precision)
    metrics: dict[str, float] = {}
    if state is not None:
        policy.load_state_dict(state["model"])
        updater.optimizer.load_state_dict(state["optimizer"])
        start, cursor, metrics = state["step"], state["cursor"], state["metrics"]
        signs = FailureSigns(precision=hp.precision, state=state["signs"])
        ctx.log.log(f"resumed after step {start}")

    def save(step: int, *, whole: bool = True) -> None:
        """Save the state, with a checkpoint if ``whole``."""
        weights = policy.state_dict()
        state = {
            "step": step,
            "cursor": cursor,
            "model": weights,
            "optimizer": updater.optimizer.state_dict(),
            "signs": signs.state(),
            "metrics": metrics,
        }

        def write() -> None:
            run_folder.save_state(state)
            if whole:
                save_training_checkpoint(
                    ctx,
                    base,
                    stage=stage,
                    step=step,
                    transformer_state=weights,
                    run=run_folder,
                    metrics=metrics,
                    description=_description(base),
                    keep_states=hp.keep_states,
                )

        needed = bytes_of(state) + (checkpoint_bytes(base, weights) if whole else 0)
        save_step(ctx, write, step=step, needed=needed, last=step == hp.steps)

    began = ctx.clock()
    ctx.log.progress(stage, start, hp.steps)
    with tqdm(total=hp.steps, initial=start, desc=stage, mininterval=5) as bar:
        for step in range(start, hp.steps):
            tick = time.monotonic()
            try:
                batch = collect(
                    sampler, scorer, prompts, order, cursor, hp, seed=spec.seed, step=step, check_stop=ctx.check_stop
                )
                drawn = time.monotonic()
                updated = updater.step(batch.kept, step) if batch.kept else {}
                check_finite(policy.state_dict(), step + 1)  # before replacing a good state
            except JobStopped:  # the step's samples are redrawn on resume: nothing was updated yet
                save(step, whole=False)
                raise
            except FloatingPointError as error:
                raise JobError("loss_not_finite", f"step {step + 1}: {error}; {last_good(ctx)}") from error
            cursor += batch.num_prompts
            metrics = batch_metrics(batch, hp) | updated
            metrics |= _speed(batch, drawn - tick, time.monotonic() - drawn)
            _log_step(ctx, stage, step + 1, batch, metrics, signs, hp, base)
            left = hp.steps - step - 1
            ctx.log.progress(stage, step + 1, hp.steps, (ctx.clock() - began) / (step + 1 - start) * left)
            bar.update()
            last, stopping = step + 1 == hp.steps, bool(ctx.stop)
            at_turn = last or (step + 1) % hp.save_every == 0
            if at_turn or stopping:
                save(step + 1, whole=at_turn)
            if stopping and not last:
                raise JobStopped
    if ctx.checkpoint_folder(hp.steps) not in stage_checkpoints(
        ctx
    ):  # resumed between the last state and its checkpoint
        save(hp.steps)
    folder = ctx.checkpoint_folder(hp.steps)
    made = {"checkpoint": folder.name, "folder": str(folder), "step": hp.steps}
    return {**made, "metrics": metrics, "precision": precision}


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
    if not len(found):
        raise JobError("no_samples", f"no prompt is left: {found.intake.summary()}")
    return found


def collect(
    sampler: Sampler,
    scorer: Scorer,
    prompts: PromptSet,
    order: PromptOrder,
    cursor: int,
    hp: PeRPOHyperparameters,
    *,
    seed: int,
    step: int,
    check_stop: Callable[[], None] = lambda: None,
) -> StepBatch:
    """Sample and score groups until a step has enough to learn from, or its refills are used up.

    A refill samples as many prompts as the missing groups need at the same oversampling. Unscored trajectories are
    excluded from their groups. ``check_stop`` is called after every trajectory and may raise.

    Raises:
        JobError: ``scoring_failed``, if too large a share of the trajectories could not be scored.
    """
    batch = StepBatch()
    for round_ in range(hp.refill_rounds + 1):
        missing = hp.prompts_per_step - len(batch.kept)
        if missing <= 0:
            break
        count = math.ceil(missing * hp.oversampling)
        chosen = prompts.take([order[cursor + batch.num_prompts + i] for i in range(count)])
        groups = sampler.sample(chosen, seed=seed, step=step, first=batch.num_prompts, on_finish=lambda _: check_stop())
        batch.refills, batch.num_prompts = round_, batch.num_prompts + count
        for group in groups:
            _score(group, scorer, batch)
            batch.seen.append(group)
            learnt = RolloutGroup(group.prompt, [r for r in group.rollouts if r.reward is not None])
            if not is_informative(learnt, hp.filter_metric):
                batch.dropped += 1
            elif len(batch.kept) < hp.prompts_per_step:
                batch.kept.append(learnt)
        trajectories = sum(len(group.rollouts) for group in batch.seen)
        if len(batch.errors) > hp.reward.max_error_share * trajectories:
            raise JobError(
                "scoring_failed",
                f"step {step + 1}: {len(batch.errors)} of {trajectories} trajectories could not be scored "
                f"({batch.errors[0]})",
            )
    return batch


def _score(group: RolloutGroup, scorer: Scorer, batch: StepBatch) -> None:
    """Score a group and set its advantages."""
    prompt = group.prompt
    seen = prompt.images[-1] if prompt.images else None
    score = partial(
        scorer.score, seen=seen, choices=prompt.choices, identity_steps=prompt.identity_steps, exact=prompt.exact
    )
    scores = score_all(partial(score, r.token_ids, prompt.reference) for r in group.rollouts)
    batch.errors += scores.errors
    for rollout, reward in zip(group.rollouts, scores.rewards, strict=True):
        rollout.reward = reward


def is_informative(group: RolloutGroup, metric: str) -> bool:
    """Whether a group's trajectories differ in the metric."""
    if len(group.rollouts) < 2:
        return False
    if metric == "none":
        return True
    values: list[float] = [getattr(r.reward, metric) for r in group.rollouts]
    return max(values) - min(values) > 1e-9


def batch_metrics(batch: StepBatch, hp: PeRPOHyperparameters) -> dict[str, float]:
    """Rewards, images, groups and lengths of all samples of a step, dropped groups included."""
    rollouts = [r for group in batch.seen for r in group.rollouts]
    return {
        **reward_metrics(batch.rewards()),
        "groups/dropped_share": batch.dropped / max(1, len(batch.seen)),
        "groups/kept": float(len(batch.kept)),
        "groups/refills": float(batch.refills),
        "groups/skipped": float(not batch.kept),
        "scoring/error_share": len(batch.errors) / max(1, len(rollouts)),
        "response/len": sum(len(r.token_ids) for r in rollouts) / max(1, len(rollouts)),
        "response/length_stops": sum(r.finish_reason == "length" for r in rollouts) / max(1, len(rollouts)),
    }


def _speed(batch: StepBatch, drawing: float, updating: float) -> dict[str, float]:
    drawn = sum(len(r.token_ids) for group in batch.seen for r in group.rollouts)
    return {
        "speed/tokens_per_s": drawn / max(1e-9, drawing),
        "speed/rollout_s": drawing,
        "speed/update_s": updating,
    }


def _log_step(
    ctx: JobContext,
    stage: str,
    step: int,
    batch: StepBatch,
    metrics: dict[str, float],
    signs: FailureSigns,
    hp: PeRPOHyperparameters,
    base: LoadedCheckpoint,
) -> None:
    """Log metrics, sampled traces and failure signs."""
    if step % hp.log_every == 0 or step == hp.steps:
        ctx.log.metrics(stage, step, metrics)
    if step % hp.sample_every == 0:
        _show(ctx, stage, step, batch, base)
    if batch.errors:
        ctx.log.warning(
            "scoring_errors", f"step {step}: {len(batch.errors)} trajectories were left out ({batch.errors[0]})"
        )
    if len(batch.kept) < hp.prompts_per_step:
        ctx.log.log(f"step {step}: {len(batch.kept)} of {hp.prompts_per_step} groups after {batch.refills} refills")
    if not batch.kept:
        ctx.log.warning("degenerate_groups", f"step {step}: no group was left to learn from; the step changed nothing")
    for code, detail in signs.check(step, metrics):
        ctx.log.warning(code, f"step {step}: {detail}")


def _show(ctx: JobContext, stage: str, step: int, batch: StepBatch, base: LoadedCheckpoint) -> None:
    """Log the best and the worst trajectory of one group as sample events, a different group every step."""
    groups = batch.kept or batch.seen
    if not groups:
        return
    number = step % len(groups)
    prompt = groups[number].prompt
    scored = sorted(((r.reward, r) for r in groups[number].rollouts if r.reward), key=lambda pair: -pair[0].total)
    assert base.vq is not None
    for reward, rollout in scored if len(scored) < 2 else (scored[0], scored[-1]):
        codes = [c for _, c in reward.steps if c is not None]
        images = iter(decode_codes(base.vq, [*prompt.images[-1:], *codes]))
        question = next(images) if prompt.images else None
        ctx.log.sample(
            stage,
            step,
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


def _open_run(ctx: JobContext, stage: str, precision: str) -> tuple[RunFolder, dict[str, Any] | None]:
    spec, known = ctx.record({**ctx.spec.resolved(), "precision": precision}), {"precision": precision}
    try:
        folder = RunFolder(
            ctx.run_folder(stage),
            spec,
            resume=ctx.resume,
            defaults=known,
            upgrade=lambda old: without_old_home(old, spec),
            disk=ctx.disk,
        )
    except SettingsChanged as error:
        raise JobError("settings_changed", str(error)) from error
    return folder, folder.load_state()


def _description(base: LoadedCheckpoint) -> str:
    return f"{base.name}, after reinforcement learning with the perception reward (PeRPO)."
