"""Training checkpoints: servable folders with the training state next to the weights.

``checkpoints/<prefix>-step-<N>/`` is a complete checkpoint (bf16, the base's VQ byte for byte), and its ``train/``
holds the training-only files: ``state.pt`` (fp32 masters, optimiser, step; the file that the run resumes from),
``perception.safetensors`` (W) and ``train.json`` (step, seed, specification). One rename publishes everything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint.checkpoint import VQ_FILE, LoadedCheckpoint, load_checkpoint, save_checkpoint
from model.checkpoint.manifest import Capabilities
from model.checkpoint.memory import parameters
from model.checkpoint.shards import CheckpointError
from model.config import LONGEST_CONTEXT
from model.text.template import TemplateName
from training.jobs.context import JobContext, JobError
from training.jobs.disk import TRAIN, is_full
from training.jobs.loop import RunFolder

ADAPTER_FOLDER = "adapter"  # in a checkpoint: the LoRA pairs in PEFT's layout, already merged into its weights
_STEP = re.compile(r"-step-(\d+)$")

SAVE_ERRORS = (OSError, SafetensorError)  # full-disk errors, depending on the writer


def load_base(
    ctx: JobContext,
    *,
    template: TemplateName | None = None,
    must_draw: bool = True,
    dtype: torch.dtype = torch.float32,
    context: int | None = None,
) -> LoadedCheckpoint:
    """Load the base checkpoint, trainable on the job's device; its VQ is frozen.

    Args:
        ctx: the job.
        template: overrides the base's own.
        must_draw: whether the training data has images.
        dtype: of the transformer; bf16 for weights that stay frozen.
        context: of a sequence; None: the base's own.

    Raises:
        JobError: ``bad_checkpoint``, or ``base_cannot_see`` or ``base_cannot_draw`` without a VQ or decoder.
    """
    try:
        # Weights to be spread move to the device part by part.
        device = ctx.device if ctx.ranks.size == 1 else "cpu"
        base = load_checkpoint(ctx.base_folder, device=device, template=template, dtype=dtype, context_len=context)
    except CheckpointError as error:
        raise JobError("bad_checkpoint", f"{error.code}: {error.detail}") from error
    name = ctx.spec.base_checkpoint
    if not base.can_see:
        raise JobError("base_cannot_see", f"{name} has no VQ: it cannot read images, so it cannot learn from them")
    if must_draw and not base.can_draw:
        raise JobError(
            "base_cannot_draw",
            f"{name} has no VQ decoder: its images could not be shown; use a base with a "
            "decoder, or train on text alone",
        )
    if base.vq is not None:
        base.vq.to(ctx.device)
    base.transformer.train().requires_grad_(True)
    return base


def with_context_for(ctx: JobContext, base: LoadedCheckpoint, wanted: int, given: int | None) -> LoadedCheckpoint:
    """The base with a context of ``wanted`` tokens, at most `LONGEST_CONTEXT`, unless its own is longer or ``given``.

    Logs a warning if sequences of ``wanted`` tokens do not fit.
    """
    own = base.config.transformer.context_len
    context = own if given is not None else max(own, min(wanted, LONGEST_CONTEXT))
    if wanted > context:
        detail = f"the job's lengths ask for {wanted:,} tokens, and its context has {context:,}: longer ones do not fit"
        ctx.log.warning("context_exceeded", detail)
    if context == own:
        return base
    ctx.log.log(f"the context is {context:,} tokens, instead of the base's {own:,}")
    base.transformer.set_context(context)
    return replace(base, config=base.config.with_context(context))


def save_training_checkpoint(
    ctx: JobContext,
    base: LoadedCheckpoint,
    *,
    stage: str,
    step: int,
    transformer_state: Mapping[str, Tensor],
    run: RunFolder,
    metrics: Mapping[str, float],
    description: str,
    perception: Mapping[str, Tensor] | None = None,
    adapter: Callable[[Path], None] | None = None,
    keep_states: int = 3,
) -> Path:
    """Write and announce the checkpoint of a step. ``run.state_path`` must hold the state of that step.

    Args:
        ctx: the job.
        base: source of config, tokenizer, VQ and manifest.
        stage: ``pesft``, ``perpo`` or ``zero``.
        step: finished steps.
        transformer_state: the weights, on any device.
        run: the run whose state is included.
        metrics: the latest metrics, for the list of checkpoints.
        description: for the model card.
        perception: state of W, if any.
        adapter: writes the LoRA adapter of a checkpoint into a folder, if there is one.
        keep_states: number of the stage's newest checkpoints that keep ``train/``.

    Raises:
        OSError, SafetensorError: the write failed; nothing is visible then.
    """
    folder = ctx.checkpoint_folder(step)
    manifest = replace(
        base.manifest,
        name=folder.name,
        template=base.template.name,
        base=ctx.spec.base_checkpoint,
        description=description,
        verifier="",  # training on traces forgets it
        capabilities=Capabilities(images_in_answer=base.can_draw, images_in_question=base.can_see),
        lineage={
            "stage": stage,
            "job": ctx.job_id,
            "step": step,
            "start": base.name,
            "spec": ctx.record(ctx.spec.resolved()),
            "metrics": {k: round(float(v), 6) for k, v in metrics.items()},
            **ctx.provenance,
        },
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files={},
        derived=False,
    )
    vq_file = base.folder / VQ_FILE

    def write_train(staging: Path) -> None:
        train = staging / TRAIN
        train.mkdir()
        _link_or_copy(run.state_path, train / "state.pt")
        if perception is not None:
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in perception.items()}, train / "perception.safetensors"
            )
        if adapter is not None:
            adapter(staging / ADAPTER_FOLDER)
        spec = ctx.record(ctx.spec.resolved())
        about = {"step": step, "stage": stage, "seed": ctx.spec.seed, "spec": spec, **ctx.provenance}
        (train / "train.json").write_text(json.dumps(about, indent=2, default=str) + "\n", "utf-8")

    save_checkpoint(
        folder,
        config=base.config,
        transformer_state=transformer_state,
        tokenizer=base.folder / "tokenizer.json",
        manifest=manifest,
        vq_state=None if vq_file.exists() or base.vq is None else base.vq.state_dict(),
        vq_file=vq_file if vq_file.exists() else None,
        generation=base.generation,
        write_extra=write_train,
        overwrite=True,
    )
    ctx.log.checkpoint(folder.name, folder, stage, step, metrics)
    for old in stage_checkpoints(ctx)[:-keep_states]:
        shutil.rmtree(old / TRAIN, ignore_errors=True)
    return folder


def check_finite(state: Mapping[str, Tensor], step: int) -> None:
    """Raise FloatingPointError if a weight is not finite; call before replacing a good state."""
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{name} is not finite after step {step}")


def stage_checkpoints(ctx: JobContext) -> list[Path]:
    """The stage's complete checkpoints, by step."""
    prefix = ctx.checkpoint_name(0).removesuffix("0")
    found = [
        path
        for path in (ctx.folder / "checkpoints").glob("*")
        if path.name.startswith(prefix) and _STEP.search(path.name) and (path / "manifest.json").exists()
    ]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """Parse the step from a checkpoint's name."""
    match = _STEP.search(folder.name)
    return int(match[1]) if match else 0


def last_good(ctx: JobContext) -> str:
    """A sentence about the stage's newest complete checkpoint."""
    found = stage_checkpoints(ctx)
    if not found:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {found[-1].name}"


def save_step(ctx: JobContext, write: Callable[[], object], *, step: int, needed: int, last: bool) -> None:
    """Save the state and checkpoint of a step, waiting for disk space if needed.

    On other errors the job logs a warning and continues, unless this is the last step.

    Args:
        ctx: the job.
        write: performs the save; may be called again.
        step: finished steps.
        needed: required bytes.
        last: whether it is the last step.

    Raises:
        JobError: ``save_failed``, on the last step.
        OSError, SafetensorError: the disk is full and the job is stopping.
    """
    try:
        ctx.disk.write(write, needed=needed)
    except SAVE_ERRORS as error:
        if is_full(error) and ctx.disk.waits:
            raise
        _save_failed(ctx, error, step=step, final=last or bool(ctx.stop))


def bytes_of(state: Any) -> int:
    """Size of a state's tensors when saved."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    items = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(bytes_of(item) for item in items)


def checkpoint_bytes(base: LoadedCheckpoint) -> int:
    """Size of a checkpoint in addition to its run state: weights in bf16, and the base's files."""
    others = sum(path.stat().st_size for path in base.folder.iterdir() if path.is_file() and _is_copied(path))
    return 2 * parameters(base.config.transformer) + others


def _is_copied(path: Path) -> bool:
    return path.name == VQ_FILE or path.suffix != ".safetensors"


def _save_failed(ctx: JobContext, error: BaseException, *, step: int, final: bool) -> None:
    detail = f"the checkpoint of step {step} could not be written ({error}); {last_good(ctx)}"
    if final:
        raise JobError("save_failed", detail) from error
    ctx.log.warning("save_failed", f"{detail}; the next one is tried at its turn")


def _link_or_copy(source: Path, target: Path) -> None:
    """Link or copy a file: the run replaces its state by renaming, so the checkpoint keeps its own."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
