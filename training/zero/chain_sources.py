"""Sources of text-only chains: the world, M3CoT, or the texts of existing traces.

Unusable rows become rejections with their location and do not end the reading. Knows no models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from PIL import Image

from training.data.chains import TextChain, m3cot_chain, split_steps, world_chain
from training.data.places import numbered
from training.data.rows import Rejection, Row, parsed, read_rows
from training.data.traces import TokenIds, TraceSample, read_traces
from training.spec.hyperparameters import ZeroHyperparameters
from training.spec.spec import JsonlData, M3CoTData, UniTasksData, ZebraCoTData
from training.world.world import PESFT_SEEDS, SLICES, make_task, require_training_level, require_training_seed

SEEDS_A_RUN = 100_000  # jobs with different seeds see different tasks
ChainSource = UniTasksData | JsonlData | ZebraCoTData | M3CoTData


def read_chains(
    data: ChainSource, seed: int, settings: ZeroHyperparameters, image_size: int | None = None
) -> Iterator[TextChain | Rejection]:
    """Read the chains of a specification, in order.

    Raises:
        training.data.rows.DataError: no known data was found.
        ValueError: a seed of the world lies in the evaluation range.
    """
    if isinstance(data, UniTasksData):
        yield from _world(data, seed, settings)
    elif isinstance(data, M3CoTData):
        yield from islice(_m3cot(data, settings, image_size), data.num_samples)
    else:
        for item in islice(read_traces(data.path, image_size), data.num_samples):
            yield item if isinstance(item, Rejection) else _of_trace(item, settings)


def _world(data: UniTasksData, seed: int, settings: ZeroHyperparameters) -> Iterator[TextChain]:
    slices, level = data.slices or SLICES, require_training_level(data.level)
    first = PESFT_SEEDS.start + seed % 100 * SEEDS_A_RUN if data.first_seed is None else data.first_seed
    for i in range(data.num_samples):
        task = make_task(slices[i % len(slices)], require_training_seed(first + i), level=level)
        yield world_chain(task, max_steps=settings.max_steps)


def _m3cot(data: M3CoTData, settings: ZeroHyperparameters, image_size: int | None) -> Iterator[TextChain | Rejection]:
    def chain(row: Row) -> TextChain:
        value = row.data.get("image")
        image = None if value is None else row.image(value)
        made = m3cot_chain(row.data, image, max_steps=settings.max_steps, by=settings.splitter)
        return replace(made, question=numbered(made.question, 0 if image is None else 1))

    for row in read_rows(data.path, image_size):
        if isinstance(row, Rejection):
            yield row
        elif data.split is None or row.data.get("split") == data.split:
            yield parsed(row, chain)


def _of_trace(sample: TraceSample, settings: ZeroHyperparameters) -> TextChain | Rejection:
    """The text of a trace without its images; the question may have one."""
    if len(sample.images) > 1:
        detail = f"the question has {len(sample.images)} images, but a chain starts from one"
        return Rejection(sample.where, "too_many_pictures", detail)
    if any(isinstance(image, TokenIds) for image in sample.images):
        return Rejection(sample.where, "wrong_type", "the question's image is token ids: a chain needs pixels")
    images = [image for image in sample.images if isinstance(image, Image.Image)]
    texts = [step.text for step in sample.steps if step.text]
    if not texts:
        return Rejection(sample.where, "empty_reasoning", "no step has a text")
    whole: str | list[str] = texts if settings.splitter in ("list", "auto") else "\n".join(texts)
    steps = split_steps(whole, max_steps=settings.max_steps, by=settings.splitter)
    image = images[0] if images else None
    return TextChain(sample.where, sample.slice or "traces", sample.question, image, tuple(steps), sample.answer)
