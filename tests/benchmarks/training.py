"""Our packed training against transformers' `Trainer` on the same weights and data, and what the perception loss costs.

The weights are those of the shipped base, the data are traces of the procedural world with random codes for pictures
(their lengths are real). Both sides run bf16 autocast (fp32 on a CPU without bf16) over fp32 weights, AdamW and
clipping, in batches of 16 sequences; theirs pads a batch to its longest sequence, and may group sequences of like
length where that is faster.
Counted are tokens that are no padding. Both sides' loss of one batch is compared first.
"""

from __future__ import annotations

import contextlib
import copy
import io
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.precision import autocast, cpu_has_bf16
from tests.benchmarks.decoding import Row, compare
from training.data.token_sets import TokenSet, id_to_code, make_batch, render_trace
from training.jobs.loop import adamw, set_lr
from training.pesft.loop import SFTModel, SFTSpec, accumulate
from training.world.world import SLICES, make_task

BASE = Path(__file__).parents[2] / "model" / "nano" / "nano-base"
TRACES, BATCH, STEPS = 160, 16, 3
LR, IGNORED = 1e-4, -100


@cache
def base() -> LoadedCheckpoint:
    """The weights of both sides."""
    return load_checkpoint(BASE)


@cache
def traces() -> TokenSet:
    """Traces of the world, the slices in turn, each picture of random codes."""
    loaded, rng = base(), random.Random(0)
    codes, count = loaded.vocab.codes_per_image, loaded.vocab.num_codes

    def picture() -> tuple[int, ...]:
        return tuple(rng.choices(range(count), k=codes))

    def rendered() -> Any:
        for i in range(TRACES):
            task = make_task(SLICES[i % len(SLICES)], 20_000_000 + i)
            steps = [(step.text, step.state, picture()) for step in task.steps]
            yield render_trace(loaded.template, task.question, [picture()], steps, task.answer)

    return TokenSet.build(rendered(), loaded.config.transformer.context_len)


class Ours:
    """Our loop's step: pack, forward, backward, clip, update."""

    def __init__(self, perception_weight: float) -> None:
        loaded = base()
        assert loaded.vq is not None
        self.spec = SFTSpec(steps=1, lr=LR, batch_samples=BATCH, perception_weight=perception_weight)
        self.model = copy.deepcopy(loaded.transformer).train().requires_grad_(True)
        self.parts = SFTModel.start(self.spec, self.model, loaded.vq.codebook, id_to_code(loaded.vocab))
        modules: list[nn.Module] = [self.model, self.parts.projection] if perception_weight else [self.model]
        self.optimizer = adamw(modules, weight_decay=0.0)
        set_lr(self.optimizer, LR)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.plan, self.at = self.spec.make_plan(traces()), 0

    def loss_of(self, indices: np.ndarray) -> float:
        """Cross-entropy of these sequences; the gradients are thrown away."""
        batch = make_batch(traces(), indices, self.parts.id_to_code)
        loss = accumulate(self.parts, [batch], self.spec)[1]["loss/ce"]
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def __call__(self) -> float:
        """Tokens a second over some steps."""
        tokens, start = 0, time.perf_counter()
        for _ in range(STEPS):
            batch = make_batch(traces(), self.plan[self.at], self.parts.id_to_code)
            self.at += 1
            self.optimizer.zero_grad(set_to_none=True)
            accumulate(self.parts, [batch], self.spec)
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            tokens += batch.num_tokens
        return tokens / (time.perf_counter() - start)


class PeerModel(nn.Module):
    """transformers' Chameleon with a loss over the whole vocabulary (its own masks every image code)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ChameleonForConditionalGeneration
        from transformers.utils import logging

        logging.set_verbosity_error()
        whole = ChameleonForConditionalGeneration.from_pretrained(BASE, dtype=torch.float32)
        self.body, self.head = whole.model, whole.lm_head
        self.body.vqmodel.requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        logits = self.head(hidden[:, :-1]).float()
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)}


def padded(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """One batch, every sequence as long as the longest."""
    pad = base().vocab.pad_id
    longest = max(len(row["input_ids"]) for row in rows)

    def column(name: str, fill: int) -> Tensor:
        return torch.tensor([[*row[name], *[fill] * (longest - len(row[name]))] for row in rows])

    ids = column("input_ids", pad)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": column("labels", IGNORED)}


def peer_rows() -> list[dict[str, Any]]:
    """Every trace as transformers' data sets hold them."""
    data, out = traces(), []
    for i in range(len(data)):
        ids = data.ids[data.offsets[i] : data.offsets[i + 1]].tolist()
        mask = data.loss_mask[data.offsets[i] : data.offsets[i + 1]].tolist()
        labels = [t if m else IGNORED for t, m in zip(ids, mask, strict=True)]
        out.append({"input_ids": ids, "labels": labels, "length": len(ids)})
    return out


class Peer:
    """transformers' `Trainer`, its first step of a run not counted."""

    def __init__(self, model: PeerModel, *, group_by_length: bool) -> None:
        self.model, self.rows, self.grouped = model, peer_rows(), group_by_length
        self.seed = 0

    def loss_of(self, indices: np.ndarray) -> float:
        """Cross-entropy of these sequences."""
        with torch.no_grad(), autocast("auto"):
            return float(self.model(**padded([self.rows[i] for i in indices]))["loss"])

    def __call__(self) -> float:
        """Tokens a second over some steps."""
        from transformers import Trainer, TrainerCallback, TrainingArguments

        ends: list[float] = []
        tokens: list[int] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                ends.append(time.perf_counter())

        def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
            tokens.append(sum(len(row["input_ids"]) for row in rows))
            return padded(rows)

        self.seed += 1
        strategy = {"train_sampling_strategy": "group_by_length"} if self.grouped else {}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=STEPS + 1,
                learning_rate=LR,
                bf16=cpu_has_bf16(),
                use_cpu=True,
                weight_decay=0.0,
                max_grad_norm=1.0,
                lr_scheduler_type="constant",
                seed=self.seed,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
                **strategy,
            )
            trainer = Trainer(
                model=self.model, args=arguments, train_dataset=self.rows, data_collator=collate, callbacks=[Clock()]
            )
            trainer.train()
        return sum(tokens[1 : STEPS + 1]) / (ends[-1] - ends[0])


def check_same_loss(ours: Ours, peer: Peer) -> None:
    """Before anything is timed: one batch has one loss."""
    indices = np.arange(BATCH)
    mine, theirs = ours.loss_of(indices), peer.loss_of(indices)
    if abs(mine - theirs) > 0.02 * theirs:
        raise AssertionError(f"the same batch costs us {mine:.4f} and them {theirs:.4f}")


def _packed(sides: Any, *, rounds: int, threads: Sequence[int]) -> Row:
    ours = Ours(0.0)
    model = PeerModel()
    peers = [Peer(model, group_by_length=False), Peer(model, group_by_length=True)]
    check_same_loss(ours, peers[0])
    peers[0]()  # warm
    speeds = [peer() for peer in peers]
    best = peers[speeds.index(max(speeds))]
    row = compare(ours, best, unit="non-padding tokens/s", more_is_better=True, rounds=rounds, threads=threads)
    return {**row, "peer_groups_by_length": best.grouped}


def _perception(sides: Any, *, rounds: int, threads: Sequence[int]) -> Row:
    with_term, without = Ours(1.0), Ours(0.0)
    unit = "tokens/s with and without"
    return compare(with_term, without, unit=unit, more_is_better=True, rounds=rounds, threads=threads)


ROWS: dict[str, Callable[..., Row]] = {"packed_training": _packed, "perception_loss_cost": _perception}
