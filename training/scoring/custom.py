"""Rewards of your own: what they are given, what they return, and where they are found.

A reward is a function of a question and a response. It returns a finite number, or several by name, which are added up:

    def short(sample: Sample, response: Response) -> float:
        return 1.0 if len(response.steps) <= 3 else 0.0

It is named in a specification (:class:`training.spec.hyperparameters.CustomReward`) by an entry point of the group
``omni_r1.rewards``, by ``file.py:function``, or by a URL, which gets the same as JSON. Knows no tensors and runs no
function: :mod:`training.scoring.custom_process` and :mod:`training.scoring.custom_url` do.
"""

from __future__ import annotations

import base64
import io
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

MAX_PARTS = 16
MAX_VALUE = 1e6
MAX_NAME = 64  # of a part


class RewardError(Exception):
    """The reward cannot be used at all; ``code`` for programs, ``detail`` for people."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Sample:
    """A question.

    Attributes:
        question: its text.
        reference: the right answer.
        choices: labelled options, if any.
        slice: of the world or the data set, or the name of the task family.
        images: RGB, as the model sees them; empty unless the specification says ``images: true``.
    """

    question: str
    reference: str
    choices: tuple[str, ...] = ()
    slice: str | None = None
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class ResponseStep:
    """A step: its text, the codes of its drawing (None without a complete one), and the drawing if asked for."""

    text: str
    codes: tuple[int, ...] | None = None
    image: Image.Image | None = None


@dataclass(frozen=True)
class Response:
    """A response, with the values of the built-in rewards.

    Attributes:
        answer: the final answer, or None.
        steps: in order.
        accuracy: R_Acc.
        format: R_Fmt.
        perception: R_Pe.
        num_tokens: its length.
    """

    answer: str | None
    steps: tuple[ResponseStep, ...] = ()
    accuracy: float = 0.0
    format: float = 0.0
    perception: float = 0.0
    num_tokens: int = 0

    @property
    def text(self) -> str:
        """The texts of the steps and the answer, one a line."""
        return "\n".join([*(step.text for step in self.steps), *([self.answer] if self.answer else [])])


@dataclass(frozen=True)
class Case:
    """A question and a response to it."""

    sample: Sample
    response: Response

    def to_json(self) -> dict[str, Any]:
        """As JSON; images are PNGs in base64."""
        sample, response = self.sample, self.response
        return {
            "sample": {
                "question": sample.question,
                "reference": sample.reference,
                "choices": list(sample.choices),
                "slice": sample.slice,
                "images": [_png(image) for image in sample.images],
            },
            "response": {
                "answer": response.answer,
                "steps": [
                    {
                        "text": step.text,
                        "codes": None if step.codes is None else list(step.codes),
                        "image": None if step.image is None else _png(step.image),
                    }
                    for step in response.steps
                ],
                "accuracy": response.accuracy,
                "format": response.format,
                "perception": response.perception,
                "num_tokens": response.num_tokens,
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Case:
        """The inverse of :meth:`to_json`."""
        sample, response = dict(data["sample"]), dict(data["response"])
        sample |= {"choices": tuple(sample["choices"]), "images": tuple(map(_image, sample["images"]))}
        response["steps"] = tuple(
            ResponseStep(
                step["text"],
                None if step["codes"] is None else tuple(step["codes"]),
                None if step["image"] is None else _image(step["image"]),
            )
            for step in response["steps"]
        )
        return cls(Sample(**sample), Response(**response))


@dataclass(frozen=True)
class CustomValue:
    """What a reward returned: its value, and the parts that it is the sum of, if it named some."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)


class CustomSource(Protocol):
    """Something that scores responses."""

    def score(self, cases: Sequence[Case]) -> list[CustomValue | str]:
        """A value for each case, or why it has none.

        Raises:
            RewardError: the source cannot be used any more.
        """
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


def read_value(value: object) -> CustomValue:
    """Check what a reward returned.

    Raises:
        ValueError: it is neither a finite number nor a few of them by name.
    """
    if isinstance(value, Mapping):
        if not 0 < len(value) <= MAX_PARTS:
            raise ValueError(f"it returned {len(value)} values; 1 to {MAX_PARTS} are possible")
        for name in value:
            if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_NAME or "/" in name:
                raise ValueError(f"a value's name must be text of at most {MAX_NAME} characters without a slash")
        parts = {name: _number(one, f"{name}: ") for name, one in value.items()}
        return CustomValue(sum(parts.values()), parts)
    return CustomValue(_number(value))


def _number(value: object, where: str = "") -> float:
    if not isinstance(value, numbers.Real):
        raise ValueError(f"{where}it returned a {type(value).__name__}, not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{where}it returned {number}")
    if abs(number) > MAX_VALUE:
        raise ValueError(f"{where}it returned {number:g}; values may not exceed {MAX_VALUE:g}")
    return number


def flat_values(custom: Mapping[str, CustomValue]) -> dict[str, float]:
    """Values by label, and those of their parts as ``label/part``."""
    flat: dict[str, float] = {}
    for label, value in custom.items():
        flat[label] = value.value
        flat |= {f"{label}/{part}": number for part, number in value.parts.items()}
    return flat


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _image(text: str) -> Image.Image:
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) as opened:
        return opened.convert("RGB")
