"""One loop for supervised training: the base stage (cross-entropy) and PeSFT (with the perception loss).

L = L_CE + lambda * L_Pe (Eqs. 1-3). By default W is learned: in the optimiser, saved with the state; h_t is the state
that *predicts* c_t (position t - 1); sums are divided by the counts of the whole optimiser batch, so that k
micro-batches equal one batch. The authors' code differs in all three (W random and never trained, h_t the state at the
token itself, which has already read c_t, a mean in every micro-batch): each is a setting. Weights are fp32; the forward
runs under bf16 autocast on devices with bf16 hardware, otherwise in fp32.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.nets.transformer import PackedAttention
from model.precision import PrecisionChoice, autocast
from training.data.token_sets import Batch, BatchPlan, TokenSet, make_batch, micro_batches
from training.jobs.disk import NO_WAIT, Disk
from training.jobs.loop import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    RunFolder,
    RunStopped,
    Schedule,
    StopFlag,
    adamw,
    set_lr,
)
from training.jobs.precision import BEFORE_AUTO, run_precision
from training.pesft.losses import Reduction, perception_loss, sft_loss

if TYPE_CHECKING:
    from pathlib import Path

    from model.nets.transformer import Transformer

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SFTSpec:
    """Settings of one supervised run; ``label`` and ``extra`` only name it in its folder."""

    steps: int
    lr: float
    seed: int = 0
    max_tokens: int = 6_144
    warmup: int = 100
    floor: float = 0.05
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    perception_weight: float = 0.0
    perception_reduction: Reduction = "sum"
    label: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    batch_samples: int | None = None
    micro_batches: int = 1
    normalisation: Literal["batch", "micro_batch"] = "batch"
    perception_projection: Literal["learned", "frozen"] = "learned"
    perception_state: Literal["predict", "token"] = "predict"
    precision: PrecisionChoice = "auto"

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The settings with defaults, for runs that predate a setting."""
        defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
        return {**defaults, "precision": BEFORE_AUTO}

    def make_schedule(self) -> Schedule:
        """The learning rate over the steps."""
        if self.schedule == "linear":
            return LinearSchedule(self.lr, self.steps, self.warmup)
        if self.schedule == "constant":
            return ConstantSchedule(self.lr, self.warmup)
        return CosineSchedule(self.lr, self.steps, self.warmup, self.floor)

    def make_plan(self, data: TokenSet) -> BatchPlan:
        """Plan which sequences each step uses."""
        return BatchPlan(data.lengths, self.max_tokens, self.seed, batch_samples=self.batch_samples)


def train_sft(
    spec: SFTSpec,
    transformer: Transformer,
    codebook: Tensor,
    id_to_code: Tensor,
    data: TokenSet,
    folder: Path,
    *,
    projection: nn.Linear | None = None,
    resume: bool = False,
    save_every: int = 200,
    log_every: int = 25,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    on_save: Callable[[int, RunFolder, State], None] | None = None,
    on_step: Callable[[int], None] | None = None,
    stop: Any = None,
    disk: Disk = NO_WAIT,
) -> nn.Linear:
    """Train ``transformer`` in place; return the projection W.

    Args:
        spec: the settings, written into the folder.
        transformer: fp32 weights to start from (a resumed run overwrites them with its own).
        codebook: E [K, D], frozen.
        id_to_code: [V] codebook index of a token id, -1 for other ids.
        data: the sequences.
        folder: for metrics and state.
        projection: W to continue with; None: a new one.
        resume: continue from the state in ``folder``.
        save_every: steps between two saved states.
        log_every: steps between two rows of metrics.
        on_log: called with (step, metrics) for every logged step.
        on_save: called with (step, run, state) instead of ``run.save_state(state)``; also once for a resumed run that
            is already complete.
        on_step: called after each step with the number of finished steps.
        stop: true once the run should stop; None: stop on SIGINT and SIGTERM.
        disk: disk of ``folder``.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the last saved state is kept.
        RunStopped: the run was stopped; the state is saved.
    """
    device = str(transformer.device)
    spec = replace(spec, precision=run_precision(spec.precision, device, folder, resume=resume))
    run = RunFolder(folder, asdict(spec), resume=resume, defaults=SFTSpec.defaults(), disk=disk)
    if projection is None:
        projection = make_projection(spec, transformer.config.hidden_size, codebook.shape[1])
    projection = projection.to(device)
    modules: list[nn.Module] = [transformer]
    if spec.perception_weight and spec.perception_projection == "learned":
        modules.append(projection)
    optimizer = adamw(modules, weight_decay=spec.weight_decay, betas=spec.betas)
    schedule = spec.make_schedule()
    start = 0
    if (state := run.load_state()) is not None:
        transformer.load_state_dict(state["model"])
        projection.load_state_dict(state["projection"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    def save(step: int) -> None:
        state = {
            "step": step,
            "model": transformer.state_dict(),
            "projection": projection.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        if on_save is None:
            run.save_state(state)
        else:
            on_save(step, run, state)

    if start >= spec.steps:
        save(start)
        return projection
    plan = spec.make_plan(data)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    tokens, seconds = 0, 0.0  # of the steps alone, without looks and saves
    quiet = None if on_log is not None else False  # no progress bar when metrics have a receiver
    watch = StopFlag() if stop is None else contextlib.nullcontext(stop)
    with (
        watch as stopping,
        tqdm(total=spec.steps, initial=start, desc=spec.label or "sft", mininterval=5, disable=quiet) as bar,
    ):
        for step in range(start, spec.steps):
            began = time.monotonic()
            set_lr(optimizer, schedule.lr(step))
            optimizer.zero_grad(set_to_none=True)
            by = "tokens" if spec.batch_samples is None else "samples"
            parts = micro_batches(plan[step], data.lengths, spec.micro_batches, by=by)
            batches = [make_batch(data, part, id_to_code, device) for part in parts]
            loss, metrics = accumulate(transformer, projection, codebook, batches, spec)
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss of step {step + 1} is {loss}; the last saved state is kept")
            norm = torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
            if not torch.isfinite(norm):
                raise FloatingPointError(
                    f"the gradient of step {step + 1} is {norm.item()}; the last saved state is kept"
                )
            optimizer.step()
            tokens += sum(batch.num_tokens for batch in batches)
            seconds += time.monotonic() - began
            bar.update()
            if (step + 1) % log_every == 0 or step + 1 == spec.steps:
                metrics |= {"optim/grad_norm": norm.item(), "optim/lr": schedule.lr(step)}
                metrics["speed/tokens_per_s"] = tokens / max(seconds, 1e-9)
                tokens, seconds = 0, 0.0
                run.log(step + 1, metrics)
                bar.set_postfix(loss=f"{loss:.3f}", tok_s=f"{metrics['speed/tokens_per_s']:.0f}")
                if on_log is not None:
                    on_log(step + 1, metrics)
            if on_step is not None:
                on_step(step + 1)
            stopped = bool(stopping)
            if (step + 1) % save_every == 0 or step + 1 == spec.steps or stopped:
                save(step + 1)
            if stopped and step + 1 < spec.steps:
                raise RunStopped
    return projection


def make_projection(spec: SFTSpec, hidden_size: int, code_dim: int) -> nn.Linear:
    """Initialise W: zeros if learned, the authors' random biased map if frozen."""
    if spec.perception_projection == "learned":
        projection = nn.Linear(hidden_size, code_dim, bias=False)
        nn.init.zeros_(projection.weight)  # a random map would pull the transformer in random directions at first
        return projection
    generator = torch.Generator().manual_seed(spec.seed)
    projection = nn.Linear(hidden_size, code_dim)
    for parameter in projection.parameters():
        nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5, generator=generator)
    return projection.requires_grad_(False)


def accumulate(
    transformer: Transformer, projection: nn.Linear, codebook: Tensor, batches: Sequence[Batch], spec: SFTSpec
) -> tuple[float, dict[str, float]]:
    """Accumulate the gradients of the parts of one optimiser batch; return its loss and metrics."""
    targets, codes = sum(len(b.targets) for b in batches), sum(len(b.codes) for b in batches)
    loss, rows = 0.0, []
    for batch in batches:
        if spec.normalisation == "batch":
            part, metrics = batch_loss(transformer, projection, codebook, batch, spec, targets, codes)
        else:
            part, metrics = batch_loss(transformer, projection, codebook, batch, spec)
            part = part / len(batches)
            metrics["loss/ce"] /= len(batches)
        part.backward()
        loss += part.item()
        rows.append(metrics)
    if len(rows) == 1:
        return loss, rows[0]
    counts = [len(b.codes) for b in batches]
    weights = {
        "loss/ce": [1.0] * len(rows),
        "loss/text": [(len(b.targets) - len(b.codes)) / max(1, targets - codes) for b in batches],
        "loss/image": [count / max(1, codes) for count in counts],
        "loss/perception": [count / max(1, codes) for count in counts],
    }
    return loss, {
        name: sum(row[name] * weight for row, weight in zip(rows, weights[name], strict=True)) for name in rows[0]
    }


def batch_loss(
    transformer: Transformer,
    projection: nn.Linear,
    codebook: Tensor,
    batch: Batch,
    spec: SFTSpec,
    num_targets: int | None = None,
    num_codes: int | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """L_CE + lambda * L_Pe of one packed batch, and its parts.

    Args:
        transformer: and W and E, see :func:`train_sft`.
        projection: W.
        codebook: E.
        batch: the batch, or one part of it.
        spec: the settings.
        num_targets: response tokens of the whole optimiser batch; this one's when absent.
        num_codes: image-code positions of the whole optimiser batch; this one's when absent.
    """
    with autocast(spec.precision, batch.ids.device):
        hidden = transformer(batch.ids, batch.layout.positions, PackedAttention(batch.layout))
        predicting = hidden[batch.predictors]
        logits = transformer.logits(predicting)
        projected = None
        if spec.perception_weight:
            states = predicting if spec.perception_state == "predict" else hidden[batch.predictors + 1]
            projected = projection(states[batch.is_code])
    loss, metrics = sft_loss(logits, batch.targets, batch.is_code, num_targets or len(batch.targets))
    metrics["loss/ce"] = loss.item()
    if projected is not None:
        pe, pe_metrics = perception_loss(
            projected,
            batch.codes,
            codebook,
            len(batch.codes) if num_codes is None else num_codes,
            reduction=spec.perception_reduction,
        )
        loss = loss + spec.perception_weight * pe
        metrics |= pe_metrics
    return loss, metrics
