"""Structured images: charts and tables. Families `bar`, `difference`, `table`, `peak`."""

from __future__ import annotations

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
TOPS = grades((6,), (6,), (6,), (6,), (6,), (6, 6, 6, 7), (6, 6, 7), (6, 7), (7, 8), (8,))
GAPS = grades(*(range(1, 5),) * 7, range(1, 6), range(1, 7), range(1, 8))
TABLES = grades(
    ((3, 3),),
    ((3, 3),),
    ((3, 3),),
    ((3, 3), (3, 3), (3, 3), (3, 3), (3, 4)),
    ((3, 3), (3, 3), (3, 3), (3, 4)),
    ((3, 3), (3, 4)),
    ((3, 3), (3, 4), (4, 3)),
    ((3, 4), (4, 3), (4, 4)),
    ((4, 4), (4, 5)),
    ((5, 5), (5, 6)),
)  # rows, columns
POINTS = grades((5, 6, 7), (8,), (4,), (5, 6), (6, 7), (7, 8), (8,), (8,), (8,), (8,))
RIVALS = grades(
    *(((0, 0),),) * 4, ((1, 8),), ((1, 5),), ((2, 5), (2, 4)), ((2, 4), (3, 4)), ((3, 3),), ((4, 2),)
)  # number, px apart

# ---- bars: one per column of codes, a unit is 8 px high with six values, 7 with seven and 6 with eight

Bars = tuple[tuple[str, int, int], ...]  # colour, column of codes (2 … 7), value


def _unit(top: int) -> int:
    return 14 - top


def bar_top(bar: tuple[str, int, int], top: int = TOP_VALUE) -> tuple[int, int]:
    """Middle of a bar's upper edge."""
    return 8 * bar[1] + 4, BASE_Y - _unit(top) * bar[2]


def draw_bars(bars: Bars, background: RGB, top: int = TOP_VALUE) -> Image.Image:
    """The chart, with the values 1 … `top` (6, 7 or 8) next to the axis."""
    image = new_image(background)
    draw = ImageDraw.Draw(image)
    for value in range(1, top + 1):
        y = BASE_Y - _unit(top) * value
        put_small_digit(image, str(value), 1, y - 2)
        draw.rectangle((6, y - 1, 8, y), fill=GREY)
    for bar in bars:
        x, y = bar_top(bar, top)
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
    top = one_of(rng, TOPS[level])
    value = rng.randint(1, top)
    bars = random_bars(rng, one_of(rng, BARS[level]), [value], top)
    colour = bars[0][0]
    x, y = bar_top(bars[0], top)
    question = say(
        rng,
        f"What value does the {colour} bar have?",
        f"How high is the {colour} bar?",
        f"Read the value of the {colour} bar.",
    )
    chain = Chain(draw_bars(bars, rng.choice(BACKGROUNDS), top))
    image = chain.image
    chain.act(
        say(rng, f"I mark the top of the {colour} bar.", f"I find the {colour} bar and mark its top."),
        mark(x, y),
        f"The mark is on the top of the {colour} bar, {value} units up.",
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
        tuple(str(v) for v in range(1, top + 1)),
    )


def make_difference(rng: Random, seed: int, level: Level) -> Task:
    """How much higher one bar is than another: a line from each to the axis."""
    top = one_of(rng, TOPS[level])
    gap = rng.choice([gap for gap in GAPS[level] if gap < top])
    low = rng.randint(1, top - gap)
    bars = random_bars(rng, one_of(rng, COMPARED_BARS[level]), [low + gap, low], top)
    (high_colour, *_), (low_colour, *_) = bars[0], bars[1]
    question = say(
        rng,
        f"How much higher is the {high_colour} bar than the {low_colour} bar?",
        f"By how much is {low_colour} lower than {high_colour}?",
        f"What is the difference between the {high_colour} and the {low_colour} bar?",
    )
    chain = Chain(draw_bars(bars, rng.choice(BACKGROUNDS), top))
    image = chain.image
    order = [bars[0], bars[1]]
    values: list[int] = []
    for i, bar in enumerate(order):
        x, y = bar_top(bar, top)
        found = "" if i == 0 else f"It is at {values[0]}. "
        text = found + say(
            rng,
            f"I draw a line from the {bar[0]} bar to the axis.",
            f"I draw a line across from the top of the {bar[0]} bar.",
        )
        chain.act(text, line(x, y, AXIS_X, y), f"The {bar[0]} bar is at {bar[2]}.", LineTarget((x, y), (AXIS_X, y)))
        values.append(bar[2])
    choices = tuple(map(str, GAPS[level]))
    return Task("structured", "difference", seed, question, image, tuple(chain.steps), str(gap), level, choices)


# ---- table: shapes name the rows, digits the columns, coloured cells


HEADING = 16  # px, width of the headings


def cell_size(rows: int, columns: int) -> int:
    """Width and height of a table's cells in pixels: at most 16."""
    return min(16, 48 // max(rows, columns))


def draw_table(shapes: tuple[str, ...], cells: tuple[tuple[str, ...], ...], background: RGB) -> Image.Image:
    """Rows and columns of coloured cells with headings; the cells of three rows and columns are 16 px wide."""
    image = new_image(background)
    draw = ImageDraw.Draw(image)
    size = cell_size(len(cells), len(cells[0]))
    for j in range(len(cells[0])):
        x = HEADING + size * j + size // 2
        if size >= 12:
            put_digit(image, str(j + 1), (x, 8))
        else:
            put_small_digit(image, str(j + 1), x - 1, 6)
    for i, names in enumerate(cells):
        y = HEADING + size * i
        put_shape(image, shapes[i], BLACK, (8, y + size // 2), min(12, size - 1))
        for j, name in enumerate(names):
            x = HEADING + size * j
            draw.rectangle((x + 1, y + 1, x + size - 2, y + size - 2), fill=COLOURS[name])
    return image


def make_table(rng: Random, seed: int, level: Level) -> Task:
    """Look a cell up by its row and column, or a column by its row and colour."""
    rows, columns = one_of(rng, TABLES[level])
    shapes = tuple(rng.sample(SHAPES, rows))
    reverse = rng.random() < 0.3
    row, column = rng.randrange(rows), rng.randrange(columns)
    cells = tuple(
        tuple(rng.sample(COLOUR_NAMES, columns)) if reverse else tuple(rng.choice(COLOUR_NAMES) for _ in range(columns))
        for _ in range(rows)
    )
    shape, colour = shapes[row], cells[row][column]
    image = draw_table(shapes, cells, rng.choice(BACKGROUNDS))
    size = cell_size(rows, columns)
    centres = [
        [(HEADING + size * j + size // 2, HEADING + size * i + size // 2) for j in range(columns)] for i in range(rows)
    ]
    x, y = centres[row][column]
    right, bottom = HEADING + size * columns, HEADING + size * rows
    chain = Chain(image)
    chain.act(
        say(rng, f"I draw a line along the {shape} row.", f"I draw a line from the {shape} along its row."),
        line(HEADING, y, right - 2, y),
        f"The line runs along row {row + 1}: {', '.join(cells[row])}.",
        LineTarget((HEADING, y), (right - 4, y)),
    )
    if reverse:
        question = say(
            rng,
            f"In which column is {colour} in the {shape} row?",
            f"Which column of the {shape} row is {colour}?",
            f"Look at the {shape} row. In which column is {colour}?",
        )
        left, upper = HEADING + size * column, HEADING + size * row
        cell = (left, upper, left + size, upper + size)
        rest = tuple(centre for line_of in centres for centre in line_of if centre != (x, y))
        chain.act(
            say(rng, f"I draw a box around the {colour} cell on it.", f"On this row I draw a box around {colour}."),
            bbox(*cell),
            f"The box is around {colour} in column {column + 1}.",
            BoxTarget(cell, rest),
        )
        answer = str(column + 1)
        choices: tuple[str, ...] = tuple(str(j + 1) for j in range(columns))
    else:
        question = say(
            rng,
            f"What colour is in the {shape} row and column {column + 1}?",
            f"Which colour is the cell of the {shape} row in column {column + 1}?",
            f"Look at column {column + 1} of the {shape} row. What colour is it?",
        )
        chain.act(
            say(rng, f"I draw a line down column {column + 1}.", f"I draw another line down column {column + 1}."),
            line(x, HEADING, x, bottom - 2),
            f"The lines cross at row {row + 1}, column {column + 1}, on {colour}.",
            LineTarget((x, HEADING), (x, bottom - 4)),
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
