"""What a run samples from: its prompts, those held out, the engine and the sampler.

Knows no optimiser.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.config import LONGEST_CONTEXT
from training.cluster.rollouts import remote_engines
from training.data.rows import DataError
from training.jobs.context import JobContext, JobError
from training.jobs.lora import settings_of
from training.perpo.family_prompts import FamilyPrompts
from training.perpo.prompts import FilePrompts, PromptSet, WorldPrompts
from training.perpo.rollout import Generates, Prompt, Sampler, context_for
from training.perpo.screening import screened
from training.scoring.rewards import Scorer
from training.spec.hyperparameters import PeRPOHyperparameters
from training.spec.spec import PeRPOSpec, TasksData, UniTasksData

STAGE = "perpo"


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
        if isinstance(spec.data, TasksData):
            judged = bool(spec.hyperparameters.reward.functional)
            return FamilyPrompts(spec.data, spec.seed, base.template, base.vq, judged=judged)
        own = base.config.transformer.context_len  # which grows to what the longest prompt asks for, unless it is given
        context_len = own if spec.hyperparameters.context else max(own, LONGEST_CONTEXT)
        found = FilePrompts(spec.data, base.template, base.vq, context_len=context_len)
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


def held_out(prompts: PromptSet, count: int) -> list[Prompt]:
    """The prompts of the validation; raises JobError ``bad_spec``."""
    with _bad_spec():
        return prompts.hold_out(count)


def screen(
    ctx: JobContext,
    base: LoadedCheckpoint,
    prompts: PromptSet,
    scorer: Scorer,
    hp: PeRPOHyperparameters,
    engine: Generates | None,
) -> None:
    """Keep the prompts worth learning from, if the specification asks for a screening."""
    spec = ctx.spec
    assert isinstance(spec, PeRPOSpec)
    if isinstance(spec.data, UniTasksData | TasksData) or not isinstance(prompts, FilePrompts) or not spec.data.screen:
        return
    sampler = make_sampler(base, prompts, hp.model_copy(update={"rollouts_per_prompt": spec.data.screen}), engine)
    wanted = {"data": ctx.record(spec.data.model_dump(mode="json")), "base": spec.base_checkpoint, "seed": spec.seed}
    every = prompts.take(range(len(prompts)))
    prompts.keep(screened(ctx, every, sampler, scorer, wanted, ctx.run_folder(ctx.stage or STAGE)))


@contextlib.contextmanager
def rollout_engine(
    ctx: JobContext, base: LoadedCheckpoint, prompts: PromptSet, hp: PeRPOHyperparameters
) -> Iterator[Generates | None]:
    """The run's actors on a Ray cluster; None if it samples by itself.

    Raises:
        JobError: ``bad_spec``.
    """
    if not hp.rollout_actors:
        yield None
        return
    with _bad_spec():
        context = context_for(base.transformer, prompts.longest, hp.max_new_tokens)
    lora = None if hp.lora is None else settings_of(hp.lora)
    text_ids = base.template.text_legal_ids()
    with remote_engines(
        ctx, base.transformer, base.vocab, text_ids, count=hp.rollout_actors, context_len=context, lora=lora
    ) as engines:
        yield engines


def make_sampler(
    base: LoadedCheckpoint, prompts: PromptSet, hp: PeRPOHyperparameters, engine: Generates | None = None
) -> Sampler:
    """A sampler for these prompts, perhaps with an engine elsewhere; raises JobError ``bad_spec``."""
    with _bad_spec():
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
            engine=engine,
        )


@contextlib.contextmanager
def _bad_spec() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise JobError("bad_spec", str(error)) from error
