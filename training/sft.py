"""One visible loop for supervised training: the base stage (cross-entropy) and PeSFT (with the perception loss).

L = L_CE + lambda * L_Pe (Eqs. 1-3). W is learned: it is in the optimiser and saved with the state. h_t is the state
that *predicts* c_t (position t - 1); the authors' code takes the state at the token itself, which has already read
c_t, and never trains W. Weights are fp32, the forward runs under bf16 autocast.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.transformer import PackedAttention
from training.data import Batch, BatchPlan, TokenSet, make_batch
from training.loop import CosineSchedule, RunFolder, StopFlag, adamw, set_lr
from training.losses import Reduction, perception_loss, sft_loss

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from model.transformer import Transformer


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


def train_sft(
    spec: SFTSpec,
    transformer: Transformer,
    codebook: Tensor,
    id_to_code: Tensor,
    data: TokenSet,
    folder: Path,
    *,
    resume: bool = False,
    save_every: int = 200,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
) -> nn.Linear:
    """Train ``transformer`` in place; returns the learned projection W.

    Args:
        spec: the settings, written into the folder.
        transformer: fp32 weights to start from (a resumed run overwrites them with its own).
        codebook: E [K, D], frozen.
        id_to_code: [V] codebook index of a token id, -1 where it is no code.
        data: the sequences.
        folder: where metrics and state go.
        resume: go on with the state in ``folder``.
        save_every: steps between two saved states.
        on_log: called with (step, metrics) for every logged step.

    Raises:
        FloatingPointError: the loss is not finite; the last saved state stays as it was.
        KeyboardInterrupt: a signal asked to stop; the state is saved.
    """
    device = str(transformer.device)
    run = RunFolder(folder, asdict(spec), resume=resume)
    projection = nn.Linear(transformer.config.hidden_size, codebook.shape[1], bias=False)
    nn.init.zeros_(projection.weight)  # a random map would pull the transformer towards nowhere before it has learned
    projection.to(device)
    modules = [transformer, projection] if spec.perception_weight else [transformer]
    optimizer = adamw(modules, weight_decay=spec.weight_decay)
    schedule = CosineSchedule(spec.lr, spec.steps, spec.warmup, spec.floor)
    start = 0
    if (state := run.load_state()) is not None:
        transformer.load_state_dict(state["model"])
        projection.load_state_dict(state["projection"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    plan = BatchPlan(data.lengths, spec.max_tokens, spec.seed)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    tokens, since = 0, time.monotonic()
    with StopFlag() as stop, tqdm(total=spec.steps, initial=start, desc=spec.label or "sft", mininterval=5) as bar:
        for step in range(start, spec.steps):
            set_lr(optimizer, schedule.lr(step))
            batch = make_batch(data, plan[step], id_to_code, device)
            loss, metrics = batch_loss(transformer, projection, codebook, batch, spec)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss of step {step + 1} is {loss.item()}; the last saved state is kept")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, spec.clip_norm)
            optimizer.step()
            tokens += batch.num_tokens
            bar.update()
            if (step + 1) % 25 == 0 or step + 1 == spec.steps:
                now = time.monotonic()
                metrics |= {"optim/grad_norm": norm.item(), "optim/lr": schedule.lr(step)}
                metrics["speed/tokens_per_s"] = tokens / (now - since)
                tokens, since = 0, now
                run.log(step + 1, metrics)
                bar.set_postfix(loss=f"{loss.item():.3f}", tok_s=f"{metrics['speed/tokens_per_s']:.0f}")
                if on_log is not None:
                    on_log(step + 1, metrics)
            if (step + 1) % save_every == 0 or step + 1 == spec.steps or stop:
                run.save_state(
                    {
                        "step": step + 1,
                        "model": transformer.state_dict(),
                        "projection": projection.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    }
                )
            if stop and step + 1 < spec.steps:
                raise KeyboardInterrupt
    return projection


def batch_loss(
    transformer: Transformer, projection: nn.Linear, codebook: Tensor, batch: Batch, spec: SFTSpec
) -> tuple[Tensor, dict[str, float]]:
    """L_CE + lambda * L_Pe of one packed batch, and the parts apart."""
    with torch.autocast(batch.ids.device.type, torch.bfloat16):
        hidden = transformer(batch.ids, batch.layout.positions, PackedAttention(batch.layout))
        predicting = hidden[batch.predictors]
        logits = transformer.logits(predicting)
        projected = projection(predicting[batch.is_code]) if spec.perception_weight else None
    loss, metrics = sft_loss(logits, batch.targets, batch.is_code, len(batch.targets))
    metrics["loss/ce"] = loss.item()
    if projected is not None:
        pe, pe_metrics = perception_loss(
            projected, batch.codes, codebook, len(batch.codes), reduction=spec.perception_reduction
        )
        loss = loss + spec.perception_weight * pe
        metrics |= pe_metrics
    return loss, metrics
