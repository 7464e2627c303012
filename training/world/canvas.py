"""Building blocks of the world's images: colours, shapes, glyphs, and the pen.

Images are 64x64 and go through a tokenizer with one code per 8x8 pixels, so things are placed on a lattice of 8 px
(a shape fills two by two codes), strokes are 3 px and colours far apart. Ink is reserved for drawings. Knows nothing of
tasks.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from PIL import Image, ImageDraw

from training.skills import INK, Action, apply, stroke
from training.world.task import SIZE

RGB = tuple[int, int, int]

COLOURS: Final[dict[str, RGB]] = {
    "red": (225, 30, 30),
    "orange": (255, 145, 0),
    "yellow": (250, 222, 40),
    "green": (20, 150, 60),
    "cyan": (40, 205, 225),
    "blue": (35, 70, 215),
}
COLOUR_NAMES: Final = tuple(COLOURS)
BLACK: Final[RGB] = (30, 30, 30)
GREY: Final[RGB] = (150, 150, 150)
EMPTY: Final[RGB] = (222, 222, 222)
BACKGROUNDS: Final[tuple[RGB, ...]] = ((252, 252, 252), (250, 247, 238), (240, 245, 252))
STATE_COLOURS: Final[dict[str, RGB]] = {**COLOURS, "black": BLACK, "empty": EMPTY}
SHAPES: Final = ("circle", "square", "triangle", "diamond", "cross")
DIGITS: Final = "0123456789"

_SUPER: Final = 4
_SEGMENTS: Final = {
    "0": "abcdef",
    "1": "bc",
    "2": "abged",
    "3": "abgcd",
    "4": "fgbc",
    "5": "afgcd",
    "6": "afgedc",
    "7": "abc",
    "8": "abcdefg",
    "9": "abcdfg",
}
_SMALL: Final = {
    "0": "75557",
    "1": "26227",
    "2": "71747",
    "3": "71717",
    "4": "55711",
    "5": "74717",
    "6": "74757",
    "7": "71122",
    "8": "75757",
    "9": "75717",
}


def new_image(background: RGB = BACKGROUNDS[0]) -> Image.Image:
    """An empty image."""
    return Image.new("RGB", (SIZE, SIZE), background)


@cache
def shape_mask(shape: str, size: int) -> Image.Image:
    """Coverage of a shape `size` px wide, 8 bit, smooth at the edges."""
    n = size * _SUPER
    mask = Image.new("L", (n, n), 0)
    draw, e = ImageDraw.Draw(mask), n - 1
    if shape == "circle":
        draw.ellipse((0, 0, e, e), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, e, e), fill=255)
    elif shape == "triangle":
        draw.polygon(((e / 2, 0), (e, e), (0, e)), fill=255)
    elif shape == "diamond":
        draw.polygon(((e / 2, 0), (e, e / 2), (e / 2, e), (0, e / 2)), fill=255)
    elif shape == "cross":
        a, b = round(n * 0.32), n - 1 - round(n * 0.32)
        draw.rectangle((a, 0, b, e), fill=255)
        draw.rectangle((0, a, e, b), fill=255)
    else:
        raise ValueError(f"unknown shape {shape!r}")
    return mask.resize((size, size), Image.Resampling.BOX)


def put_shape(image: Image.Image, shape: str, colour: RGB, centre: tuple[int, int], size: int) -> None:
    """Draw a shape around `centre` (a pixel corner), in place."""
    image.paste(colour, (centre[0] - size // 2, centre[1] - size // 2), shape_mask(shape, size))


@cache
def _digit_mask(digit: str) -> Image.Image:
    mask = Image.new("L", (8, 12), 0)
    draw = ImageDraw.Draw(mask)
    boxes = {
        "a": (0, 0, 7, 1),
        "b": (6, 0, 7, 6),
        "c": (6, 5, 7, 11),
        "d": (0, 10, 7, 11),
        "e": (0, 5, 1, 11),
        "f": (0, 0, 1, 6),
        "g": (0, 5, 7, 6),
    }
    for segment in _SEGMENTS[digit]:
        draw.rectangle(boxes[segment], fill=255)
    return mask


def put_digit(image: Image.Image, digit: str, centre: tuple[int, int], colour: RGB = BLACK) -> None:
    """A large digit (8x12 px) around `centre`, in place."""
    image.paste(colour, (centre[0] - 4, centre[1] - 6), _digit_mask(digit))


@cache
def _small_mask(digit: str) -> Image.Image:
    mask = Image.new("L", (3, 5), 0)
    for y, row in enumerate(_SMALL[digit]):
        for x in range(3):
            if int(row) >> (2 - x) & 1:
                mask.putpixel((x, y), 255)
    return mask


def put_small_digit(image: Image.Image, digit: str, left: int, top: int, colour: RGB = BLACK) -> None:
    """A label (3x5 px), in place."""
    image.paste(colour, (left, top), _small_mask(digit))


def place_word(x: float, y: float) -> str:
    """Where a point in pixels lies, for example "upper left", "middle" or "right"."""
    row = "upper" if y < SIZE * 3 / 8 else "lower" if y > SIZE * 5 / 8 else ""
    column = "left" if x < SIZE * 3 / 8 else "right" if x > SIZE * 5 / 8 else ""
    if row and column:
        return f"{row} {column}"
    if row:
        return "top" if row == "upper" else "bottom"
    return column or "middle"


def bbox(left: float, top: float, right: float, bottom: float) -> Action:
    """BBOX of a pixel box, clipped to the image."""
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, SIZE), min(bottom, SIZE)
    return Action("BBOX", (left / SIZE, top / SIZE, (right - left) / SIZE, (bottom - top) / SIZE))


def zoom(left: float, top: float, right: float, bottom: float) -> Action:
    """ZOOM into a pixel box."""
    return Action("ZOOM", bbox(left, top, right, bottom).args)


def mark(x: float, y: float, number: int | None = None) -> Action:
    """MARK a pixel; a numbered mark is wider and hides most of a thing."""
    return Action("MARK", (x / SIZE, y / SIZE) if number is None else (x / SIZE, y / SIZE, number))


def line(x1: float, y1: float, x2: float, y2: float) -> Action:
    """LINE between two pixels."""
    return Action("LINE", (x1 / SIZE, y1 / SIZE, x2 / SIZE, y2 / SIZE))


__all__ = [
    "BACKGROUNDS",
    "BLACK",
    "COLOURS",
    "COLOUR_NAMES",
    "DIGITS",
    "EMPTY",
    "GREY",
    "INK",
    "RGB",
    "SHAPES",
    "STATE_COLOURS",
    "apply",
    "bbox",
    "line",
    "mark",
    "new_image",
    "place_word",
    "put_digit",
    "put_shape",
    "put_small_digit",
    "shape_mask",
    "stroke",
    "zoom",
]
