"""Token sequences for training: tasks and drills of the world -> codes -> ids with loss masks -> packed batches.

A batch's sequences are a function of (seed, step) alone, so that a resumed run sees the same batches. Samples that do
not fit are dropped and counted, never truncated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.images.view import model_view
from model.nets.transformer import PackedLayout
from model.text.template import Rendered, StepPart, Template
from training.world.world import FAMILIES, SLICES, make_task, require_training_seed

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from model.nets.vq import VQModel
    from model.text.vocab import Vocabulary
    from training.data.code_cache import CodeCache
    from training.world.task import Task

Codes = tuple[int, ...]


def to_pixels(images: np.ndarray, device: str = "cpu") -> Tensor:
    """uint8 [B, H, W, 3] to fp32 [B, 3, H, W] in [-1, 1]; contiguous: GroupNorm is 3x slower on channels-last.

    The last bit may differ from that of :func:`model.images.codes.to_pixels`, which multiplies by 2/255.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()
    return pixels.to(device).float() / 127.5 - 1.0


class ImageCoder:
    """Encodes images for training in batches; each image of a chain keeps the codes of its unchanged cells.

    A functional image mostly equals the previous one. The encoder normalises over the whole image, so a box in one
    corner flips codes in the others; those flips are noise that would have to be learnt. A code whose cell has
    unchanged pixels is therefore kept. Measured on 64 tasks: 12 % instead of 24 % of the codes change between images,
    and the checkers pass as many of the decoded images.

    Runs in the VQ's own precision, as questions are encoded when served: under bf16 autocast 1.1 % of the codes differ.
    Batches of 16 stay in the cache and are as fast as bf16 in batches of 64.
    """

    def __init__(self, vq: VQModel, *, batch: int = 16, device: str = "cpu", known: CodeCache | None = None) -> None:
        """``known`` has the codes of images that need not be encoded, and keeps those of the others."""
        self.vq = vq
        self.batch = batch
        self.device = device
        self.known = known

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encode the images [B, R, R, 3] uint8 as codes [B, N] int32."""
        if self.known is None:
            return self._encode(images)
        keys = self.known.keys(images)
        codes = self.known.find(keys)
        new = {key: place for place, key in enumerate(keys) if key not in codes}
        if new:
            made = self._encode(images[list(new.values())])
            self.known.keep(list(new), made)
            codes.update(zip(new, made, strict=True))
        return np.stack([codes[key] for key in keys])

    @torch.inference_mode()
    def _encode(self, images: np.ndarray) -> np.ndarray:
        out = []
        for start in range(0, len(images), self.batch):
            pixels = to_pixels(images[start : start + self.batch], self.device)
            out.append(self.vq.quantize.nearest(self.vq.features(pixels)).cpu().numpy().astype(np.int32))
        return np.concatenate(out)

    def chains(self, chains: Sequence[Sequence[Image]]) -> list[list[Codes]]:
        """Encode every image of every chain."""
        images = np.stack([np.asarray(image) for chain in chains for image in chain])
        codes = self.encode(images)
        out, start = [], 0
        for chain in chains:
            stop = start + len(chain)
            rows = codes[start:stop]
            same = unchanged_cells(images[start : stop - 1], images[start + 1 : stop], self.vq.grid)
            for k in range(1, len(chain)):
                rows[k] = np.where(same[k - 1], rows[k - 1], rows[k])
            out.append([tuple(row.tolist()) for row in rows])
            start = stop
        return out


def unchanged_cells(before: np.ndarray, after: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[B, N] bool, row-major: whether all pixels of a code's cell are equal in both images [B, R, R, 3] uint8."""
    rows, columns = grid
    height, width = before.shape[1] // rows, before.shape[2] // columns
    equal = (before == after).all(-1).reshape(-1, rows, height, columns, width)
    unchanged: np.ndarray = equal.all(axis=(2, 4)).reshape(-1, rows * columns)
    return unchanged


@dataclass(frozen=True, slots=True)
class EncodedTask:
    """A task of the world with encoded images."""

    question: str
    image: Codes
    steps: tuple[tuple[str, str, Codes], ...]  # text, written-out state, codes
    answer: str

    def render(self, template: Template, variant: str = "interleaved") -> Rendered:
        """Render the trajectory.

        Args:
            template: the checkpoint's.
            variant: "interleaved" (text and images), "text" (control A: without images) or "state" (control B: text
                that writes the state out instead of drawing it).
        """
        return render_trace(template, self.question, [self.image], self.steps, self.answer, variant)


def render_trace(
    template: Template,
    question: str,
    images: Sequence[Codes],
    steps: Sequence[tuple[str, str, Codes | None]],
    answer: str,
    variant: str = "interleaved",
) -> Rendered:
    """Render a trajectory in one of the variants of :meth:`EncodedTask.render`; ``steps`` are (text, state, codes)."""
    if variant == "interleaved":
        parts = [StepPart(text, codes) for text, _, codes in steps]
    elif variant == "text":
        parts = [StepPart(text) for text, _, _ in steps]
    elif variant == "state":
        parts = [StepPart(f"{text} {state}" if state else text) for text, state, _ in steps]
    else:
        raise ValueError(f"unknown variant {variant!r}: use interleaved, text or state")
    return template.render(question, images, parts, answer)


def encode_tasks(tasks: Iterable[Task], coder: ImageCoder, *, total: int | None = None) -> list[EncodedTask]:
    """Encode tasks with their images, at the checkpoint's size, in order."""
    out: list[EncodedTask] = []
    chunk: list[Task] = []

    def flush() -> None:
        images = [[task.image, *(step.image for step in task.steps)] for task in chunk]
        coded = coder.chains([[model_view(image, coder.vq.config) for image in chain] for chain in images])
        for task, codes in zip(chunk, coded, strict=True):
            steps = tuple((s.text, s.state, c) for s, c in zip(task.steps, codes[1:], strict=True))
            out.append(EncodedTask(task.question, codes[0], steps, task.answer))
        chunk.clear()

    for task in tqdm(tasks, total=total, desc="encode", mininterval=5, disable=None):
        chunk.append(task)
        if len(chunk) == 64:
            flush()
    if chunk:
        flush()
    return out


def training_tasks(start: int, count: int, shares: Mapping[str, float] | None = None) -> Iterable[Task]:
    """Make `count` tasks from seed `start`: the slices in turn, or the families according to their shares.

    Raises:
        ValueError: a seed lies in the evaluation range, or a family is unknown.
    """
    slice_of = {family: name for name, families in FAMILIES.items() for family in families}
    if unknown := set(shares or ()) - set(slice_of):
        raise ValueError(f"unknown families: {', '.join(sorted(unknown))}")
    for i in range(count):
        seed = require_training_seed(start + i)
        if shares:
            (family,) = Random(f"family/{seed}").choices(tuple(shares), tuple(shares.values()))
            yield make_task(slice_of[family], seed, family=family)
        else:
            yield make_task(SLICES[i % len(SLICES)], seed)


class EmptySetError(ValueError):
    """No sequence is left to train on."""


@dataclass(frozen=True)
class TokenSet:
    """Many sequences in flat arrays: sequence i is ids[offsets[i]:offsets[i + 1]]."""

    ids: np.ndarray  # int32 [T]
    loss_mask: np.ndarray  # uint8 [T]
    offsets: np.ndarray  # int64 [n + 1]
    dropped: int = 0  # sequences longer than the limit

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Length of each sequence in tokens."""
        return np.diff(self.offsets)

    @classmethod
    def build(cls, rendered: Iterable[Rendered], max_len: int) -> TokenSet:
        """Collect sequences of at most ``max_len`` tokens; longer ones are counted in ``dropped``."""
        ids: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        dropped = 0
        for item in rendered:
            if len(item.ids) > max_len:
                dropped += 1
                continue
            ids.append(np.asarray(item.ids, np.int32))
            masks.append(np.asarray(item.loss_mask, np.uint8))
        if not ids:
            raise EmptySetError(f"no sequence is left: {dropped} were longer than {max_len} tokens")
        offsets = np.concatenate([[0], np.cumsum([len(x) for x in ids])]).astype(np.int64)
        return cls(np.concatenate(ids), np.concatenate(masks), offsets, dropped)

    def joined(self, other: TokenSet) -> TokenSet:
        """These sequences, then those of `other`."""
        return TokenSet(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.loss_mask, other.loss_mask]),
            np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
            self.dropped + other.dropped,
        )

    def save(self, path: Path) -> None:
        """Write as npz."""
        with path.open("wb") as handle:  # given a path, numpy would append to its name
            np.savez(handle, ids=self.ids, loss_mask=self.loss_mask, offsets=self.offsets, dropped=self.dropped)

    @classmethod
    def load(cls, path: Path) -> TokenSet:
        """Load a file written by :meth:`save`."""
        with np.load(path) as data:
            return cls(data["ids"], data["loss_mask"], data["offsets"], int(data["dropped"]))


class BatchPlan:
    """The sequences of each step: a new shuffle every epoch, split into batches of about ``max_tokens`` tokens.

    With ``batch_samples`` a batch has exactly that many sequences instead, and an epoch drops an incomplete last batch.
    """

    def __init__(self, lengths: np.ndarray, max_tokens: int, seed: int, *, batch_samples: int | None = None) -> None:
        self.lengths, self.max_tokens, self.seed, self.batch_samples = lengths, max_tokens, seed, batch_samples
        self._epoch = cache(self._make_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of the first epoch."""
        return len(self._epoch(0))

    def _make_epoch(self, epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.lengths))
        if self.batch_samples is not None:
            size = min(self.batch_samples, len(order))
            return [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        total = np.cumsum(self.lengths[order])
        number = max(1, round(int(total[-1]) / self.max_tokens))
        cuts = np.searchsorted(total, np.arange(1, number) * (int(total[-1]) / number))
        return [part for part in np.split(order, cuts) if len(part)]

    def __getitem__(self, step: int) -> np.ndarray:
        """Indices of the sequences of step ``step``."""
        epoch = 0
        while step >= len(self._epoch(epoch)):
            step -= len(self._epoch(epoch))
            epoch += 1
        return self._epoch(epoch)[step]


def id_to_code(vocab: Vocabulary) -> Tensor:
    """[V] int64: the codebook index of a token id, -1 for other ids."""
    table = torch.full((vocab.size,), -1, dtype=torch.long)
    table[torch.tensor(vocab.code_ids)] = torch.arange(len(vocab.code_ids))
    return table


def micro_batches(indices: np.ndarray, lengths: np.ndarray, count: int, *, by: str = "tokens") -> list[np.ndarray]:
    """Split one batch into at most ``count`` non-empty parts, in order.

    Args:
        indices: of the batch.
        lengths: tokens of every sequence of the set.
        count: of parts.
        by: balance the parts by ``tokens`` or ``samples``.
    """
    if by == "samples":
        parts = np.array_split(indices, count)
    else:
        starts = np.concatenate([[0], np.cumsum(lengths[indices])])
        ideal = np.arange(1, count) * (int(starts[-1]) / count)
        parts = np.split(indices, np.abs(starts[None] - ideal[:, None]).argmin(1))
    return [part for part in parts if len(part)]


@dataclass(frozen=True)
class Batch:
    """One packed batch: M of its T tokens are targets, each predicted by the state before it."""

    ids: Tensor  # [T]
    layout: PackedLayout
    predictors: Tensor  # [M] positions t - 1 of the predicting states
    targets: Tensor  # [M] token ids
    is_code: Tensor  # [M] bool
    codes: Tensor  # [number of is_code] the codebook indices of the image targets

    @property
    def num_tokens(self) -> int:
        """T, without padding."""
        return len(self.ids)


def make_batch(data: TokenSet, indices: np.ndarray, id_to_code: Tensor, device: str = "cpu") -> Batch:
    """Pack the sequences.

    Args:
        data: the sequences.
        indices: the batch's sequences.
        id_to_code: [V] codebook index of a token id, -1 for other ids.
        device: device of the tensors.
    """
    spans = [(int(data.offsets[i]), int(data.offsets[i + 1])) for i in indices]
    ids = torch.from_numpy(np.concatenate([data.ids[a:b] for a, b in spans]).astype(np.int64))
    mask = torch.from_numpy(np.concatenate([data.loss_mask[a:b] for a, b in spans])).bool()
    layout = PackedLayout.from_lengths([b - a for a, b in spans], device)
    positions = mask.nonzero().squeeze(1)
    targets = ids[positions]
    codes = id_to_code[targets]
    is_code = codes >= 0
    return Batch(
        ids.to(device),
        layout,
        (positions - 1).to(device),
        targets.to(device),
        is_code.to(device),
        codes[is_code].to(device),
    )
