"""Structured images: charts and tables. Families `bar`, `difference`, `table`, `peak`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

from PIL import Image, ImageDraw

from training.skills import stroke
from training.world.canvas import (
    BACKGROUNDS,
    BLACK,
    COLOUR_NAMES,
    COLOURS,
    GREY,
    RGB,
    SHAPES,
    bbox,
    line,
    mark,
    new_image,
    put_digit,
    put_shape,
    put_small_digit,
)
from training.world.chain import ORDINALS, Chain, grades, one_of, say
from training.world.task import BoxTarget, Level, LineTarget, MarkTarget, Task

AXIS_X = 9  # centre of the upright axis
BASE_Y = 60  # baseline of the bars
TOP_VALUE = 6

# ---- what rises with the level

BARS = grades((3, 4, 5), (6,), (2,), (3,), (4, 5), (5, 6), (6,), (6,), (6,), (6,))
COMPARED_BARS = grades((2, 3, 4), (6,), (2,), (2, 3), (3, 4), (5, 6), (6,), (6,), (6,), (6,))
SCALES = grades(  # the lowest value on the axis, and the distance of two; the others need the labels to be read
    ((1, 1),),
    ((1, 1),),
    ((1, 1),),
    ((1, 1),),
    ((1, 1),),
    ((1, 1), (1, 1), (1, 1), (2, 1), (1, 2)),
    ((1, 1), (1, 1), (2, 1), (1, 2)),
    ((1, 1), (2, 1), (0, 2)),
    ((1, 1), (2, 1), (3, 1), (4, 1), (0, 2), (1, 2)),
    ((3, 1), (4, 1), (0, 2), (1, 2)),
)
GAP_SCALES = grades(  # a shifted axis changes no difference
    ((1, 1),),
    ((1, 1),),
    ((1, 1),),
    ((1, 1),),
    ((1, 1),),
    ((1, 1), (1, 1), (1, 1), (1, 2)),
    ((1, 1), (2, 1), (1, 2)),
    ((1, 1), (0, 2)),
    ((2, 1), (0, 2), (1, 2)),
    ((0, 2), (1, 2)),
)
MOVED = grades(
    (0,), (0,), (0,), (0,), (0, 0, 0, 2), (0, 0, 2), (0, 0, 3), (0, 3), (2, 3, 3), (3,)
)  # columns of a table
POINTS = grades((5, 6, 7), (8,), (4,), (5, 6), (6, 7), (7, 8), (8,), (8,), (8,), (8,))
RIVALS = grades(
    *(((0, 0),),) * 4, ((1, 8),), ((1, 5),), ((2, 5), (2, 4)), ((2, 4), (3, 4)), ((3, 3),), ((4, 2),)
)  # number, px apart

# ---- bars: one per column of codes, a unit is 8 px high

Bars = tuple[tuple[str, int, int], ...]  # colour, column of codes (2 … 7), height in units
Scale = tuple[int, int]  # the value of one unit, and what every further unit adds


def bar_top(bar: tuple[str, int, int]) -> tuple[int, int]:
    """Middle of a bar's upper edge."""
    return 8 * bar[1] + 4, BASE_Y - 8 * bar[2]


def value_of(units: int, scale: Scale) -> int:
    """The value on the axis at this height: one digit."""
    return scale[0] + scale[1] * (units - 1)


def _top(scale: Scale) -> int:
    """The highest bar in units."""
    return min(TOP_VALUE, 1 + (9 - scale[0]) // scale[1])


def draw_bars(bars: Bars, background: RGB, scale: Scale = (1, 1)) -> Image.Image:
    """The chart, with the values of 1 … 6 (or 5) units next to the axis."""
    image = new_image(background)
    draw = ImageDraw.Draw(image)
    for units in range(1, _top(scale) + 1):
        y = BASE_Y - 8 * units
        put_small_digit(image, str(value_of(units, scale)), 1, y - 2)
        draw.rectangle((6, y - 1, 8, y), fill=GREY)
    for bar in bars:
        x, y = bar_top(bar)
        draw.rectangle((x - 3, y, x + 2, BASE_Y - 1), fill=COLOURS[bar[0]])
    draw.rectangle((AXIS_X - 1, 3, AXIS_X + 1, 63), fill=BLACK)
    draw.rectangle((AXIS_X - 1, BASE_Y, 63, BASE_Y + 2), fill=BLACK)
    return image


def random_bars(rng: Random, count: int, values: list[int], top: int = TOP_VALUE) -> Bars:
    """Bars of different colours; the first len(values) of a random order have these values."""
    columns = sorted(rng.sample(range(2 if count > 5 else 3, 8), count))  # leaves room for a line to the axis
    order = rng.sample(range(count), count)
    heights = [rng.randint(1, top) for _ in range(count)]
    for place, value in zip(order, values, strict=False):
        heights[place] = value
    colours = rng.sample(COLOUR_NAMES, count)
    bars = [(colours[i], columns[i], heights[i]) for i in range(count)]
    return (*(bars[i] for i in order[: len(values)]), *(bars[i] for i in order[len(values) :]))


def make_bar(rng: Random, seed: int, level: Level) -> Task:
    """Read the value of one bar: mark its top, a line to the axis."""
    scale = one_of(rng, SCALES[level])
    units = rng.randint(1, _top(scale))
    value = value_of(units, scale)
    bars = random_bars(rng, one_of(rng, BARS[level]), [units], _top(scale))
    colour = bars[0][0]
    x, y = bar_top(bars[0])
    question = say(
        rng,
        f"What value does the {colour} bar have?",
        f"How high is the {colour} bar?",
        f"Read the value of the {colour} bar.",
    )
    chain = Chain(draw_bars(bars, rng.choice(BACKGROUNDS), scale))
    image = chain.image
    chain.act(
        say(rng, f"I mark the top of the {colour} bar.", f"I find the {colour} bar and mark its top."),
        mark(x, y),
        f"The mark is on the top of the {colour} bar, {units} units up.",
        MarkTarget((x, y)),
    )
    chain.act(
        say(rng, "I draw a line from there to the axis.", "From its top I draw a line across to the axis."),
        line(x, y, AXIS_X, y),
        f"The line meets the axis at {value}.",
        LineTarget((x, y), (AXIS_X, y)),
    )
    return Task(
        "structured",
        "bar",
        seed,
        question,
        image,
        tuple(chain.steps),
        str(value),
        level,
        tuple(str(value_of(u, scale)) for u in range(1, _top(scale) + 1)),
    )


def make_difference(rng: Random, seed: int, level: Level) -> Task:
    """How much higher one bar is than another: a line from each to the axis."""
    scale = one_of(rng, GAP_SCALES[level])
    gap = rng.randint(1, 4)
    low = rng.randint(1, _top(scale) - gap)
    bars = random_bars(rng, one_of(rng, COMPARED_BARS[level]), [low + gap, low], _top(scale))
    (high_colour, *_), (low_colour, *_) = bars[0], bars[1]
    question = say(
        rng,
        f"How much higher is the {high_colour} bar than the {low_colour} bar?",
        f"By how much is {low_colour} lower than {high_colour}?",
        f"What is the difference between the {high_colour} and the {low_colour} bar?",
    )
    chain = Chain(draw_bars(bars, rng.choice(BACKGROUNDS), scale))
    image = chain.image
    order = [bars[0], bars[1]]
    values: list[int] = []
    for i, bar in enumerate(order):
        x, y = bar_top(bar)
        value = value_of(bar[2], scale)
        found = "" if i == 0 else f"It is at {values[0]}. "
        text = found + say(
            rng,
            f"I draw a line from the {bar[0]} bar to the axis.",
            f"I draw a line across from the top of the {bar[0]} bar.",
        )
        chain.act(text, line(x, y, AXIS_X, y), f"The {bar[0]} bar is at {value}.", LineTarget((x, y), (AXIS_X, y)))
        values.append(value)
    choices = tuple(str(scale[1] * g) for g in range(1, 5))
    answer = str(scale[1] * gap)
    return Task("structured", "difference", seed, question, image, tuple(chain.steps), answer, level, choices)


# ---- table: shapes name the rows, digits the columns, coloured cells


def draw_table(
    shapes: tuple[str, ...], cells: tuple[tuple[str, ...], ...], background: RGB, columns: Sequence[int] = (1, 2, 3)
) -> Image.Image:
    """Three rows and columns of 16-px cells with headings; `columns` are the columns' numbers."""
    image = new_image(background)
    draw = ImageDraw.Draw(image)
    for i in range(3):
        put_digit(image, str(columns[i]), (24 + 16 * i, 8))
        put_shape(image, shapes[i], BLACK, (8, 24 + 16 * i), 12)
        for j, name in enumerate(cells[i]):
            draw.rectangle((17 + 16 * j, 17 + 16 * i, 30 + 16 * j, 30 + 16 * i), fill=COLOURS[name])
    return image


def _numbered(rng: Random, moved: int) -> tuple[int, ...]:
    """The numbers of three columns, 0, 2 or 3 of which are out of place."""
    if moved == 0:
        return 1, 2, 3
    return rng.choice(((2, 3, 1), (3, 1, 2)) if moved == 3 else ((2, 1, 3), (3, 2, 1), (1, 3, 2)))


def make_table(rng: Random, seed: int, level: Level) -> Task:
    """Look a cell up by its row and column, or a column by its row and colour."""
    shapes = tuple(rng.sample(SHAPES, 3))
    reverse = rng.random() < 0.3
    row, column = rng.randrange(3), rng.randrange(3)
    cells = tuple(
        tuple(rng.sample(COLOUR_NAMES, 3)) if reverse else tuple(rng.choice(COLOUR_NAMES) for _ in range(3))
        for _ in range(3)
    )
    columns = _numbered(rng, one_of(rng, MOVED[level]))
    number = columns[column]
    shape, colour = shapes[row], cells[row][column]
    image = draw_table(shapes, cells, rng.choice(BACKGROUNDS), columns)
    x, y = 24 + 16 * column, 24 + 16 * row
    chain = Chain(image)
    chain.act(
        say(rng, f"I draw a line along the {shape} row.", f"I draw a line from the {shape} along its row."),
        line(16, y, 62, y),
        f"The line runs along row {row + 1}: {', '.join(cells[row])}.",
        LineTarget((16, y), (60, y)),
    )
    if reverse:
        question = say(
            rng,
            f"In which column is {colour} in the {shape} row?",
            f"Which column of the {shape} row is {colour}?",
            f"Look at the {shape} row. In which column is {colour}?",
        )
        cell = (x - 8, y - 8, x + 8, y + 8)
        centres = tuple((24 + 16 * j, 24 + 16 * i) for i in range(3) for j in range(3) if (i, j) != (row, column))
        chain.act(
            say(rng, f"I draw a box around the {colour} cell on it.", f"On this row I draw a box around {colour}."),
            bbox(*cell),
            f"The box is around {colour} in column {number}.",
            BoxTarget(cell, centres),
        )
        answer = str(number)
        choices: tuple[str, ...] = ("1", "2", "3")
    else:
        question = say(
            rng,
            f"What colour is in the {shape} row and column {number}?",
            f"Which colour is the cell of the {shape} row in column {number}?",
            f"Look at column {number} of the {shape} row. What colour is it?",
        )
        chain.act(
            say(rng, f"I draw a line down column {number}.", f"I draw another line down column {number}."),
            line(x, 16, x, 62),
            f"The lines cross at row {row + 1}, column {number}, on {colour}.",
            LineTarget((x, 16), (x, 60)),
        )
        answer, choices = colour, COLOUR_NAMES
    return Task("structured", "table", seed, question, image, tuple(chain.steps), answer, level, choices)


# ---- peak: a line chart

PLOT_Y = 52  # centre of the horizontal axis


def point_at(column: int, value: float) -> tuple[int, int]:
    """Pixel of the point over a column's number."""
    return 8 * column + 4, PLOT_Y - round(8 * value)


def draw_curve(values: tuple[float, ...], colour: str, background: RGB) -> Image.Image:
    """A line chart over the numbers 1, 2, 3 …, 8 px apart."""
    image = new_image(background)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, PLOT_Y - 1, 63, PLOT_Y + 1), fill=BLACK)
    for i in range(len(values)):
        put_small_digit(image, str(i + 1), 8 * i + 3, 57)
    points = [point_at(i, value) for i, value in enumerate(values)]
    for start, end in pairwise(points):
        stroke(image, start, end, COLOURS[colour], 3)
    for x, y in points:
        draw.rectangle((x - 2, y - 2, x + 1, y + 1), fill=COLOURS[colour])
    return image


def make_peak(rng: Random, seed: int, level: Level) -> Task:
    """At which number a curve is highest or lowest: mark the point, a line down to the axis."""
    count = one_of(rng, POINTS[level])
    place = rng.randrange(count)
    high = rng.random() < 0.5
    values: list[float] = [rng.randint(1, 4) if high else rng.randint(4, 6) for _ in range(count)]
    values[place] = rng.randint(5, 6) if high else rng.randint(2, 3)
    rivals, apart = one_of(rng, RIVALS[level])
    for rival in rng.sample([i for i in range(count) if i != place], rivals) if rivals else ():
        values[rival] = values[place] - (apart if high else -apart) / 8
    colour = rng.choice(COLOUR_NAMES)
    word = say(rng, "highest", "at its top") if high else say(rng, "lowest", "at its bottom")
    question = say(rng, f"At which number is the line {word}?", f"Over which number is the {colour} line {word}?")
    point = "highest point" if high else "lowest point"
    chain = Chain(draw_curve(tuple(values), colour, rng.choice(BACKGROUNDS)))
    image = chain.image
    x, y = point_at(place, values[place])
    chain.act(
        say(rng, f"I mark the {point}.", f"I look for the {point} and mark it."),
        mark(x, y),
        f"The mark is on the {ORDINALS[place]} point.",
        MarkTarget((x, y)),
    )
    chain.act(
        say(rng, "I draw a line down to the axis.", "From the mark I draw a line down to the numbers."),
        line(x, y, x, PLOT_Y),
        f"The line meets the axis at {place + 1}.",
        LineTarget((x, y), (x, PLOT_Y)),
    )
    return Task(
        "structured",
        "peak",
        seed,
        question,
        image,
        tuple(chain.steps),
        str(place + 1),
        level,
        tuple(str(i + 1) for i in range(count)),
    )
