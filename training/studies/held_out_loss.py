"""Losses of a checkpoint on unseen reference traces: cross-entropy and perception loss per task.

L_Pe needs a W. Checkpoints trained with lambda 0 have none, and each W was learned with its own states, so it cannot
compare two checkpoints. Therefore a linear map is fitted to each checkpoint's states on other tasks (ridge regression
with a bias): its residual measures how much of the next code's vector the states encode linearly. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from model.checkpoint.checkpoint import LoadedCheckpoint
from model.checkpoint.shards import read_entries
from model.nets.transformer import PackedAttention
from training.benchmark.stats import Part
from training.data.token_sets import Batch, EncodedTask, TokenSet, id_to_code, make_batch
from training.pesft.losses import token_logprobs

W_NAME = "perception"
W_FILE = Path("train") / "perception.safetensors"
BATCH = 16  # traces per forward
RIDGE = 1e-4  # of the states' mean square


@dataclass(frozen=True)
class HeldOutLosses:
    """Per task, the sum over its response tokens and their number; perception losses are means over D."""

    text: list[Part]
    image: list[Part]
    perception: list[Part] | None  # under the checkpoint's own W
    perception_fitted: list[Part]
    spread: float  # L_Pe of a constant guess: the variance of the codes' vectors


class _Parts:
    """Sums and counts by task."""

    def __init__(self, tasks: int) -> None:
        self._sums, self._counts = torch.zeros(tasks), torch.zeros(tasks)

    def add(self, values: Tensor, owner: Tensor) -> None:
        """Values [M] of the tasks [M]."""
        self._sums.index_add_(0, owner, values)
        self._counts += torch.bincount(owner, minlength=len(self._counts))

    def to_list(self) -> list[Part]:
        return list(zip(self._sums.tolist(), self._counts.tolist(), strict=True))


def held_out_losses(
    loaded: LoadedCheckpoint, tasks: Sequence[EncodedTask], others: Sequence[EncodedTask]
) -> HeldOutLosses:
    """Losses on the reference traces of ``tasks`` under the checkpoint's template, in fp32.

    Args:
        loaded: can draw.
        tasks: with images encoded by this checkpoint's VQ. Traces longer than the context are skipped.
        others: tasks for fitting the linear map.
    """
    assert loaded.vq is not None
    book = loaded.vq.codebook.float()
    maps = {"fitted": _fit(loaded, others)}
    if (own := saved_projection(loaded.folder)) is not None:
        maps["own"] = own
    text, image = _Parts(len(tasks)), _Parts(len(tasks))
    left = {name: _Parts(len(tasks)) for name in maps}
    vectors = [book[:0]]
    for batch, states, logits, owner in _forwards(loaded, tasks):
        nll = -token_logprobs(logits, batch.targets)
        text.add(nll[~batch.is_code], owner[~batch.is_code])
        image.add(nll[batch.is_code], owner[batch.is_code])
        vectors.append(book[batch.codes])
        for name, parts in left.items():
            error = _with_one(states[batch.is_code]) @ maps[name] - vectors[-1]
            parts.add(error.square().mean(-1), owner[batch.is_code])
    return HeldOutLosses(
        text=text.to_list(),
        image=image.to_list(),
        perception=left["own"].to_list() if own is not None else None,
        perception_fitted=left["fitted"].to_list(),
        spread=float(torch.cat(vectors).var(0, correction=0).mean()),
    )


def saved_projection(folder: Path) -> Tensor | None:
    """W of a checkpoint [H + 1, D] in fp32, its bias (or zeros) in the last row; None if missing.

    Stored next to the weights, or in the training state.
    """
    found: dict[str, Tensor] = {}
    entries = read_entries(folder)
    for part in ("weight", "bias"):
        name = f"{W_NAME}.{part}"
        path = folder / entries[name].file if name in entries else folder / W_FILE
        if path.is_file():
            with safe_open(path, "pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118
                    found[part] = tensors.get_tensor(name).float()
    if "weight" not in found:
        return None
    bias = found.get("bias", torch.zeros(len(found["weight"])))
    return torch.cat([found["weight"].T, bias[None]])


@torch.inference_mode()
def _forwards(loaded: LoadedCheckpoint, tasks: Sequence[EncodedTask]) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
    """Yield batches with the predicting states [M, H], the logits [M, V], and the task number of each target."""
    limit = loaded.config.transformer.context_len
    table = id_to_code(loaded.vocab)
    for start in range(0, len(tasks), BATCH):
        rendered = {start + k: task.render(loaded.template) for k, task in enumerate(tasks[start : start + BATCH])}
        kept = [number for number, trace in rendered.items() if len(trace.ids) <= limit]
        if not kept:
            continue
        data = TokenSet.build((rendered[number] for number in kept), limit)
        batch = make_batch(data, np.arange(len(data)), table)
        states = loaded.transformer(batch.ids, batch.layout.positions, PackedAttention(batch.layout))[batch.predictors]
        owner = torch.tensor(kept)[torch.searchsorted(torch.from_numpy(data.offsets[1:]), batch.predictors, right=True)]
        yield batch, states.float(), loaded.transformer.logits(states).float(), owner


def _fit(loaded: LoadedCheckpoint, tasks: Sequence[EncodedTask]) -> Tensor:
    """Fit the linear map [H + 1, D] from the states that predict a code to its vector."""
    assert loaded.vq is not None
    book = loaded.vq.codebook.double()
    width = loaded.config.transformer.hidden_size + 1
    square, cross = torch.zeros(width, width, dtype=torch.double), torch.zeros(width, book.shape[1], dtype=torch.double)
    for batch, states, _, _ in _forwards(loaded, tasks):
        known = _with_one(states[batch.is_code].double())
        square += known.T @ known
        cross += known.T @ book[batch.codes]
    weight = RIDGE * float(square.diagonal().mean()) + 1e-12
    found: Tensor = torch.linalg.solve(square + weight * torch.eye(width, dtype=torch.double), cross)
    return found.float()


def _with_one(states: Tensor) -> Tensor:
    return torch.cat([states, states.new_ones(len(states), 1)], 1)
