"""Contact sheet of the same tasks, one row per model. Knows no models or files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from training.world.task import Task

TILE, GAP, LINE, LABEL, FRAME = 68, 4, 14, 96, 2
COLUMNS, MAX_IMAGES = 3, 4
_GREEN, _RED, _GREY, _BLACK = (0, 140, 60), (205, 40, 40), (190, 190, 190), (20, 20, 20)


@dataclass
class Row:
    """A model's answer to a task: the question's image as seen, and its images with the checkers' verdict."""

    task: Task
    seen: Image.Image
    images: list[tuple[Image.Image, bool]] = field(default_factory=list)
    answer: str | None = None
    right: bool = False


def side_by_side(rows: Mapping[str, Sequence[Row]], *, most: int = 24) -> Image.Image:
    """The first task of each family, as drawn by each of ``rows`` (by name, the same tasks).

    Right drawings and answers are green, wrong ones red. The choice of tasks ignores the drawings.
    """
    chosen = _first_of_each([row.task for row in next(iter(rows.values()))])[:most]
    width = LABEL + (1 + MAX_IMAGES) * (TILE + GAP) + 2 * GAP
    height = 2 * LINE + len(rows) * (TILE + GAP) + 3 * GAP
    columns = min(COLUMNS, max(1, len(chosen)))
    sheet = Image.new("RGB", (columns * width, -(-len(chosen) // columns) * height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for place, number in enumerate(chosen):
        left, top = GAP + place % columns * width, GAP + place // columns * height
        task = next(iter(rows.values()))[number].task
        heading = f"{task.family}: {task.question}"
        draw.multiline_text((left, top), _two_lines(heading, width - 3 * GAP, draw, font), _BLACK, font, spacing=1)
        for below, (name, drawn) in enumerate(rows.items()):
            _paste(sheet, draw, font, left, top + 2 * LINE + below * (TILE + GAP), name, drawn[number])
    return sheet


def _paste(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    left: int,
    top: int,
    name: str,
    row: Row,
) -> None:
    draw.text((left, top + TILE // 2 - LINE), _cut(name, LABEL - GAP, draw, font), _BLACK, font)
    answer = "no answer" if row.answer is None else row.answer
    draw.text((left, top + TILE // 2), _cut(answer, LABEL - GAP, draw, font), _GREEN if row.right else _RED, font)
    tiles = [(row.seen, _GREY), *((image, _GREEN if right else _RED) for image, right in row.images)]
    for column, (image, frame) in enumerate(tiles[: 1 + MAX_IMAGES]):
        x = left + LABEL + column * (TILE + GAP)
        draw.rectangle((x, top, x + TILE - 1, top + TILE - 1), outline=frame, width=FRAME)
        inner = TILE - 2 * FRAME
        sheet.paste(image.resize((inner, inner), Image.Resampling.NEAREST), (x + FRAME, top + FRAME))


def _first_of_each(tasks: Sequence[Task]) -> list[int]:
    first: dict[tuple[str, str], int] = {}
    for number, task in enumerate(tasks):
        first.setdefault((task.slice, task.family), number)
    return [first[key] for key in sorted(first)]


def _cut(text: str, width: int, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    text = " ".join(text.split())
    while len(text) > 1 and draw.textlength(text, font=font) > width:
        text = text[:-1]
    return text


def _two_lines(
    text: str, width: int, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> str:
    """Fill the first line with words; put the rest, truncated, on the second."""
    words, first = text.split(), ""
    while words and draw.textlength(f"{first} {words[0]}", font=font) <= width:
        first = f"{first} {words.pop(0)}".strip()
    return f"{first}\n{_cut(' '.join(words), width, draw, font)}"
