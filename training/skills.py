"""The atomic actions that turn an image into the next functional image.

Five actions, as text and as pure functions on images (method: paper section 3, Uni-Skills). Coordinates are
fractions of the image, origin at the top left; a box is its top-left corner and its size:

    BBOX(x,y,w,h)   ZOOM(x,y,w,h)   LINE(x1,y1,x2,y2)   MARK(x,y) or MARK(x,y,id)   PRED(change)

Knows nothing of tasks, models or files. `PRED` names a transition of a world ("right", "tilt left"); only that world
knows the next state, so `apply` takes it as a function.

    image = apply(Action.parse("BBOX(0.25,0.5,0.25,0.25)"), image)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from PIL import Image, ImageDraw

INK: Final = (255, 0, 255)
SKILLS: Final = ("box", "zoom", "line", "mark", "predict")
SKILL: Final = {"BBOX": "box", "ZOOM": "zoom", "LINE": "line", "MARK": "mark", "PRED": "predict"}

_NUM_ARGS: Final = {"BBOX": (4,), "ZOOM": (4,), "LINE": (4,), "MARK": (2, 3), "PRED": (1,)}
_CALL: Final = re.compile(r"\s*([A-Z]+)\s*\(([^()]*)\)\s*")
_MIN_LABEL_SIZE: Final = 160  # smaller images have no room for a readable number

# Skill of a step's text. The first verb decides: "I draw a line from the mark" is a line, "I mark the next bar" a mark;
# "marked" does not count.
_WORDS: Final = (
    ("zoom", re.compile(r"\bzoom(s|ing|ed)?\b|\bcrop\b|\blook closer\b")),
    ("mark", re.compile(r"(?<!the )(?<!The )\bmark\b|\bmarking\b")),
    ("box", re.compile(r"\b(draw|put|place|set|add)s? (a|the|another) box\b|\bI box\b", re.IGNORECASE)),
    (
        "line",
        re.compile(
            r"\b(a|the|another|second|straight) line (from|to|along|across|down|up|through|over|on|between)\b"
            r"|\bextend\b|\bI trace\b",
            re.IGNORECASE,
        ),
    ),
    (
        "predict",
        re.compile(r"\b(moves?|slides?|tilts?|tilting|turns?|flips?|swaps?|drops?|falls?|rotates?|next state)\b"),
    ),
)
_NOUNS: Final = (
    ("box", re.compile(r"\bbox(es|ed)?\b")),
    ("line", re.compile(r"\bline\b")),
    ("mark", re.compile(r"\bmark(s|ed)?\b")),
    ("predict", re.compile(r"\bpredict(s|ed|ion)?\b|\bnext (picture|position|board)\b")),
)


class ActionError(ValueError):
    """The action is unknown, or its arguments are invalid."""


@dataclass(frozen=True)
class Action:
    """One action: `name` is a key of `SKILL`; `args` are fractions (MARK: optional id last; PRED: a word)."""

    name: str
    args: tuple[float | int | str, ...]

    @staticmethod
    def parse(text: str) -> Action:
        """Parse "BBOX(0.25,0.5,0.2,0.2)". Raises `ActionError` if invalid."""
        match = _CALL.fullmatch(text)
        if match is None or match[1] not in SKILL:
            raise ActionError(f"not an action: {text!r} (expected one of {', '.join(SKILL)} with arguments)")
        name, raw = match[1], [part.strip() for part in match[2].split(",")]
        if name == "PRED":
            if not match[2].strip():
                raise ActionError("PRED needs the change it predicts")
            return Action(name, (match[2].strip(),))
        if len(raw) not in _NUM_ARGS[name]:
            raise ActionError(f"{name} takes {' or '.join(map(str, _NUM_ARGS[name]))} numbers, not {len(raw)}")
        try:
            numbers: list[float | int | str] = [float(part) for part in raw[:4]]
            if name == "MARK" and len(raw) == 3:
                numbers[2] = int(raw[2])
        except ValueError:
            raise ActionError(f"{name} needs numbers: {text!r}") from None
        if any(not 0.0 <= float(number) <= 1.0 for number in (numbers[:2] if name == "MARK" else numbers)):
            raise ActionError(f"coordinates are fractions from 0 to 1: {text!r}")
        return Action(name, tuple(numbers))

    def __str__(self) -> str:
        return f"{self.name}({','.join(f'{a:.6g}' if isinstance(a, float) else str(a) for a in self.args)})"

    @property
    def skill(self) -> str:
        """Name of the skill: `box`, `zoom`, `line`, `mark` or `predict`."""
        return SKILL[self.name]


def ink_width(image: Image.Image) -> int:
    """Stroke width in pixels: 3 at 64 px, scaled with the image."""
    return max(3, round(min(image.size) * 3 / 64))


def apply(
    action: Action, image: Image.Image, *, predict: Callable[[str, Image.Image], Image.Image] | None = None
) -> Image.Image:
    """Return the image after `action`, the same size as `image`, which is not modified.

    A PRED needs `predict(change, image)`, the world's own rule; raises `ActionError` without it.
    """
    if action.name == "PRED":
        if predict is None:
            raise ActionError(f"{action}: only the world of the image knows the next state")
        return predict(str(action.args[0]), image)
    if action.name == "ZOOM":
        return _zoom(action, image)
    out = image.copy()
    draw, width = ImageDraw.Draw(out), ink_width(image)
    if action.name == "BBOX":
        left, top, right, bottom = box_pixels(action, image)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=INK, width=width)
    elif action.name == "LINE":
        (x1, y1), (x2, y2) = line_pixels(action, image)
        stroke(out, (x1, y1), (x2, y2), INK, width)
    else:
        _mark(action, out, draw)
    return out


def box_pixels(action: Action, image: Image.Image) -> tuple[int, int, int, int]:
    """left, top, right, bottom of a BBOX or ZOOM in whole pixels inside the image, at least one pixel each way."""
    x, y, w, h = (float(value) for value in action.args)
    left, top = min(round(x * image.width), image.width - 1), min(round(y * image.height), image.height - 1)
    right, bottom = round((x + w) * image.width), round((y + h) * image.height)
    return left, top, min(max(right, left + 1), image.width), min(max(bottom, top + 1), image.height)


def line_pixels(action: Action, image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """Both ends of a LINE in whole pixels."""
    x1, y1, x2, y2 = (float(value) for value in action.args)
    return (round(x1 * image.width), round(y1 * image.height)), (round(x2 * image.width), round(y2 * image.height))


def mark_pixels(action: Action, image: Image.Image) -> tuple[int, int]:
    """The centre of a MARK in whole pixels."""
    return round(float(action.args[0]) * image.width), round(float(action.args[1]) * image.height)


def stroke(
    image: Image.Image, start: tuple[int, int], end: tuple[int, int], colour: tuple[int, int, int], width: int
) -> None:
    """Draw a straight stroke in place: crisp if horizontal or vertical, smooth with round ends if slanted."""
    (x1, y1), (x2, y2) = start, end
    before, after = width // 2, width - width // 2 - 1
    left, top, right, bottom = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    if x1 == x2 or y1 == y2:
        # The stroke ends exactly at its end points.
        x_pad, y_pad = ((before, after), (0, -1)) if x1 == x2 else ((0, -1), (before, after))
        box = (left - x_pad[0], top - y_pad[0], right + x_pad[1], bottom + y_pad[1])
        ImageDraw.Draw(image).rectangle((box[0], box[1], max(box[2], box[0]), max(box[3], box[1])), fill=colour)
        return
    # PIL's slanted lines vary in width with the slope; drawing at four times the size does not.
    over, pad = 4, width
    size = (right - left + 2 * pad, bottom - top + 2 * pad)
    mask = Image.new("L", (size[0] * over, size[1] * over), 0)
    draw, radius = ImageDraw.Draw(mask), width * over / 2
    ends = [((x - left + pad) * over, (y - top + pad) * over) for x, y in (start, end)]
    draw.line(ends, fill=255, width=width * over)
    for x, y in ends:
        draw.ellipse((x - radius, y - radius, x + radius - 1, y + radius - 1), fill=255)
    image.paste(colour, (left - pad, top - pad), mask.resize(size, Image.Resampling.BOX))


def _zoom(action: Action, image: Image.Image) -> Image.Image:
    return image.crop(box_pixels(action, image)).resize(image.size, Image.Resampling.BICUBIC)


@cache
def _disc_mask(half: int) -> Image.Image:
    mask = Image.new("L", (8 * half, 8 * half), 0)
    gap = round(0.4 * half)  # a whole number, so that the disc is symmetric
    ImageDraw.Draw(mask).ellipse((gap, gap, 8 * half - 1 - gap, 8 * half - 1 - gap), fill=255)
    return mask.resize((2 * half, 2 * half), Image.Resampling.BOX)


def _mark(action: Action, image: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    x, y = mark_pixels(action, image)
    numbered = len(action.args) == 3  # wide enough for its number, if the image has room for one
    half = max(4, round(min(image.size) * (6 if numbered else 4) / 64))
    image.paste(INK, (x - half, y - half), _disc_mask(half))
    if numbered and min(image.size) >= _MIN_LABEL_SIZE:
        draw.text((x, y), str(action.args[2]), fill=(255, 255, 255), anchor="mm")


def skill_of_text(text: str) -> str | None:
    """Which of `SKILLS` a step's text announces: its first verb decides, then its nouns; None if unknown."""
    for table in (_WORDS, _NOUNS):
        found = [(match.start(), skill) for skill, pattern in table if (match := pattern.search(text)) is not None]
        if found:
            return min(found)[1]
    return None
