"""Images with lines to continue, for the base training: rays that point at a dot or a wall, and grey axes."""

from __future__ import annotations

from random import Random

from training.skills import stroke
from training.world.canvas import BACKGROUNDS, BLACK, COLOUR_NAMES, COLOURS, GREY, line, mark, new_image, put_shape
from training.world.diagrammatic import AXES, SYMMETRIES, Pixel, between, draw_segments
from training.world.views import Extra, Spot, View, around, listing, spot_at


def rays(rng: Random) -> View:
    """Round dots and a short black line that points at one of them."""
    while True:
        start = 4 * rng.randint(1, 15), 4 * rng.randint(1, 15)
        target = 8 * rng.randint(1, 7), 8 * rng.randint(1, 7)
        if max(abs(start[0] - target[0]), abs(start[1] - target[1])) >= 32:
            break
    end = between(start, target, rng.choice((0.35, 0.4, 0.45, 0.5, 0.55)))
    spots = _dots(rng, target, [(start, target)], rng.randint(1, 4))
    on = line(*end, *target)
    texts = (
        "Extend the black line.",
        "Extend the black line until it meets a dot.",
        "Extend the line straight ahead.",
        "Draw a line on from its end, straight ahead.",
        f"Extend the black line to the {spots[0].name}.",
    )
    return _view(rng, [(start, end)], spots, [Extra(text, on) for text in texts], "a black line")


def walls(rng: Random) -> View:
    """A ray that points at a grey wall, or has reached it; a dot where it would bounce to."""
    turned, upside, back = rng.choice(SYMMETRIES), rng.random() < 0.5, rng.random() < 0.5

    def place(x: float, y: float) -> Pixel:
        x, y = (64 - x if back else x), (64 - y if upside else y)
        return turned(round(x), round(y))

    while True:
        foot, target = (rng.randint(12, 50), 60), (8 * rng.randint(3, 7), 8 * rng.randint(1, 6))
        if target[0] - foot[0] < 10:
            continue
        slope = (foot[1] - target[1]) / (target[0] - foot[0])
        reach = min(foot[0] - 4, 56 / slope)
        if reach >= 8 and reach * max(1.0, slope) >= 20:
            break
    start = foot[0] - reach, foot[1] - slope * reach
    share = rng.choice((0.35, 0.45, 0.5))
    end = start[0] + share * reach, start[1] + share * slope * reach
    a, b, c, d = place(*start), place(*end), place(*foot), place(*target)
    wall = place(0, 62), place(64, 62)
    spots = _dots(rng, d, [(a, c), (c, d), wall], rng.randint(1, 3))
    to_wall, off = line(*b, *c), line(*c, *d)
    extras = [Extra(text, to_wall) for text in ("Extend the ray to the wall.", "Draw a line from the ray to the wall.")]
    extras += [
        Extra(text, off, (to_wall,))
        for text in (
            "Draw a line from there, back at the same angle.",
            "Draw a line from the wall, as steep as before.",
        )
    ]
    return _view(rng, [(a, b)], spots, extras, "a grey wall and a black ray", wall=wall)


def axes(rng: Random) -> View:
    """A black dot, coloured ones and a grey line: across to it, and as far on the other side."""
    start, end, flip = AXES[rng.choice(tuple(AXES))]
    while True:
        dot = 8 * rng.randint(1, 7), 8 * rng.randint(1, 7)
        target = flip(*dot)
        far = max(abs(target[0] - dot[0]), abs(target[1] - dot[1])) >= 24
        if far and all(8 <= v <= 56 for v in target):
            break
    foot = (dot[0] + target[0]) // 2, (dot[1] + target[1]) // 2
    spots = _dots(rng, target, [(dot, dot), (start, end)], rng.randint(1, 3))
    across = line(*dot, *foot)
    extras = [
        Extra(text, across)
        for text in (
            "Draw a line from the black dot to the axis.",
            "Draw a line from the black dot to the grey line.",
            "Draw a line from the black dot across to the grey one.",
        )
    ]
    extras += [
        Extra(text, mark(*target), (across,))
        for text in (
            "Mark the place as far behind it.",
            "On the other side mark the same distance.",
            "Mark the place as far behind the grey line.",
        )
    ]
    return _view(rng, [], spots, extras, "a grey line and a black dot", axis=(start, end), dot=dot)


def _dots(rng: Random, first: Pixel, paths: list[tuple[Pixel, Pixel]], more: int) -> list[Spot]:
    """A dot at `first` and up to `more` others, apart from each other and from the paths."""
    points = [between(a, b, i / 8) for a, b in paths for i in range(9)]
    centres = [first]
    for _ in range(8 * more):
        x, y = 8 * rng.randint(1, 7), 8 * rng.randint(1, 7)
        clear = all(max(abs(x - px), abs(y - py)) >= 10 for px, py in points)
        apart = all(abs(x - cx) >= 16 or abs(y - cy) >= 16 for cx, cy in centres)
        if clear and apart:
            centres.append((x, y))
        if len(centres) > more:
            break
    colours = rng.sample(COLOUR_NAMES, len(centres))
    return [spot_at(f"{colour} dot", centre, around(centre)) for colour, centre in zip(colours, centres, strict=True)]


def _view(
    rng: Random,
    segments: list[tuple[Pixel, Pixel]],
    spots: list[Spot],
    extras: list[Extra],
    besides: str,
    *,
    wall: tuple[Pixel, Pixel] | None = None,
    axis: tuple[Pixel, Pixel] | None = None,
    dot: Pixel | None = None,
) -> View:
    background = rng.choice(BACKGROUNDS)
    order = sorted(spots, key=lambda spot: (spot.centre[1], spot.centre[0]))
    discs = [(spot.name.removesuffix(" dot"), spot.centre) for spot in order]
    if axis is None or dot is None:
        image = draw_segments(segments, discs, background)
    else:
        image = new_image(background)
        stroke(image, *axis, GREY, 3)
        put_shape(image, "circle", BLACK, dot, 12)
        for colour, centre in discs:
            put_shape(image, "circle", COLOURS[colour], centre, 14)
    if wall is not None:
        stroke(image, *wall, GREY, 4)
    facts = tuple((f"Where is the {spot.name}?", spot.place) for spot in order)
    return View(
        image, listing([*(f"{s.name} {s.place}" for s in order), besides]), tuple(order), tuple(extras), facts=facts
    )
