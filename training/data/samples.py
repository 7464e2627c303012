"""Traces with images -> traces with codes -> the token sequences of a job, and the rejections.

The same way for every source: tasks of the world, the authors' jsonl, Zebra-CoT and saved traces. Images are resized to
the model's size and encoded by the base's own VQ; token ids are checked against its vocabulary. Samples that do not fit
are rejected, never truncated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from PIL import Image

from model.images.view import model_view
from model.text.template import Rendered, Template
from model.text.vocab import Vocabulary
from training.data.families import own_tasks
from training.data.row_images import SampleError
from training.data.rows import DataError, Intake, Rejection, attempted
from training.data.token_sets import Codes, EmptySetError, ImageCoder, TokenSet, render_trace
from training.data.traces import SampleImage, SampleStep, TokenIds, TraceSample, read_traces
from training.spec.spec import JsonlData, TasksData, TracesData, UniTasksData, ZebraCoTData
from training.world.task import Task
from training.world.world import PESFT_SEEDS, SLICES, make_task, require_training_level, require_training_seed

SEEDS_A_RUN = 100_000  # jobs with different seeds see different tasks
CHUNK = 64  # samples whose images are encoded together

TraceSource = UniTasksData | TasksData | JsonlData | TracesData | ZebraCoTData


@dataclass(frozen=True)
class EncodedSample:
    """A :class:`TraceSample` with its images as codes; steps are (text, written-out state, codes or None)."""

    where: str
    question: str
    images: tuple[Codes, ...]
    steps: tuple[tuple[str, str, Codes | None], ...]
    answer: str
    slice: str | None = None

    def render(self, template: Template, variant: str = "interleaved") -> Rendered:
        """Render the trajectory in one of the variants of :meth:`training.data.token_sets.EncodedTask.render`."""
        return render_trace(template, self.question, self.images, self.steps, self.answer, variant)


def trace_samples(data: TraceSource, seed: int, image_size: int | None = None) -> Iterator[TraceSample | Rejection]:
    """The samples of a specification, in order.

    Args:
        data: the part of the specification.
        seed: of the job.
        image_size: pixels a side of the model that the images are for.

    Raises:
        training.data.rows.DataError: no known data was found.
        ValueError: a seed of the world lies in the evaluation range.
    """
    if isinstance(data, UniTasksData):
        yield from world_samples(data, seed)
        return
    if isinstance(data, TasksData):
        yield from family_samples(data, seed)
        return
    if data.path is None:
        raise ValueError("these traces have not been exported: the server does that before it starts the job")
    found: Iterable[TraceSample | Rejection] = read_traces(data.path, image_size, data.columns)
    yield from found if data.num_samples is None else islice(found, data.num_samples)


def first_seed(data: UniTasksData | TasksData, seed: int) -> int:
    """First seed of the tasks: as requested, or in PeSFT's own range, different for every job seed."""
    return PESFT_SEEDS.start + seed % 100 * SEEDS_A_RUN if data.first_seed is None else data.first_seed


def world_samples(data: UniTasksData, seed: int) -> Iterator[TraceSample]:
    """Tasks of the world with their reference steps, the slices in turn."""
    slices = data.slices or SLICES
    first, level = first_seed(data, seed), require_training_level(data.level)
    for i in range(data.num_samples):
        yield _task_sample(make_task(slices[i % len(slices)], require_training_seed(first + i), level=level))


def family_samples(data: TasksData, seed: int) -> Iterator[TraceSample]:
    """Tasks of a family of your own with their reference steps.

    Raises:
        training.data.rows.DataError: the family cannot be used, or has no reference steps.
    """
    first = first_seed(data, seed)
    require_training_seed(first + data.num_samples - 1)
    for task in own_tasks(data, first):
        if not task.steps:
            raise DataError(
                f"the task family {data.family} has no reference steps (seed {task.seed}): PeSFT needs them"
            )
        yield _task_sample(task)


def _task_sample(task: Task) -> TraceSample:
    steps = tuple(SampleStep(step.text, step.image, step.state) for step in task.steps)
    return TraceSample(task.task_id, task.question, (task.image,), steps, task.answer, task.slice)


class SampleEncoder:
    """Encodes samples in chunks."""

    def __init__(self, coder: ImageCoder, vocab: Vocabulary) -> None:
        self.coder, self.vocab = coder, vocab
        self._resolution = coder.vq.config.resolution

    def encode(self, samples: Sequence[TraceSample]) -> list[EncodedSample | Rejection]:
        """Yield one result per sample, in order."""
        chains = [[self._view(p) for p in _images(sample) if isinstance(p, Image.Image)] for sample in samples]
        coded = iter(self.coder.chains([chain for chain in chains if chain]) if any(chains) else [])
        return [
            self._assemble(sample, next(coded) if chain else []) for sample, chain in zip(samples, chains, strict=True)
        ]

    def _assemble(self, sample: TraceSample, coded: Sequence[Codes]) -> EncodedSample | Rejection:
        left = iter(coded)

        def codes(image: SampleImage) -> Codes:
            return self._codes_of_ids(image) if isinstance(image, TokenIds) else next(left)

        try:
            images = tuple(codes(image) for image in sample.images)
            steps = tuple((s.text, s.state, None if s.image is None else codes(s.image)) for s in sample.steps)
        except SampleError as error:
            return Rejection(sample.where, error.code, error.detail)
        return EncodedSample(sample.where, sample.question, images, steps, sample.answer, sample.slice)

    def _codes_of_ids(self, image: TokenIds) -> Codes:
        ids, vocab = image.ids, self.vocab
        if len(ids) == vocab.tokens_per_image and (ids[0], ids[-1]) == (vocab.boi_id, vocab.eoi_id):
            ids = ids[1:-1]
        if len(ids) != vocab.codes_per_image:
            raise SampleError(
                "broken_picture", f"an image has {vocab.codes_per_image} codes, but this one has {len(ids)}"
            )
        found = [vocab.id_to_code(i) for i in ids]
        if None in found:
            raise SampleError(
                "broken_picture", f"token {ids[found.index(None)]} is not an image code of this checkpoint"
            )
        return tuple(code for code in found if code is not None)

    def _view(self, image: Image.Image) -> Image.Image:
        return model_view(image, self._resolution)


def _images(sample: TraceSample) -> Iterator[SampleImage]:
    yield from sample.images
    yield from (step.image for step in sample.steps if step.image is not None)


def build_token_set(
    samples: Iterable[TraceSample | Rejection],
    encoder: SampleEncoder,
    template: Template,
    *,
    variant: str = "interleaved",
    max_len: int,
    on_chunk: Callable[[int], None] | None = None,
) -> tuple[TokenSet | None, Intake]:
    """Sequences of at most ``max_len`` tokens, and a summary of all samples; None if nothing is left.

    Args:
        samples: read one by one, so that a large set's images are never in memory at once.
        encoder: encodes the images.
        template: the checkpoint's.
        variant: see :meth:`EncodedSample.render`.
        max_len: longer samples are rejected as ``too_long``.
        on_chunk: called after every chunk with the number of samples so far; may raise to stop.
    """
    rejected: list[Rejection] = []

    def kept() -> Iterator[Rendered]:
        source, seen = iter(samples), 0
        while chunk := list(islice(source, CHUNK)):
            seen += len(chunk)
            rejected.extend(item for item in chunk if isinstance(item, Rejection))
            for item in encoder.encode([item for item in chunk if isinstance(item, TraceSample)]):
                if isinstance(item, Rejection):
                    rejected.append(item)
                    continue
                rendered = attempted(item.where, partial(item.render, template, variant))
                if isinstance(rendered, Rejection):
                    rejected.append(rendered)
                elif len(rendered.ids) <= max_len:
                    yield rendered
                else:
                    detail = f"{len(rendered.ids)} tokens exceed {max_len}"
                    rejected.append(Rejection(item.where, "too_long", detail))
            if on_chunk is not None:
                on_chunk(seen)

    try:
        data = TokenSet.build(kept(), max_len)
    except EmptySetError:
        return None, Intake(0, tuple(rejected))
    return data, Intake(len(data), tuple(rejected))
