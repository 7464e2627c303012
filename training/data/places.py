"""Image placeholders in a data set's question: from any spelling to ``<image_k>`` (:mod:`model.text.places`).

``<image>`` stands for the next image, ``<image_2>`` for the second, ``<image_start>[key]<image_end>`` for the image
under the row's key. A text that starts with all of its images in order needs no placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from model.text.places import PlaceError, place, split_places
from training.data.rows import SampleError

NAMED = re.compile(r"<image_start>\[(.*?)\]<image_end>")
_COUNTED = re.compile(r"<image(?:_([0-9]+))?>")
_SPACES = re.compile(r"[ \t]{2,}")


def numbered(text: str, count: int) -> str:
    """Number the ``<image>`` and ``<image_k>`` placeholders of a question with `count` images.

    Raises:
        SampleError: ``bad_place`` for a placeholder without an image; ``empty_question`` without other text.
    """
    if "<image" not in text:
        return text
    taken = {match[1] for match in _COUNTED.finditer(text)}
    free = iter([number for number in range(1, count + 1) if str(number) not in taken])
    missing = count + 1

    def number_of(match: re.Match[str]) -> str:
        return match[0] if match[1] else place(next(free, missing))

    return _tidy(_COUNTED.sub(number_of, text), count)


def named_places(text: str, keys: Sequence[str]) -> str:
    """Number the placeholders that name keys, in the order of `keys`.

    Raises:
        SampleError: ``bad_place``, if ``<image_k>`` names another image.
    """
    marked = NAMED.sub(lambda match: place(keys.index(match[1]) + 1), text)
    return _tidy(_SPACES.sub(" ", marked).strip(), len(keys))


def with_names(question: str, count: int) -> str:
    """The inverse: ``<image_k>`` as ``<image_start>[problem_image_k]<image_end>``, images without a placeholder first.

    Raises:
        PlaceError: a placeholder has no image.
    """
    pieces = split_places(question, count)
    return "".join(p if isinstance(p, str) else f"<image_start>[problem_image_{p + 1}]<image_end>" for p in pieces)


def _tidy(text: str, count: int) -> str:
    """Remove placeholders if the images come first anyway, in order."""
    try:
        pieces = [piece for piece in split_places(text, count) if not isinstance(piece, str) or piece.strip()]
    except PlaceError as error:
        raise SampleError("bad_place", str(error)) from None
    if pieces[:count] == list(range(count)) and all(isinstance(piece, str) for piece in pieces[count:]):
        text = "".join(str(piece) for piece in pieces[count:]).strip()
    if not any(isinstance(piece, str) for piece in pieces):
        raise SampleError("empty_question", "the question holds places of images and no text")
    return text
