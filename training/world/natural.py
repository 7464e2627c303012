"""Natural scenes: scattered shapes. Families `find`, `relation`, `count`.

A thing is a coloured shape in a 16-px block on the 8-px lattice, at least 8 px away from its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from training.world.canvas import (
    BACKGROUNDS,
    COLOUR_NAMES,
    COLOURS,
    SHAPES,
    bbox,
    mark,
    new_image,
    place_word,
    put_shape,
    zoom,
)
from training.world.chain import COUNT_WORDS, ORDINALS, Chain, grades, one_of, plural, ring, say
from training.world.task import SIZE, Box, BoxTarget, Level, MarkTarget, Point, Task, ZoomTarget

BLOCK = 16
_MIN_GAP = 24  # between two blocks' corners, along x or y

# ---- what rises with the level

FIND_OTHERS = grades((2, 3, 4), (6, 7), (1,), (2, 3), (4,), (6, 7), (7,), (8,), (8,), (8,))
FIND_SIZE: dict[Level, int] = {
    "normal": 14,
    "hard": 14,
    **dict(zip(range(1, 9), (14, 14, 14, 14, 14, 14, 12, 10), strict=True)),
}  # px at most
HOPS = grades((1, 2, 2), (3,), (1,), (1, 2), (2,), (2, 3), (3,), (4,), (5,), (6,))
HITS = grades(
    (1, 2, 3, 4), (5, 6), (1, 2, 3), (1, 2, 3, 4), (2, 3, 4), (2, 3, 4, 5), (3, 4, 5), (4, 5, 6), (5, 6, 7), (6, 7, 8)
)
MISSES = grades((1, 2, 3), (1, 2, 3), (1,), (2, 3), (3, 4), (4, 5), (4, 5), (4, 5), (3,), (3,))


@dataclass(frozen=True)
class Thing:
    """A shape in the block whose upper left corner is x, y."""

    shape: str
    colour: str
    x: int
    y: int
    size: int

    @property
    def centre(self) -> tuple[int, int]:
        """Middle of the shape; at the image's edge one pixel further in, where an ink box hides nothing."""
        return _middle(self.x), _middle(self.y)

    @property
    def box(self) -> Box:
        """Left, top, right and bottom of its block in pixels."""
        return self.x, self.y, self.x + BLOCK, self.y + BLOCK

    @property
    def name(self) -> str:
        """Colour and shape, as questions call it."""
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """Its part of the image in words, for example "upper left"."""
        return place_word(*self.centre)


def _middle(corner: int) -> int:
    return corner + BLOCK // 2 + (corner == 0) - (corner + BLOCK == SIZE)


def make_thing(rng: Random, shape: str, colour: str, x: int, y: int) -> Thing:
    """A thing in that block; smaller at the image's edge."""
    edge = x in (0, SIZE - BLOCK) or y in (0, SIZE - BLOCK)
    return Thing(shape, colour, x, y, 12 if edge else rng.choice((12, 14, 14)))


def draw_things(things: list[Thing], background: tuple[int, int, int]) -> Image.Image:
    """Draw the scene."""
    image = new_image(background)
    for thing in things:
        put_shape(image, thing.shape, COLOURS[thing.colour], thing.centre, thing.size)
    return image


def scatter(rng: Random, count: int) -> list[tuple[int, int]]:
    """Corners of `count` (at most 9) blocks with room between them."""
    for _ in range(20):
        corners: list[tuple[int, int]] = []
        for _ in range(12 * count):
            x, y = 8 * rng.randrange(7), 8 * rng.randrange(7)
            if all(abs(x - a) >= _MIN_GAP or abs(y - b) >= _MIN_GAP for a, b in corners):
                corners.append((x, y))
                if len(corners) == count:
                    return corners
    grid = [(24 * (i % 3), 24 * (i // 3)) for i in range(9)]
    return rng.sample(grid, count)


def scatter_things(rng: Random, looks: list[tuple[str, str]]) -> list[Thing]:
    """Things of these (shape, colour) at random places."""
    corners = scatter(rng, len(looks))
    return [make_thing(rng, shape, colour, x, y) for (shape, colour), (x, y) in zip(looks, corners, strict=True)]


def others(things: list[Thing], one: Thing) -> tuple[Point, ...]:
    """Centres of all the other things."""
    return tuple(thing.centre for thing in things if thing is not one)


def make_find(rng: Random, seed: int, level: Level) -> Task:
    """Mark the one thing of a colour (or shape), zoom in, name its shape (or colour)."""
    by_colour = rng.random() < 0.5
    keys, values = (COLOUR_NAMES, SHAPES) if by_colour else (SHAPES, COLOUR_NAMES)
    key, answer = rng.choice(keys), rng.choice(values)
    wrong, number = [k for k in keys if k != key], one_of(rng, FIND_OTHERS[level])
    rest = rng.sample(wrong, number) if number <= 4 else [rng.choice(wrong) for _ in range(number)]
    pairs = [(key, answer), *((k, rng.choice(values)) for k in rest)]
    things = scatter_things(rng, [(v, k) if by_colour else (k, v) for k, v in pairs])
    things = [replace(thing, size=min(thing.size, FIND_SIZE[level])) for thing in things]
    target = things[0]
    things.sort(key=lambda thing: (thing.y, thing.x))
    image = draw_things(things, rng.choice(BACKGROUNDS))
    noun = say(rng, "shape", "object", "thing")
    what = f"{key} {noun}" if by_colour else key
    if by_colour:
        question = say(rng, f"What shape is the {what}?", f"Which shape is {key}?", f"What is the shape of the {what}?")
    else:
        question = say(
            rng,
            f"What colour is the {what}?",
            f"Which colour does the {what} have?",
            f"Find the {what}. What is its colour?",
        )
    chain = Chain(image)
    chain.act(
        say(rng, f"I mark the {what}.", f"I look for the {what} and mark it.", f"First I mark the {what}."),
        mark(*target.centre),
        f"The mark is on the {target.name} at the {target.place}.",
        MarkTarget(target.centre),
    )
    chain.act(
        say(rng, "I zoom in on the mark.", "Now I zoom in to see it better.", "I zoom in there."),
        zoom(*target.box),
        f"The picture shows a large {target.name}.",
        ZoomTarget(tuple(thing.box for thing in things), things.index(target)),
    )
    return Task("natural", "find", seed, question, image, tuple(chain.steps), answer, level, values)


_DIRECTIONS = {"right of": (1, 0), "left of": (-1, 0), "below": (0, 1), "above": (0, -1)}
_SIDES = {"right of": "to its right", "left of": "to its left", "below": "below it", "above": "above it"}


def make_relation(rng: Random, seed: int, level: Level) -> Task:
    """From an anchor one, two (hard: three) or more places on in a 3x3 arrangement; name the thing there."""
    hops = one_of(rng, HOPS[level])
    path, directions = _walk(rng, hops)
    free = [cell for cell in ((c, r) for r in range(3) for c in range(3)) if cell not in path]
    cells = [*path, *rng.sample(free, rng.randint(max(0, 5 - len(path)), min(len(free), 8 - len(path))))]
    looks: list[tuple[str, str]] = []
    for _ in cells:
        look = (rng.choice(SHAPES), rng.choice(COLOUR_NAMES))
        while looks and look == looks[0]:
            look = (rng.choice(SHAPES), rng.choice(COLOUR_NAMES))
        looks.append(look)
    things = [
        make_thing(rng, shape, colour, 24 * column, 24 * row)
        for (shape, colour), (column, row) in zip(looks, cells, strict=True)
    ]
    image = draw_things(things, rng.choice(BACKGROUNDS))
    by_colour = rng.random() < 0.5
    answer = things[hops].colour if by_colour else things[hops].shape
    where = f"the {things[0].name}"
    for i, direction in enumerate(directions):
        where = f"{direction} {where if i == 0 else 'the one ' + where}"
    attribute = "colour" if by_colour else "shape"
    question = say(
        rng,
        f"What {attribute} is the thing {where}?",
        f"Tell the {attribute} of the thing {where}.",
        f"Look {where}. What {attribute} is there?",
    )
    chain = Chain(image)
    for i in range(hops):
        thing = things[i]
        text = (
            say(
                rng,
                f"I mark the {thing.name}.",
                f"First I mark the {thing.name}.",
                f"I find the {thing.name} and mark it.",
            )
            if i == 0
            else say(
                rng,
                f"I mark the thing {_SIDES[directions[i - 1]]}.",
                f"Next I mark the one {_SIDES[directions[i - 1]]}.",
            )
        )
        chain.act(
            text,
            mark(*thing.centre),
            f"The mark is on the {thing.name} at the {thing.place}.",
            MarkTarget(thing.centre),
        )
    target, side = things[hops], _SIDES[directions[-1]]
    chain.act(
        say(rng, f"I draw a box around the thing {side}.", f"Now I draw a box around the one {side}."),
        bbox(*ring(target.box)),
        f"The box is around the {target.name} at the {target.place}.",
        BoxTarget(ring(target.box), others(things, target)),
    )
    return Task(
        "natural",
        "relation",
        seed,
        question,
        image,
        tuple(chain.steps),
        answer,
        level,
        COLOUR_NAMES if by_colour else SHAPES,
    )


def _walk(rng: Random, hops: int) -> tuple[list[tuple[int, int]], list[str]]:
    """A self-avoiding path of neighbouring cells of a 3x3 grid, and its directions."""
    while True:
        path, directions = [(rng.randrange(3), rng.randrange(3))], []
        for _ in range(hops):
            direction = rng.choice(tuple(_DIRECTIONS))
            dx, dy = _DIRECTIONS[direction]
            cell = (path[-1][0] + dx, path[-1][1] + dy)
            if cell in path or not (0 <= cell[0] < 3 and 0 <= cell[1] < 3):
                break
            path.append(cell)
            directions.append(direction)
        else:
            return path, directions


def make_count(rng: Random, seed: int, level: Level) -> Task:
    """Count the things of a colour or a shape by marking one after the other, in reading order."""
    count = one_of(rng, HITS[level])
    total = min(8 if isinstance(level, str) else 9, count + one_of(rng, MISSES[level]))
    by_colour = rng.random() < 0.5
    keys, values = (COLOUR_NAMES, SHAPES) if by_colour else (SHAPES, COLOUR_NAMES)
    key = rng.choice(keys)
    rest = [k for k in keys if k != key]
    pairs = [(key if i < count else rng.choice(rest), rng.choice(values)) for i in range(total)]
    things = scatter_things(rng, [(v, k) if by_colour else (k, v) for k, v in pairs])
    hits = sorted(things[:count], key=lambda thing: (thing.y, thing.x))
    things.sort(key=lambda thing: (thing.y, thing.x))
    image = draw_things(things, rng.choice(BACKGROUNDS))
    noun = say(rng, "shape", "thing")
    one, many = (f"{key} {noun}", f"{key} {noun}s") if by_colour else (key, plural(key))
    question = say(rng, f"How many {many} are there?", f"Count the {many}.", f"How many {many} do you see?")
    style = rng.randrange(3)
    chain = Chain(image)
    for i, thing in enumerate(hits):
        text = (
            f"I mark the {ORDINALS[i]} {one}.",
            f"I mark a {one}: that is {COUNT_WORDS[i + 1]}.".replace("a orange", "an orange"),
            f"Number {COUNT_WORDS[i + 1]}: I mark the {one if i == 0 else 'next ' + one}.",
        )[style]
        noun_i = "thing is" if i == 0 else "things are"
        chain.act(
            text,
            mark(*thing.centre, i + 1),
            f"{COUNT_WORDS[i + 1].capitalize()} {noun_i} marked, the newest is the {thing.name} at the {thing.place}.",
            MarkTarget(thing.centre),
        )
    choices = tuple(str(hits) for hits in HITS[level])
    return Task("natural", "count", seed, question, image, tuple(chain.steps), str(count), level, choices)
