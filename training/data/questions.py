"""Questions with answers from files of any known kind, for the benchmark and PeRPO.

Reads own questions, the authors' jsonl, saved traces, Zebra-CoT, M3CoT and Omni-Bench, of which only question, images,
options and answer are used. Knows no training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from training.data.chains import LETTERS, choices_of, m3cot_chain
from training.data.omni_bench import choices_in, options_in, read_omni_bench
from training.data.places import numbered
from training.data.row_images import SampleError
from training.data.rows import Rejection, Row, parsed, read_rows
from training.data.traces import SampleImage, TokenIds, TraceSample, parse_question
from training.spec.spec import JsonlData, M3CoTData, OmniBenchData, TracesData, ZebraCoTData

if TYPE_CHECKING:  # the server checks data without torch
    from model.nets.vq import VQModel
    from model.text.template import Template

ID_FIELDS = ("id", "question_id")
MAX_SLICE_CHARS = 100

QuestionFiles = JsonlData | TracesData | ZebraCoTData | M3CoTData | OmniBenchData


@dataclass(frozen=True)
class Question:
    """A question and its reference answer.

    Attributes:
        where: its file and line.
        text: its text, with ``<image_k>`` placeholders.
        images: its images.
        answer: the reference answer.
        slice: of the data set, if any.
        choices: labelled options, if any.
        question_id: its own id, or its location.
        source: the data set within the slice.
    """

    where: str
    text: str
    images: tuple[SampleImage, ...]
    answer: str
    slice: str | None = None
    choices: tuple[str, ...] = ()
    question_id: str = ""
    source: str | None = None


def read_questions(data: QuestionFiles, image_size: int | None = None) -> Iterator[Question | Rejection]:
    """Read every question of the files, or a rejection with its location.

    Args:
        data: the files.
        image_size: pixels a side of the model that the images are for.

    Raises:
        training.data.rows.DataError: no known data was found.
        ValueError: traces have not been exported yet.
    """
    if isinstance(data, M3CoTData):
        yield from _m3cot(data, image_size)
        return
    if data.path is None:
        raise ValueError("these traces have not been exported: the server does that before it starts the job")
    if isinstance(data, OmniBenchData):
        for item in read_omni_bench(data.path, image_size, data.columns):
            if isinstance(item, Rejection):
                yield item
            else:
                yield Question(
                    where=item.where,
                    text=item.text,
                    images=item.images,
                    answer=item.answer,
                    slice=item.slice,
                    choices=item.choices,
                    question_id=item.question_id,
                    source=item.source,
                )
        return
    seen = SeenIds()
    for row in read_rows(data.path, image_size, columns=data.columns):
        if isinstance(row, Rejection):
            yield row
        else:
            yield parsed(row, lambda row: question_of(row, parse_question(row), seen))


def question_of(row: Row, sample: TraceSample, seen: SeenIds) -> Question:
    """The question of a row in the authors' or the plain format; `sample` is its :func:`parse_question`.

    Options in a field of their own are listed below the question, unless its text lists them.

    Raises:
        SampleError: ``duplicate_id``, or ``wrong_type`` for options that are no list of texts.
    """
    name = seen.take(row)
    text, choices = sample.question, choices_in(row.data, sample.question)
    if choices and not options_in(text):
        if any("<image" in choice for choice in choices):
            raise SampleError("bad_place", "an option refers to an image; put the place into the question")
        text += "".join(f"\n({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    slice_ = (sample.slice or "").strip()[:MAX_SLICE_CHARS].replace("/", "-") or None  # "/" separates groups
    return Question(row.where, text, sample.images, sample.answer, slice_, choices, question_id=name or row.where)


class SeenIds:
    """The ids of a data set's questions, which must be unique within each file."""

    def __init__(self) -> None:
        self._lines: dict[int, int] = {}  # hash of file and id -> line

    def take(self, row: Row) -> str:
        """The row's id, "" without one.

        Raises:
            SampleError: ``duplicate_id``, an earlier row has it.
        """
        name = next((text for field in ID_FIELDS if (text := _id_text(row.data.get(field)))), "")
        if name:
            first = self._lines.setdefault(hash((row.file, name)), row.number)
            if first != row.number:
                raise SampleError("duplicate_id", f"line {first} has the id {name[:80]!r}, too")
        return name


def _id_text(value: Any) -> str:
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _m3cot(data: M3CoTData, image_size: int | None) -> Iterator[Question | Rejection]:
    for row in read_rows(data.path, image_size, columns=data.columns):
        if isinstance(row, Rejection):
            yield row
        elif data.split is None or row.data.get("split") == data.split:
            yield parsed(row, _m3cot_question)


def _m3cot_question(row: Row) -> Question:
    value = row.data.get("image")
    images = () if value is None else (row.image(value),)
    # the chain's thoughts are not used here
    chain = m3cot_chain({**row.data, "rationale": row.data.get("rationale") or "-"}, None, max_steps=1)
    return Question(
        where=row.where,
        text=numbered(chain.question, len(images)),
        images=images,
        answer=chain.answer,
        slice=chain.slice,
        choices=choices_of(row.data),
        question_id=chain.chain_id or row.where,
    )


def image_codes(image: SampleImage, template: Template, vq: VQModel) -> tuple[int, ...]:
    """Encode a question's image.

    Raises:
        SampleError: the token ids are not an image of this checkpoint.
    """
    from model.images.codes import encode_images

    if isinstance(image, Image.Image):
        return encode_images(vq, [image])[0]
    return codes_of_ids(image, template)


def codes_of_ids(image: TokenIds, template: Template) -> tuple[int, ...]:
    """Convert an image's token ids, with or without begin- and end-image, to codes.

    Raises:
        SampleError: not N codes of this checkpoint.
    """
    vocab, ids = template.vocab, image.ids
    if len(ids) == vocab.tokens_per_image and (ids[0], ids[-1]) == (vocab.boi_id, vocab.eoi_id):
        ids = ids[1:-1]
    codes = [code for i in ids if (code := vocab.id_to_code(i)) is not None]
    if len(codes) != len(ids) or len(codes) != vocab.codes_per_image:
        raise SampleError("broken_picture", f"{len(image.ids)} token ids are not an image of this checkpoint")
    return tuple(codes)
