"""Sources of text-only chains: the world, M3CoT, or the texts of existing traces.

Unusable rows become rejections with their location and do not end the reading. Knows no models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from training.data.chains import TextChain, m3cot_chain, trace_chain, world_chain
from training.data.places import numbered
from training.data.rows import Rejection, Row, parsed, read_parsed, read_rows
from training.data.traces import parse_trace
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

    def chain(row: Row) -> TextChain:
        return trace_chain(parse_trace(row), max_steps=settings.max_steps, by=settings.splitter)

    if isinstance(data, UniTasksData):
        yield from _world(data, seed, settings)
    elif isinstance(data, M3CoTData):
        yield from islice(_m3cot(data, settings, image_size), data.num_samples)
    else:
        yield from islice(read_parsed(data.path, chain, image_size, data.columns), data.num_samples)


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

    for row in read_rows(data.path, image_size, columns=data.columns):
        if isinstance(row, Rejection):
            yield row
        elif data.split is None or row.data.get("split") == data.split:
            yield parsed(row, chain)
