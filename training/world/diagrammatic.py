"""Diagrams: families `extend`, `bounce`, `mirror`; and small graphs for the drills."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from PIL import Image

from training.skills import stroke
from training.world.canvas import (
    BACKGROUNDS,
    BLACK,
    COLOUR_NAMES,
    COLOURS,
    GREY,
    RGB,
    line,
    mark,
    new_image,
    put_shape,
)
from training.world.chain import Chain, grades, one_of, say
from training.world.task import Level, LineTarget, MarkTarget, Task

Pixel = tuple[int, int]
Symmetry = Callable[[int, int], Pixel]

DOT_RADIUS = 7  # pixels, of the round targets
MAX_AIM = 3.0  # pixels that a graded line may point beside its target; longer lines of other levels point well enough

SYMMETRIES: tuple[Symmetry, ...] = (
    lambda x, y: (x, y),
    lambda x, y: (64 - x, y),
    lambda x, y: (y, x),
    lambda x, y: (y, 64 - x),
)


# ---- what rises with the level

DOTS = grades((3, 4), (4,), (2,), (3,), (3, 4), (4,), (4,), (4,), (4,), (4,))
SHOWN = grades(
    (0.45, 0.5, 0.55), (0.3,), (0.5, 0.55), (0.45, 0.5, 0.55), (0.4, 0.45), (0.37,), (0.33,), (0.28,), (0.2,), (0.15,)
)
RAY_DOTS = grades((3,), (3,), (2,), (2, 3), (3,), (3,), (3,), (3,), (3,), (3,))
RAY_SHOWN = grades((0.5,), (0.35,), (0.5,), (0.5,), (0.5,), (0.45,), (0.4,), (0.35,), (0.28,), (0.2,))
MIRRORED = grades((3, 4), (5,), (2,), (3,), (3, 4), (4,), (4,), (4,), (4,), (4,))


def draw_segments(segments: list[tuple[Pixel, Pixel]], dots: list[tuple[str, Pixel]], background: RGB) -> Image.Image:
    """Black segments and coloured round targets."""
    image = new_image(background)
    for colour, centre in dots:
        put_shape(image, "circle", COLOURS[colour], centre, 2 * DOT_RADIUS)
    for start, end in segments:
        stroke(image, start, end, BLACK, 3)
    return image


def between(a: Pixel, b: Pixel, share: float) -> Pixel:
    """The point at this share of the way from a to b."""
    return round(a[0] + share * (b[0] - a[0])), round(a[1] + share * (b[1] - a[1]))


def aim(start: Pixel, end: Pixel, target: Pixel) -> float:
    """By how many pixels the line from start through end misses the target; rounding turns short lines."""
    return _distance(start, end, target) if start != end else float("inf")


def make_extend(rng: Random, seed: int, level: Level) -> Task:
    """Which of four targets on the far side a short segment points to."""
    turned = rng.choice(SYMMETRIES)
    count = one_of(rng, DOTS[level])
    rows = sorted(rng.sample(range(4), count))
    colours = rng.sample(COLOUR_NAMES, count)
    hit = rng.randrange(count)
    target = (56, 8 + 16 * rows[hit])
    while True:
        start = (4 * rng.randint(1, 2), 4 * rng.randint(2, 14))
        end = between(start, target, one_of(rng, SHOWN[level]))
        if isinstance(level, str) or aim(start, end, target) <= MAX_AIM:
            break
    dots = [(colours[i], turned(56, 8 + 16 * row)) for i, row in enumerate(rows)]
    image = draw_segments([(turned(*start), turned(*end))], dots, rng.choice(BACKGROUNDS))
    question = say(
        rng,
        "Which colour does the black line hit when it goes on?",
        "The black line is extended. Which colour does it meet?",
        "To which dot does the black line point?",
    )
    a, b = turned(*end), turned(*target)
    chain = Chain(image)
    chain.act(
        say(
            rng,
            "I extend the black line until it meets a dot.",
            "I extend the line straight ahead.",
            "I draw a line from its end, straight ahead.",
        ),
        line(*a, *b),
        f"The line ends on the {colours[hit]} dot.",
        LineTarget(a, b, DOT_RADIUS),
    )
    return Task("diagrammatic", "extend", seed, question, image, tuple(chain.steps), colours[hit], level, COLOUR_NAMES)


def make_bounce(rng: Random, seed: int, level: Level) -> Task:
    """A ray meets a wall and bounces off; which target it hits."""
    turned = rng.choice(SYMMETRIES)
    upside = rng.random() < 0.5

    def place(x: int, y: int) -> Pixel:
        return turned(x, 64 - y if upside else y)

    wall = 60
    targets = [(56, 8 + 16 * i) for i in range(3)]
    colours = rng.sample(COLOUR_NAMES, 3)
    hit = rng.randrange(3)
    while True:
        # As far along the wall as the reflected path passes the other targets with room to spare.
        foot = (rng.randint(14, (20, 31, 42)[hit]), wall)
        slope = (wall - targets[hit][1]) / (targets[hit][0] - foot[0])
        start = (4, round(wall - slope * (foot[0] - 4)))
        end = between(start, foot, one_of(rng, RAY_SHOWN[level]))
        if isinstance(level, str) or aim(start, end, foot) <= MAX_AIM:
            break
    dots = [(colour, place(*centre)) for colour, centre in zip(colours, targets, strict=True)]
    for _ in range(3 - one_of(rng, RAY_DOTS[level])):
        dots.remove(rng.choice([dot for dot in dots if dot[0] != colours[hit]]))
    image = draw_segments([(place(*start), place(*end))], dots, rng.choice(BACKGROUNDS))
    stroke(image, place(0, wall + 2), place(64, wall + 2), GREY, 4)
    question = say(
        rng,
        "The black ray bounces off the grey wall. Which colour does it hit?",
        "Which dot does the ray reach after the grey wall?",
        "Follow the black ray off the wall. Which colour does it meet?",
    )
    chain = Chain(image)
    a, b, c = place(*end), place(*foot), place(*targets[hit])
    chain.act(
        say(rng, "I extend the ray to the wall.", "I draw a line from the ray to the wall."),
        line(*a, *b),
        f"The ray meets the wall {round(foot[0] / 8)} of 8 along.",
        LineTarget(a, b),
    )
    chain.act(
        say(
            rng, "I draw a line from there, back at the same angle.", "I draw a line from the wall, as steep as before."
        ),
        line(*b, *c),
        f"The ray ends on the {colours[hit]} dot.",
        LineTarget(b, c, DOT_RADIUS),
    )
    return Task("diagrammatic", "bounce", seed, question, image, tuple(chain.steps), colours[hit], level, COLOUR_NAMES)


AXES: dict[str, tuple[Pixel, Pixel, Symmetry]] = {
    "upright24": ((24, 0), (24, 64), lambda x, y: (48 - x, y)),
    "upright32": ((32, 0), (32, 64), lambda x, y: (64 - x, y)),
    "upright40": ((40, 0), (40, 64), lambda x, y: (80 - x, y)),
    "flat24": ((0, 24), (64, 24), lambda x, y: (x, 48 - y)),
    "flat32": ((0, 32), (64, 32), lambda x, y: (x, 64 - y)),
    "flat40": ((0, 40), (64, 40), lambda x, y: (x, 80 - y)),
    "falling": ((0, 0), (64, 64), lambda x, y: (y, x)),
    "rising": ((0, 64), (64, 0), lambda x, y: (64 - y, 64 - x)),
}


def _shifted(by: int) -> dict[str, tuple[Pixel, Pixel, Symmetry]]:
    """Diagonal axes that much lower."""
    ends = (max(0, -by), max(0, by)), (min(64, 64 - by), min(64, 64 + by))
    (a, b), (c, d) = ends
    return {
        f"falling{by:+}": ((a, b), (c, d), lambda x, y: (y - by, x + by)),
        f"rising{by:+}": ((64 - a, b), (64 - c, d), lambda x, y: (64 - y + by, 64 - x + by)),
    }


def _slanted(dx: int, dy: int, middle: Pixel) -> tuple[Pixel, Pixel, Symmetry]:
    """An axis through this point in this direction, neither straight nor diagonal."""
    x0, y0 = middle
    ends = []
    for sign in (-1, 1):
        reach = min((64 - m if sign * d > 0 else m) / abs(d) for m, d in ((x0, dx), (y0, dy)))
        ends.append((round(x0 + sign * reach * dx), round(y0 + sign * reach * dy)))

    def flip(x: int, y: int) -> Pixel:
        """Off the lattice, a mark would not survive the tokenizer: such points have no mirror image, (-1, -1)."""
        along, square = 2 * ((x - x0) * dx + (y - y0) * dy), dx * dx + dy * dy
        u, v = x0 * square + along * dx - (x - x0) * square, y0 * square + along * dy - (y - y0) * square
        return (u // square, v // square) if u % (8 * square) == v % (8 * square) == 0 else (-1, -1)

    return ends[0], ends[1], flip


_MIDDLE = ("upright32", "flat32")
_STRAIGHT = tuple(name for name in AXES if name[:-2] in ("upright", "flat"))
_MORE: dict[str, tuple[Pixel, Pixel, Symmetry]] = {
    **{name: axis for by in (-16, -8, 8, 16) for name, axis in _shifted(by).items()},
    **{
        f"slanted{dx}{dy:+} {x} {y}": _slanted(dx, dy, (x, y))
        for dx, dy in ((2, 1), (1, -2), (2, -1))  # beside (1, 2), ink is lost, too
        for x, y in ((32, 32), (24, 32), (40, 32), (32, 24), (32, 40))
    },
}
_ALL_AXES = {**AXES, **_MORE}
_SHIFTED_NAMES = tuple(name for name in _MORE if "slanted" not in name)
_SLANTED_NAMES = tuple(name for name in _MORE if "slanted" in name)
AXES_OF = grades(
    tuple(AXES),
    tuple(AXES),
    _MIDDLE,
    _STRAIGHT,
    (*AXES, *_SHIFTED_NAMES),
    (*_SHIFTED_NAMES * 3, *_SLANTED_NAMES),
    (*_SHIFTED_NAMES * 2, *_SLANTED_NAMES),
    (*_SHIFTED_NAMES, *_SLANTED_NAMES),
    (*_SHIFTED_NAMES[:4], *_SLANTED_NAMES),
    _SLANTED_NAMES,
)
_SPOTS = tuple((8 * c, 8 * r) for r in range(1, 8) for c in range(1, 8))


def _inside(point: Pixel) -> bool:
    return 8 <= point[0] <= 56 and 8 <= point[1] <= 56


def make_mirror(rng: Random, seed: int, level: Level) -> Task:
    """Where the mirror image of a black dot lies: a line to the axis, a mark as far on the other side."""
    start, end, flip = _ALL_AXES[rng.choice(AXES_OF[level])]
    far = [p for p in _SPOTS if _inside(flip(*p)) and max(abs(flip(*p)[0] - p[0]), abs(flip(*p)[1] - p[1])) >= 24]
    dot = rng.choice(far)
    target = flip(*dot)
    side = _side(start, end, target)
    spots = [target]
    wanted = one_of(rng, MIRRORED[level])
    near = [p for p in _SPOTS if _side(start, end, p) == side and _distance(start, end, p) >= 10]
    rng.shuffle(near)
    for spot in near:
        if len(spots) < wanted and all(max(abs(spot[0] - x), abs(spot[1] - y)) >= 16 for x, y in spots):
            spots.append(spot)
    colours = rng.sample(COLOUR_NAMES, len(spots))
    image = new_image(rng.choice(BACKGROUNDS))
    stroke(image, start, end, GREY, 3)
    put_shape(image, "circle", BLACK, dot, 12)
    for colour, spot in zip(colours, spots, strict=True):
        put_shape(image, "circle", COLOURS[colour], spot, 14)
    question = say(
        rng,
        "The black dot is mirrored in the grey line. On which colour does it land?",
        "Which colour is the mirror image of the black dot?",
        "Which dot lies opposite the black one across the grey line?",
    )
    foot = (dot[0] + target[0]) // 2, (dot[1] + target[1]) // 2
    chain = Chain(image)
    chain.act(
        say(
            rng,
            "I draw a line from the black dot to the axis.",
            "I draw a line from the black dot across to the grey one.",
        ),
        line(*dot, *foot),
        f"The line is {_length(dot, foot)} units long.",
        LineTarget(dot, foot),
    )
    chain.act(
        say(rng, "I mark the place as far behind it.", "On the other side I mark the same distance."),
        mark(*target),
        f"The mark is on the {colours[0]} dot.",
        MarkTarget(target),
    )
    return Task("diagrammatic", "mirror", seed, question, image, tuple(chain.steps), colours[0], level, COLOUR_NAMES)


def _cross(start: Pixel, end: Pixel, p: Pixel) -> float:
    return (end[0] - start[0]) * (p[1] - start[1]) - (end[1] - start[1]) * (p[0] - start[0])


def _side(start: Pixel, end: Pixel, p: Pixel) -> int:
    value = _cross(start, end, p)
    return (value > 0) - (value < 0)


def _distance(start: Pixel, end: Pixel, p: Pixel) -> float:
    length = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    return float(abs(_cross(start, end, p)) / length)


def _length(a: Pixel, b: Pixel) -> int:
    return max(abs(a[0] - b[0]), abs(a[1] - b[1])) // 4


# ---- a tree of coloured nodes on a 3x3 grid, known from the base training

Cell = tuple[int, int]


def node_centre(cell: Cell) -> Pixel:
    """Centre of a node, 24 px from its neighbours."""
    return 8 + 24 * cell[0], 8 + 24 * cell[1]


def random_tree(rng: Random, count: int) -> tuple[list[Cell], list[tuple[int, int]]]:
    """Connected cells, and the edges (pairs of indices, parent first) between them."""
    cells, edges = [(rng.randrange(3), rng.randrange(3))], []
    while len(cells) < count:
        i = rng.randrange(len(cells))
        dx, dy = rng.choice(((1, 0), (-1, 0), (0, 1), (0, -1)))
        cell = (cells[i][0] + dx, cells[i][1] + dy)
        if cell not in cells and 0 <= cell[0] < 3 and 0 <= cell[1] < 3:
            edges.append((i, len(cells)))
            cells.append(cell)
    return cells, edges


def draw_graph(cells: list[Cell], edges: list[tuple[int, int]], colours: list[str], background: RGB) -> Image.Image:
    """Black edges, coloured nodes."""
    image = new_image(background)
    for a, b in edges:
        stroke(image, node_centre(cells[a]), node_centre(cells[b]), BLACK, 3)
    for cell, colour in zip(cells, colours, strict=True):
        put_shape(image, "circle", COLOURS[colour], node_centre(cell), 14)
    return image
