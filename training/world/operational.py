"""Operations: the next state, drawn completely. Families `walker`, `tilt`, `rotate`.

Every cell is a tile whose edges lie on the 8-px lattice, 1 px of background around it.
"""

from __future__ import annotations

from random import Random

from PIL import Image, ImageDraw

from training.world.canvas import BACKGROUNDS, BLACK, COLOUR_NAMES, COLOURS, EMPTY, RGB, new_image
from training.world.chain import COUNT_WORDS, Chain, grades, one_of, say
from training.world.task import Level, StateTarget, Task

Cells = tuple[tuple[str, ...], ...]  # rows of colour names; "empty" for no block
MOVES = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


def tile(draw: ImageDraw.ImageDraw, left: int, top: int, size: int, colour: RGB) -> None:
    """One cell."""
    draw.rectangle((left + 1, top + 1, left + size - 2, top + size - 2), fill=colour)


# ---- what rises with the level

WALKS = grades((2, 3, 4), (5, 6), (2,), (2, 3), (3, 4), (4, 4, 5), (4, 5), (5,), (5, 6), (7, 8))
TILTS = grades((1, 2, 2, 3, 3), (4, 5), (1,), (1, 2), (2, 3), (3,), (3, 4), (4,), (5,), (6,))
BLOCKS = grades((3, 4, 5), (5, 6), (3,), (3, 4), (3, 4, 5), (4, 5), (5,), (5, 6), (6,), (6,))
CHANGES = grades((2, 3), (3, 4), (2,), (2, 3), (3, 3, 3, 4), (3, 3, 4), (3, 4), (3, 4, 4), (4, 5), (4, 5))
SIDES = grades((2,), (3,), (2,), (2,), (2,), (2,), (2,), (2,), (2, 3), (3,))


# ---- walker: a black disc on coloured tiles


def draw_walker(cells: Cells, at: tuple[int, int], background: RGB) -> Image.Image:
    """The 4x4 board with the walker at (column, row)."""
    image = new_image(background)
    draw = ImageDraw.Draw(image)
    for row, names in enumerate(cells):
        for column, name in enumerate(names):
            tile(draw, 16 * column, 16 * row, 16, COLOURS[name])
    x, y = 16 * at[0] + 8, 16 * at[1] + 8
    draw.ellipse((x - 6, y - 6, x + 5, y + 5), fill=BLACK)
    return image


def walker_target(cells: Cells, at: tuple[int, int]) -> StateTarget:
    """Centre of every cell: black at the walker's position."""
    return StateTarget(
        tuple(
            (16 * c + 8, 16 * r + 8, "black" if (c, r) == at else name)
            for r, names in enumerate(cells)
            for c, name in enumerate(names)
        )
    )


def join_words(words: list[str]) -> str:
    """The words as a list in prose, for example "up, left and down"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def make_walker(rng: Random, seed: int, level: Level) -> Task:
    """Several moves on a board of coloured tiles; asks for the colour at the end."""
    count = one_of(rng, WALKS[level])
    cells = tuple(tuple(rng.choice(COLOUR_NAMES) for _ in range(4)) for _ in range(4))
    at = (rng.randrange(4), rng.randrange(4))
    moves: list[str] = []
    spots = [at]
    while len(moves) < count:
        move = rng.choice(tuple(MOVES))
        spot = (spots[-1][0] + MOVES[move][0], spots[-1][1] + MOVES[move][1])
        if 0 <= spot[0] < 4 and 0 <= spot[1] < 4 and (len(spots) < 2 or spot != spots[-2]):
            moves.append(move)
            spots.append(spot)
    background = rng.choice(BACKGROUNDS)
    image = draw_walker(cells, at, background)
    ask_row = rng.random() < 0.2
    way = join_words(moves)
    goal = (
        say(rng, "In which row does it end, counted from the top?", "Which row from the top is it in then?")
        if ask_row
        else say(
            rng, "What colour is the tile it ends on?", "On which colour does it stop?", "What colour is it on then?"
        )
    )
    question = say(
        rng, f"The walker goes {way}. {goal}", f"Move the walker {way}. {goal}", f"The black dot walks {way}. {goal}"
    )
    style = rng.randrange(3)
    chain = Chain(image)
    for move, (column, row) in zip(moves, spots[1:], strict=True):
        text = (f"The walker moves {move}.", f"It moves one tile {move}.", f"Next state: it moves {move}.")[style]
        chain.predict(
            text,
            move,
            draw_walker(cells, (column, row), background),
            f"The walker is at row {row + 1}, column {column + 1}, on {cells[row][column]}.",
            walker_target(cells, (column, row)),
        )
    column, row = spots[-1]
    answer = str(row + 1) if ask_row else cells[row][column]
    return Task(
        "operational",
        "walker",
        seed,
        question,
        image,
        tuple(chain.steps),
        answer,
        level,
        ("1", "2", "3", "4") if ask_row else COLOUR_NAMES,
    )


# ---- tilt: blocks slide until they hit something


def draw_blocks(cells: Cells, background: RGB) -> Image.Image:
    """A 4x4 tray with blocks."""
    image = new_image(background)
    draw = ImageDraw.Draw(image)
    for row, names in enumerate(cells):
        for column, name in enumerate(names):
            tile(draw, 16 * column, 16 * row, 16, EMPTY if name == "empty" else COLOURS[name])
    return image


def blocks_target(cells: Cells, size: int = 16, offset: int = 0) -> StateTarget:
    """Centre of every cell: its block's colour or "empty"."""
    half = size // 2
    return StateTarget(
        tuple(
            (offset + size * c + half, offset + size * r + half, name)
            for r, names in enumerate(cells)
            for c, name in enumerate(names)
        )
    )


def slide(cells: Cells, direction: str) -> Cells:
    """All blocks slide to one side."""

    def pack(names: tuple[str, ...], to_end: bool) -> tuple[str, ...]:
        blocks = [name for name in names if name != "empty"]
        gap = ["empty"] * (len(names) - len(blocks))
        return tuple(gap + blocks if to_end else blocks + gap)

    if direction in ("left", "right"):
        return tuple(pack(names, direction == "right") for names in cells)
    columns = (pack(names, direction == "down") for names in zip(*cells, strict=True))
    return tuple(zip(*columns, strict=True))


def blocks_state(cells: Cells) -> str:
    """The state as text, a sentence for each block: "Red is at row 1, column 4."."""
    return " ".join(
        f"{name.capitalize()} is at row {r + 1}, column {c + 1}."
        for r, names in enumerate(cells)
        for c, name in enumerate(names)
        if name != "empty"
    )


def random_tray(rng: Random, count: int) -> Cells:
    """Blocks of `count` different colours on a 4x4 tray."""
    names = ["empty"] * 16
    for place, colour in zip(rng.sample(range(16), count), rng.sample(COLOUR_NAMES, count), strict=True):
        names[place] = colour
    return tuple(tuple(names[4 * r : 4 * r + 4]) for r in range(4))


def make_tilt(rng: Random, seed: int, level: Level) -> Task:
    """Tilt the tray one to three times; asks for a block's position, or for the block in a corner."""
    while True:
        cells = random_tray(rng, one_of(rng, BLOCKS[level]))
        directions, states = [rng.choice(tuple(MOVES))], []
        for _ in range(one_of(rng, TILTS[level]) - 1):
            sideways = directions[-1] in ("left", "right")
            directions.append(rng.choice(("up", "down") if sideways else ("left", "right")))
        state = cells
        for direction in directions:
            state = slide(state, direction)
            states.append(state)
        if all(a != b for a, b in zip([cells, *states[:-1]], states, strict=True)):
            break
    corners = {"upper left": (0, 0), "upper right": (0, 3), "lower left": (3, 0), "lower right": (3, 3)}
    filled = [name for name, (r, c) in corners.items() if state[r][c] != "empty"]
    background = rng.choice(BACKGROUNDS)
    image = draw_blocks(cells, background)
    way = join_words(directions)
    ask_corner = bool(filled) and rng.random() < 0.7
    if ask_corner:
        corner = rng.choice(filled)
        answer = state[corners[corner][0]][corners[corner][1]]
        goal = say(rng, f"What colour is in the {corner} corner?", f"Which block is {corner} then?")
        choices: tuple[str, ...] = COLOUR_NAMES
    else:
        colour = rng.choice([name for names in state for name in names if name != "empty"])
        row = next(r for r, names in enumerate(state) if colour in names)
        column = state[row].index(colour)
        ask_row = rng.random() < 0.5
        answer = str((row if ask_row else column) + 1)
        goal = (
            f"In which row from the top is the {colour} block?"
            if ask_row
            else f"In which column from the left is the {colour} block?"
        )
        choices = ("1", "2", "3", "4")
    question = say(
        rng, f"The tray tilts {way}. {goal}", f"Tilt the tray {way}. {goal}", f"All blocks slide {way}. {goal}"
    )
    style = rng.randrange(3)
    chain = Chain(image)
    for direction, state in zip(directions, states, strict=True):
        text = (
            f"The blocks slide {direction}.",
            f"I tilt the tray {direction}.",
            f"Next state: everything slides {direction}.",
        )[style]
        chain.predict(
            text, f"tilt {direction}", draw_blocks(state, background), blocks_state(state), blocks_target(state)
        )
    return Task("operational", "tilt", seed, question, image, tuple(chain.steps), answer, level, choices)


# ---- rotate: a small pattern is turned and flipped

TURNS = {
    "turn right": ("a quarter turn right", "The tile turns right."),
    "turn left": ("a quarter turn left", "The tile turns left."),
    "flip sideways": ("a flip sideways", "The tile flips sideways."),
    "flip over": ("a flip upside down", "The tile flips upside down."),
}


_UNDOES = {
    "turn right": "turn left",
    "turn left": "turn right",
    "flip sideways": "flip sideways",
    "flip over": "flip over",
}


def turn(cells: Cells, change: str) -> Cells:
    """The pattern after one change."""
    if change == "turn right":
        return tuple(tuple(column) for column in zip(*cells[::-1], strict=True))
    if change == "turn left":
        return tuple(tuple(column) for column in zip(*cells, strict=True))[::-1]
    if change == "flip sideways":
        return tuple(row[::-1] for row in cells)
    return cells[::-1]


def draw_pattern(cells: Cells, background: RGB) -> Image.Image:
    """A 2x2 (24-px cells) or 3x3 (16-px cells) pattern in the middle."""
    image = new_image(background)
    draw, size = ImageDraw.Draw(image), 48 // len(cells)
    for row, names in enumerate(cells):
        for column, name in enumerate(names):
            tile(draw, 8 + size * column, 8 + size * row, size, COLOURS[name])
    return image


def random_pattern(rng: Random, size: int) -> Cells:
    """A pattern that every change alters."""
    while True:
        names = rng.sample(COLOUR_NAMES, 4) if size == 2 else [rng.choice(COLOUR_NAMES) for _ in range(9)]
        cells = tuple(tuple(names[size * r : size * r + size]) for r in range(size))
        if all(turn(cells, change) != cells for change in TURNS):
            return cells


def make_rotate(rng: Random, seed: int, level: Level) -> Task:
    """Two or three turns and flips of a 2x2 (hard: 3x3) pattern; the colour in a corner."""
    size = one_of(rng, SIDES[level])
    cells = random_pattern(rng, size)
    count = one_of(rng, CHANGES[level])
    changes: list[str] = []
    while len(changes) < count:
        change = rng.choice(tuple(TURNS))
        if not changes or _UNDOES[change] != changes[-1]:
            changes.append(change)
    corners = {"upper left": (0, 0), "upper right": (0, -1), "lower left": (-1, 0), "lower right": (-1, -1)}
    corner = rng.choice(tuple(corners))
    background = rng.choice(BACKGROUNDS)
    image = draw_pattern(cells, background)
    goal = say(
        rng,
        f"Which colour is {corner} then?",
        f"What colour is in the {corner} corner?",
        f"Tell the colour at the {corner}.",
    )
    way = join_words([TURNS[change][0] for change in changes])
    question = say(rng, f"The tile makes {way}. {goal}", f"Do {way}. {goal}")
    chain = Chain(image)
    state = cells
    for change in changes:
        state = turn(state, change)
        text = say(rng, TURNS[change][1], f"Next state: {TURNS[change][1].lower()}")
        rows = " ".join(f"Row {COUNT_WORDS[r + 1]} is {join_words(list(names))}." for r, names in enumerate(state))
        chain.predict(text, change, draw_pattern(state, background), rows, blocks_target(state, 48 // size, 8))
    row, column = corners[corner]
    return Task(
        "operational", "rotate", seed, question, image, tuple(chain.steps), state[row][column], level, COLOUR_NAMES
    )
