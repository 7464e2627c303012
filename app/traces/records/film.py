"""A trace as an animated GIF: the question's image, each functional image with its sentence, the answer.

Blocking: call from `pools.films`. All frames of a film have one size; at most `MAX_FRAMES` frames of `SIDE` pixels with
256 colours are in memory, and one image in full.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIDE = 512
MAX_FRAMES = 64
STEP_MS = 2_000
ANSWER_MS = 4_000
_MARGIN = 16
_MAX_LINES = 5
_MAX_CHARS = 600  # more than the lines hold
_PIXELATED = 128  # smaller images are enlarged without smoothing
_TEXT_SIZE, _LINE = 22, 30
_LABEL_SIZE, _LABEL_LINE = 16, 26
_PAPER, _INK, _SOFT, _WELL = (255, 255, 255), (28, 30, 36), (91, 96, 109), (238, 240, 244)


@dataclass(frozen=True)
class _Scene:
    """One frame: an image (None: as before), a label and its sentence."""

    image_id: str | None
    label: str
    text: str
    ms: int = STEP_MS


def render(trace: Mapping[str, Any], read: Callable[[str], bytes]) -> bytes:
    """The GIF of a trace in the API's JSON; `read` returns the PNG of an image id, and may raise."""
    scenes = _scenes(trace)
    captions = [_wrapped(scene.text) for scene in scenes]
    band = _MARGIN + _LABEL_LINE + _LINE * max(map(len, captions)) + _MARGIN
    frames = _frames(scenes, captions, band, read)
    first = next(frames)
    out = io.BytesIO()
    first.save(
        out, "GIF", save_all=True, append_images=frames, duration=[scene.ms for scene in scenes], loop=0, disposal=1
    )
    return out.getvalue()


def readable_question(question: str) -> str:
    """The question with `[image 1]` in place of `<image_1>`."""
    return re.sub(r"<image_(\d+)>", r"[image \1]", question)


def _scenes(trace: Mapping[str, Any]) -> list[_Scene]:
    """What the film shows; a very long trace loses the steps that do not fit, but never its answer."""
    question = readable_question(trace["question"])
    shown = [image["image_id"] for image in trace["images"]] or [None]
    scenes = [_Scene(image_id, "Question", question) for image_id in shown]
    for step in trace["steps"]:
        image = step.get("image")
        scenes.append(_Scene(image["image_id"] if image else None, f"Step {step['index']}", step["text"]))
    if trace["answer"] is None:
        return scenes[:MAX_FRAMES]
    return [*scenes[: MAX_FRAMES - 1], _Scene(None, "Answer", trace["answer"] or "(empty)", ANSWER_MS)]


def _frames(
    scenes: list[_Scene], captions: list[list[str]], band: int, read: Callable[[str], bytes]
) -> Iterator[Image.Image]:
    square = Image.new("RGB", (SIDE, SIDE), _WELL)
    for scene, lines in zip(scenes, captions, strict=True):
        if scene.image_id is not None:
            square = _square(read(scene.image_id))
        frame = Image.new("RGB", (SIDE, SIDE + band), _PAPER)
        frame.paste(square)
        draw = ImageDraw.Draw(frame)
        draw.text((_MARGIN, SIDE + _MARGIN), scene.label, _SOFT, _font(_LABEL_SIZE))
        for number, line in enumerate(lines):
            draw.text((_MARGIN, SIDE + _MARGIN + _LABEL_LINE + number * _LINE), line, _INK, _font(_TEXT_SIZE))
        yield frame.quantize(256)


def _square(png: bytes) -> Image.Image:
    """The image in a square of `SIDE` pixels, whole and centred."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
        scale = SIDE / max(opened.size)
        size = max(1, round(opened.width * scale)), max(1, round(opened.height * scale))
        smooth = Image.Resampling.LANCZOS if max(opened.size) > _PIXELATED else Image.Resampling.NEAREST
        image = opened.convert("RGB").resize(size, smooth, reducing_gap=2.0)
    square = Image.new("RGB", (SIDE, SIDE), _WELL)
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return square


def _wrapped(text: str) -> list[str]:
    """The text in lines that fit the band; the last one ends with an ellipsis if there is more."""
    begin = "".join(char if char.isprintable() else " " for char in text[:_MAX_CHARS])
    lines = [""]
    for part in (part for word in begin.split() for part in _parts(word)):
        longer = f"{lines[-1]} {part}".strip()
        if _fits(longer):
            lines[-1] = longer
        else:
            lines.append(part)
    if len(lines) <= _MAX_LINES and len(text) <= _MAX_CHARS:
        return lines
    last = lines[:_MAX_LINES][-1]
    while not _fits(last + " …"):
        last = last[:-1]
    return [*lines[:_MAX_LINES][:-1], last + " …"]


def _parts(word: str) -> Iterator[str]:
    """The word itself, or pieces of one that is wider than the band."""
    while not _fits(word):
        end = next((end for end in range(len(word) - 1, 1, -1) if _fits(word[:end])), 1)
        yield word[:end]
        word = word[end:]
    yield word


def _fits(line: str) -> bool:
    return bool(_font(_TEXT_SIZE).getlength(line) <= SIDE - 2 * _MARGIN)


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
