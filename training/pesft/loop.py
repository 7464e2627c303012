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
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.nets.lora import trained_state
from model.nets.transformer import PackedAttention
from model.precision import PrecisionChoice, autocast
from model.seeds import mixed_seed
from training.data.token_sets import Batch, BatchPlan, TokenSet, make_batch, micro_batches
from training.jobs.disk import NO_WAIT
from training.jobs.loop import (
    FollowedRun,
    RunFolder,
    RunStopped,
    StopFlag,
    adamw,
    load_optimizer,
    set_lr,
)
from training.jobs.precision import BEFORE_AUTO, run_precision
from training.jobs.schedules import Decline, Schedule, make_schedule
from training.parallel.group import ALONE, Ranks
from training.parallel.sharding import gathered, load_sharded, shard, spread_optimizer, whole
from training.pesft.losses import Reduction, perception_loss, reduce_nll, target_nll

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from model.nets.transformer import Transformer
    from training.jobs.stop import Stop

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SFTSpec:
    """Settings of one supervised run.

    ``label`` and ``extra`` only name it in its folder; ``lora`` and ``recompute`` record what the transformer has.
    """

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
    schedule: Decline = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)
    batch_samples: int | None = None
    micro_batches: int = 1
    normalisation: Literal["batch", "micro_batch"] = "batch"
    perception_projection: Literal["learned", "frozen"] = "learned"
    perception_state: Literal["predict", "token"] = "predict"
    precision: PrecisionChoice = "auto"
    lora: dict[str, Any] | None = None
    recompute: bool = False

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The settings with defaults, for runs that predate a setting."""
        defaults = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
        return {**defaults, "precision": BEFORE_AUTO}

    def make_schedule(self) -> Schedule:
        """The learning rate over the steps."""
        return make_schedule(self.schedule, self.lr, self.steps, self.warmup, floor=self.floor)

    def parts(self, indices: np.ndarray, lengths: np.ndarray, ranks: int) -> list[np.ndarray]:
        """Split a batch into what is computed at once, equally many parts for each rank."""
        by = "tokens" if self.batch_samples is None else "samples"
        return micro_batches(indices, lengths, -(-self.micro_batches // ranks) * ranks, by=by)

    def make_plan(self, data: TokenSet) -> BatchPlan:
        """Plan which sequences each step uses."""
        return BatchPlan(data.lengths, self.max_tokens, self.seed, batch_samples=self.batch_samples)


@dataclass(frozen=True, slots=True)
class SFTModel:
    """The weights that a run trains in place, and the codebook that they are compared with.

    Attributes:
        transformer: in fp32.
        codebook: E [K, D], frozen.
        id_to_code: [V] codebook index of a token id, -1 for other ids.
        projection: W, from the transformer's width to D.
    """

    transformer: Transformer
    codebook: Tensor
    id_to_code: Tensor
    projection: nn.Linear

    @classmethod
    def start(cls, spec: SFTSpec, transformer: Transformer, codebook: Tensor, id_to_code: Tensor) -> SFTModel:
        """The model with a new W."""
        projection = make_projection(spec, transformer.config.hidden_size, codebook.shape[1])
        return cls(transformer, codebook, id_to_code, projection)

    def spread(self, ranks: Ranks, device: str) -> None:
        """Shard the weights over the ranks, layer by layer; with one rank, nothing changes."""
        if ranks.size > 1:
            shard(ranks, torch.device(device), self.transformer, list(self.transformer.model.layers))
            shard(ranks, torch.device(device), self.projection)


class RunHost:
    """Receives a run's progress and states, and may stop it; a job overrides what it needs."""

    save_every = 200  # steps
    log_every = 25  # steps
    quiet: bool | None = False  # None: no progress bar outside a terminal
    stop: Stop | None = None  # None: SIGINT and SIGTERM stop the run
    disk = NO_WAIT

    def on_log(self, step: int, metrics: dict[str, float]) -> None:
        """Called for every logged step; ``step`` is the number of finished steps, here and below."""

    def on_step(self, step: int) -> None:
        """Called after every step."""

    def on_save(self, step: int, run: RunFolder, state: State) -> None:
        """Save the state; also called once for a resumed run that is already complete."""
        run.save_state(state)


def train_sft(
    spec: SFTSpec,
    model: SFTModel,
    data: TokenSet,
    folder: Path,
    *,
    resume: bool = False,
    host: RunHost | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Train ``model`` in place; a resumed run overwrites it with its own state first.

    Several ranks take the steps of one: each has its parts of every batch, and the state that rank 0 saves is that of a
    run on one device.

    Args:
        spec: the settings, written into the folder.
        model: the weights to start from, spread over the ranks (:meth:`SFTModel.spread`).
        data: the sequences.
        folder: for metrics and state.
        resume: continue from the state in ``folder``.
        host: None: save to the folder alone. Rank 0's receives the progress.
        ranks: the processes that train together.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the last saved state is kept.
        RunStopped: the run was stopped; the state is saved.
    """
    host = host or RunHost()
    device = str(model.transformer.device)
    model.projection.to(device)
    spec = replace(spec, precision=run_precision(spec.precision, device, folder, resume=resume))
    run = _open(folder, spec, resume, host, ranks)
    learner = _Learner(spec, model, data, ranks)
    if (state := run.load_state()) is not None:
        learner.load(state)
    if learner.done >= spec.steps:
        _save(host, learner, run)
        return
    quiet = host.quiet if ranks.first else True
    watch = StopFlag() if host.stop is None else contextlib.nullcontext(host.stop)
    bar = tqdm(total=spec.steps, initial=learner.done, desc=spec.label or "sft", mininterval=5, disable=quiet)
    with watch as stopping, bar:
        while learner.done < spec.steps:
            metrics = learner.step()
            step, last = learner.done, learner.done == spec.steps
            bar.update()
            if step % host.log_every == 0 or last:
                metrics["speed/tokens_per_s"] = learner.pace()
                run.log(step, metrics)
                bar.set_postfix(loss=f"{learner.loss:.3f}", tok_s=f"{metrics['speed/tokens_per_s']:.0f}")
                if ranks.first:
                    host.on_log(step, metrics)
            if ranks.first:
                host.on_step(step)
            stopped = ranks.any(bool(stopping))
            if step % host.save_every == 0 or last or stopped:
                _save(host, learner, run)
            if stopped and not last:
                raise RunStopped


def _open(folder: Path, spec: SFTSpec, resume: bool, host: RunHost, ranks: Ranks) -> RunFolder:
    """The run's folder; rank 0 prepares it before the others look into it."""
    if not ranks.first:
        ranks.wait()
        return FollowedRun(folder)
    run = RunFolder(folder, asdict(spec), resume=resume, defaults=SFTSpec.defaults(), disk=host.disk)
    ranks.wait()
    return run


def _save(host: RunHost, learner: _Learner, run: RunFolder) -> None:
    state = learner.state()
    if learner.ranks.first:
        host.on_save(learner.done, run, state)


class _Learner:
    """Takes the steps of a run: batch, learning rate and update are functions of the state and the step."""

    def __init__(self, spec: SFTSpec, model: SFTModel, data: TokenSet, ranks: Ranks) -> None:
        self.spec, self.model, self.data, self.ranks = spec, model, data, ranks
        self.done, self.loss = 0, math.nan
        modules: list[nn.Module] = [model.transformer]
        if spec.perception_weight and spec.perception_projection == "learned":
            modules.append(model.projection)
        self.optimizer = adamw(modules, weight_decay=spec.weight_decay, betas=spec.betas)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._schedule, self._plan = spec.make_schedule(), spec.make_plan(data)
        self._tokens, self._seconds = 0, 0.0  # of the steps alone, without looks and saves

    def state(self) -> State:
        """Everything that the next step depends on, in whole tensors; other ranks than the first have none."""
        state: State = {
            "step": self.done,
            "model": trained_state(self.model.transformer),
            "projection": self.model.projection.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return state if self.ranks.size == 1 else gathered(state, self.ranks)

    def load(self, state: State) -> None:
        load_sharded(self.model.transformer, state["model"])
        load_sharded(self.model.projection, state["projection"])
        load_optimizer(self.optimizer, spread_optimizer(self.optimizer, state["optimizer"]))
        self.done = state["step"]

    def step(self) -> dict[str, float]:
        """Update the weights once; return the step's metrics."""
        began, lr = time.monotonic(), self._schedule.lr(self.done)
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(mixed_seed(self.spec.seed, self.done))  # for the pairs' dropout; nothing else is random
        batches, blank = self._batches()
        self.loss, metrics = accumulate(self.model, batches, self.spec, self.ranks, blank=blank)
        self._require_finite("loss", self.loss)
        norm = whole(torch.nn.utils.clip_grad_norm_(self._parameters, self.spec.clip_norm)).item()
        self._require_finite("gradient", norm)
        self.optimizer.step()
        self.done += 1
        self._tokens += sum(batch.num_tokens for batch in batches[: len(batches) - blank])
        self._seconds += time.monotonic() - began
        return metrics | {"optim/grad_norm": norm, "optim/lr": lr}

    def pace(self) -> float:
        """Tokens per second since the last call, of all ranks."""
        (tokens,), seconds = self.ranks.sums([self._tokens]), self._seconds
        self._tokens, self._seconds = 0, 0.0
        return tokens / max(seconds, 1e-9)

    def _batches(self) -> tuple[list[Batch], int]:
        """This rank's parts of the batch, and how many of the last ones are blank.

        All ranks gather and reduce together, so each takes equally many parts: one that lacks a part repeats a
        sequence, whose loss does not count.
        """
        indices, size = self._plan[self.done], self.ranks.size
        parts = self.spec.parts(indices, self.data.lengths, size)
        own = parts[self.ranks.rank :: size]
        blank = -(-len(parts) // size) - len(own)
        device = str(self.model.transformer.device)
        taken = [*own, *[indices[:1]] * blank]
        return [make_batch(self.data, part, self.model.id_to_code, device) for part in taken], blank

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(f"the {what} of step {self.done + 1} is {value}; the last saved state is kept")


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
    model: SFTModel, batches: Sequence[Batch], spec: SFTSpec, ranks: Ranks = ALONE, *, blank: int = 0
) -> tuple[float, dict[str, float]]:
    """Accumulate the gradients of the parts of one optimiser batch; return its loss and metrics, over all ranks.

    The last ``blank`` batches add nothing: they only keep the ranks in step.
    """
    counted = batches[: len(batches) - blank]
    counts = [sum(len(b.targets) for b in counted), sum(len(b.codes) for b in counted), len(counted)]
    targets, codes, parts = (int(count) for count in ranks.sums(counts))
    loss, rows = 0.0, []
    for number, batch in enumerate(batches):
        if spec.normalisation == "batch":
            part, metrics = batch_loss(model, batch, spec, targets, codes)
        else:
            part, metrics = batch_loss(model, batch, spec)
            part = part / parts
            metrics["loss/ce"] /= parts
        if number >= len(counted):
            part = 0.0 * part
        part.backward()
        loss += part.item()
        rows.append(metrics)
    if parts == ranks.size == 1:
        return loss, rows[0]
    shares = [len(b.codes) / max(1, codes) for b in counted]
    weights = {
        "loss/ce": [1.0] * len(counted),
        "loss/text": [(len(b.targets) - len(b.codes)) / max(1, targets - codes) for b in counted],
        "loss/image": shares,
        "loss/perception": shares,
    }
    own = [sum(row[name] * weight for row, weight in zip(rows, weights[name], strict=False)) for name in rows[0]]
    loss, *means = ranks.sums([loss, *own])
    return loss, dict(zip(rows[0], means, strict=True))


def batch_loss(
    model: SFTModel, batch: Batch, spec: SFTSpec, num_targets: int | None = None, num_codes: int | None = None
) -> tuple[Tensor, dict[str, float]]:
    """L_CE + lambda * L_Pe of one packed batch, and its parts.

    Args:
        model: its transformer, W and E.
        batch: the batch, or one part of it.
        spec: the settings.
        num_targets: response tokens of the whole optimiser batch; this one's when absent.
        num_codes: image-code positions of the whole optimiser batch; this one's when absent.
    """
    with autocast(spec.precision, batch.ids.device):
        hidden = model.transformer(batch.ids, batch.layout.positions, PackedAttention(batch.layout))
        predicting = hidden[batch.predictors]
        nll = target_nll(predicting, batch.targets, model.transformer.logits, model.transformer.config.vocab_size)
        projected = None
        if spec.perception_weight:
            states = predicting if spec.perception_state == "predict" else hidden[batch.predictors + 1]
            projected = model.projection(states[batch.is_code])
    loss, metrics = reduce_nll(nll, batch.is_code, num_targets or len(batch.targets))
    metrics["loss/ce"] = loss.item()
    if projected is not None:
        pe, pe_metrics = perception_loss(
            projected,
            batch.codes,
            model.codebook,
            len(batch.codes) if num_codes is None else num_codes,
            reduction=spec.perception_reduction,
        )
        loss = loss + spec.perception_weight * pe
        metrics |= pe_metrics
    return loss, metrics
