"""Pictures to look at and draw on, for the base training: each with a caption and the things that can be pointed at.

A view shows what a family's question picture shows, drawn anew and at random; it holds no question and no chain. Knows
nothing of prompts (see `drills.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from training.skills import Action
from training.unitasks import diagrammatic, natural, operational, structured
from training.unitasks.canvas import BACKGROUNDS, COLOUR_NAMES, SHAPES, bbox, line, mark, place_word, zoom
from training.unitasks.chain import ring
from training.unitasks.task import Box


@dataclass(frozen=True)
class Spot:
    """Something that an instruction can name: by `name`, or by `place` ("in the upper left")."""

    name: str
    place: str
    centre: tuple[int, int]
    box: Box


@dataclass(frozen=True)
class View:
    """A picture, what it shows in words, its things, and what else can be drawn on it."""

    image: Image.Image
    caption: str
    spots: tuple[Spot, ...] = ()
    extras: tuple[tuple[str, Action], ...] = ()
    moves: tuple[tuple[str, Image.Image], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()  # short questions and their answers


def _listing(words: list[str]) -> str:
    text = ", ".join(words)
    return text[:1].upper() + text[1:] + "."


def _place(centre: tuple[int, int]) -> str:
    word = place_word(*centre)
    return (
        f"at the {word}"
        if word in ("top", "bottom")
        else f"in the {word}"
        if " " in word or word == "middle"
        else (f"on the {word}")
    )


def _spot(name: str, centre: tuple[int, int], box: Box) -> Spot:
    return Spot(name, _place(centre), centre, box)


def _around(centre: tuple[int, int], half: int = 8) -> Box:
    return centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half


def things(rng: Random) -> View:
    """Scattered shapes."""
    looks = [(rng.choice(SHAPES), rng.choice(COLOUR_NAMES)) for _ in range(rng.choice((1, 2, 3, 3, 4, 4, 5, 6)))]
    if rng.random() < 0.3:
        grid = rng.sample([(24 * c, 24 * r) for c in range(3) for r in range(3)], len(looks))
        scene = [natural.make_thing(rng, *look, *corner) for look, corner in zip(looks, grid, strict=True)]
    else:
        scene = natural.scatter_things(rng, looks)
    scene.sort(key=lambda thing: (thing.y, thing.x))
    spots = tuple(_spot(thing.name, thing.centre, thing.box) for thing in scene)
    facts = [("How many things are there?", str(len(scene)))]
    for spot in spots:
        if _is_unique(spots, spot, "place"):
            facts.append((f"What is {spot.place}?", spot.name))
        if _is_unique(spots, spot, "name"):
            facts.append((f"Where is the {spot.name}?", spot.place))
    caption = _listing([f"{spot.name} {spot.place}" for spot in spots])
    return View(natural.draw_things(scene, rng.choice(BACKGROUNDS)), caption, spots, facts=tuple(facts))


def _is_unique(spots: tuple[Spot, ...], spot: Spot, attribute: str) -> bool:
    return [getattr(other, attribute) for other in spots].count(getattr(spot, attribute)) == 1


def dots(rng: Random) -> View:
    """Round dots and perhaps a short black line that points somewhere."""
    colours = rng.sample(COLOUR_NAMES, rng.randint(2, 5))
    centres: list[tuple[int, int]] = []
    while len(centres) < len(colours):
        centre = 8 * rng.randint(1, 7), 8 * rng.randint(1, 7)
        if all(abs(centre[0] - x) >= 16 or abs(centre[1] - y) >= 16 for x, y in centres):
            centres.append(centre)
    order = sorted(zip(colours, centres, strict=True), key=lambda dot: (dot[1][1], dot[1][0]))
    spots = tuple(_spot(f"{colour} dot", centre, _around(centre)) for colour, centre in order)
    segments, extras = [], []
    pairs = [(a, b) for a in spots for b in spots if a is not b]
    for a, b in rng.sample(pairs, min(2, len(pairs))):
        extras.append((f"Draw a line from the {a.name} to the {b.name}.", line(*a.centre, *b.centre)))
    if rng.random() < 0.6:
        start, angle_end = (
            (4 * rng.randint(1, 15), 4 * rng.randint(1, 15)),
            (4 * rng.randint(1, 15), 4 * rng.randint(1, 15)),
        )
        if max(abs(start[0] - angle_end[0]), abs(start[1] - angle_end[1])) >= 24:
            middle = diagrammatic.between(start, angle_end, rng.choice((0.3, 0.4, 0.5)))
            if _clear(start, middle, spots):
                segments.append((start, middle))
                extras += [
                    (text, line(*middle, *angle_end))
                    for text in ("Extend the black line.", "Draw a line on from the end of the black line.")
                ]
    caption = _listing([*(f"{spot.name} {spot.place}" for spot in spots), *(["a black line"] if segments else [])])
    image = diagrammatic.draw_segments(segments, [(c, p) for c, p in order], rng.choice(BACKGROUNDS))
    facts = tuple((f"Where is the {spot.name}?", spot.place) for spot in spots)
    return View(image, caption, spots, tuple(extras), facts=facts)


def _clear(start: tuple[int, int], end: tuple[int, int], spots: tuple[Spot, ...]) -> bool:
    points = [diagrammatic.between(start, end, i / 6) for i in range(7)]
    return all(max(abs(x - s.centre[0]), abs(y - s.centre[1])) >= 10 for x, y in points for s in spots)


def bars(rng: Random) -> View:
    """A bar chart."""
    chart = sorted(structured.random_bars(rng, rng.randint(2, 6), []), key=lambda bar: bar[1])
    spots, extras, facts = [], [], []
    for colour, column, value in chart:
        x, y = structured.bar_top((colour, column, value))
        spots.append(Spot(f"top of the {colour} bar", "", (x, y), (x - 4, y - 4, x + 4, structured.BASE_Y)))
        extras.append((f"Draw a box around the {colour} bar.", bbox(*ring((x - 4, y, x + 4, 60)))))
        extras.append((f"Draw a line from the {colour} bar to the axis.", line(x, y, structured.AXIS_X, y)))
        facts.append((f"What is the {colour} bar's value?", str(value)))
    level = rng.randint(1, 6)
    extras.append((f"Draw a line across at {level}.", line(structured.AXIS_X, 60 - 8 * level, 62, 60 - 8 * level)))
    caption = _listing([f"{colour} bar {value}" for colour, _, value in chart])
    image = structured.draw_bars(tuple(chart), rng.choice(BACKGROUNDS))
    return View(image, caption, tuple(spots), tuple(extras), facts=tuple(facts))


def table(rng: Random) -> View:
    """A small table."""
    shapes = tuple(rng.sample(SHAPES, 3))
    cells = tuple(tuple(rng.choice(COLOUR_NAMES) for _ in range(3)) for _ in range(3))
    extras, facts = [], []
    for i in range(3):
        c = 24 + 16 * i
        extras.append((f"Draw a line along the {shapes[i]} row.", line(16, c, 62, c)))
        extras.append((f"Draw a line down column {i + 1}.", line(c, 16, c, 62)))
        for j in range(3):
            x = 24 + 16 * j
            text = f"Draw a box around the cell in the {shapes[i]} row, column {j + 1}."
            extras.append((text, bbox(x - 8, c - 8, x + 8, c + 8)))
            facts.append((f"{shapes[i].capitalize()} row, column {j + 1}?", cells[i][j]))
    caption = " ".join(f"{shape.capitalize()} row: {', '.join(row)}." for shape, row in zip(shapes, cells, strict=True))
    image = structured.draw_table(shapes, cells, rng.choice(BACKGROUNDS))
    return View(image, caption, (), tuple(extras), facts=tuple(facts))


def curve(rng: Random) -> View:
    """A line chart."""
    values = tuple(rng.randint(1, 6) for _ in range(rng.randint(5, 8)))
    colour = rng.choice(COLOUR_NAMES)
    spots, extras, facts = [], [], []
    for i, value in enumerate(values):
        x, y = structured.point_at(i, value)
        spots.append(Spot(f"point over number {i + 1}", "", (x, y), _around((x, y), 4)))
        extras.append((f"Draw a line down from the point over {i + 1}.", line(x, y, x, structured.PLOT_Y)))
        facts.append((f"How high is the point over {i + 1}?", str(value)))
    image = structured.draw_curve(values, colour, rng.choice(BACKGROUNDS))
    caption = f"The {colour} line goes {', '.join(map(str, values))}."
    return View(image, caption, tuple(spots), tuple(extras), facts=tuple(facts))


def graph(rng: Random) -> View:
    """A tree of nodes."""
    cells, edges = diagrammatic.random_tree(rng, rng.randint(4, 6))
    colours = rng.sample(COLOUR_NAMES, len(cells))
    centres = [diagrammatic.node_centre(cell) for cell in cells]
    order = sorted(range(len(cells)), key=lambda i: (centres[i][1], centres[i][0]))
    spots = tuple(_spot(f"{colours[i]} dot", centres[i], _around(centres[i])) for i in order)
    extras, facts = [], []
    for a, b in edges:
        a, b = rng.sample((a, b), 2)
        extras.append(
            (f"Draw a line from the {colours[a]} dot to the {colours[b]} dot.", line(*centres[a], *centres[b]))
        )
        facts.append((f"Is {colours[a]} linked to {colours[b]}?", "yes"))
    for _ in range(2):
        a, b = rng.sample(range(len(cells)), 2)
        if (a, b) not in edges and (b, a) not in edges:
            facts.append((f"Is {colours[a]} linked to {colours[b]}?", "no"))
    links = _listing([f"{colours[a]} to {colours[b]}" for a, b in edges])
    caption = _listing([f"{spot.name} {spot.place}" for spot in spots]) + " Links: " + links
    image = diagrammatic.draw_graph(cells, edges, colours, rng.choice(BACKGROUNDS))
    return View(image, caption, spots, tuple(extras), facts=tuple(facts))


def _rows(cells: operational.Cells) -> str:
    return " ".join(f"Row {i + 1}: {', '.join(row)}." for i, row in enumerate(cells))


def tiles(rng: Random) -> View:
    """Coloured tiles with a walker; its moves."""
    cells = tuple(tuple(rng.choice(COLOUR_NAMES) for _ in range(4)) for _ in range(4))
    at, background = (rng.randrange(4), rng.randrange(4)), rng.choice(BACKGROUNDS)
    moves = []
    for move, (dx, dy) in operational.MOVES.items():
        spot = (at[0] + dx, at[1] + dy)
        if 0 <= spot[0] < 4 and 0 <= spot[1] < 4:
            after = operational.draw_walker(cells, spot, background)
            moves += [
                (text, after)
                for text in (
                    f"Move the walker {move}.",
                    f"The walker moves {move}.",
                    f"Move the black dot one tile {move}.",
                )
            ]
    extras = []
    for _ in range(3):
        row, column = rng.randrange(4), rng.randrange(4)
        box = (16 * column, 16 * row, 16 * column + 16, 16 * row + 16)
        extras.append((f"Draw a box around the tile in row {row + 1}, column {column + 1}.", bbox(*box)))
    where = f"row {at[1] + 1}, column {at[0] + 1}"
    facts = [("Where is the walker?", where), ("What colour is the walker on?", cells[at[1]][at[0]])]
    for _ in range(3):
        row, column = rng.randrange(4), rng.randrange(4)
        facts.append((f"What colour is row {row + 1}, column {column + 1}?", cells[row][column]))
    caption = f"{_rows(cells)} The walker is at {where}."
    return View(operational.draw_walker(cells, at, background), caption, (), tuple(extras), tuple(moves), tuple(facts))


def tray(rng: Random) -> View:
    """A tray with blocks; how they slide."""
    cells, background = operational.random_tray(rng, rng.randint(2, 6)), rng.choice(BACKGROUNDS)
    if rng.random() < 0.4:
        cells = operational.slide(cells, rng.choice(tuple(operational.MOVES)))
    moves = []
    for move in operational.MOVES:
        after = operational.draw_blocks(operational.slide(cells, move), background)
        moves += [
            (text, after)
            for text in (f"Tilt the tray {move}.", f"The blocks slide {move}.", f"Let all blocks slide {move}.")
        ]
    facts = tuple(
        (f"Where is the {name} block?", f"row {r + 1}, column {c + 1}")
        for r, row in enumerate(cells)
        for c, name in enumerate(row)
        if name != "empty"
    )
    spots = tuple(
        Spot(f"{name} block", "", (16 * c + 8, 16 * r + 8), (16 * c, 16 * r, 16 * c + 16, 16 * r + 16))
        for r, row in enumerate(cells)
        for c, name in enumerate(row)
        if name != "empty"
    )
    image = operational.draw_blocks(cells, background)
    return View(image, operational.blocks_state(cells), spots, (), tuple(moves), facts)


def pattern(rng: Random) -> View:
    """A pattern of two by two (now and then three by three) fields; its turns and flips."""
    cells = operational.random_pattern(rng, 2 if rng.random() < 0.8 else 3)
    background, last = rng.choice(BACKGROUNDS), len(cells) - 1
    moves = []
    for change, (_, text) in operational.TURNS.items():
        after = operational.draw_pattern(operational.turn(cells, change), background)
        order = {
            "turn right": "Turn the tile right.",
            "turn left": "Turn the tile left.",
            "flip sideways": "Flip the tile sideways.",
            "flip over": "Flip the tile upside down.",
        }
        moves += [(text, after), (order[change], after)]
    facts = tuple(
        (f"What colour is {name}?", cells[r][c])
        for name, r, c in (
            ("upper left", 0, 0),
            ("upper right", 0, last),
            ("lower left", last, 0),
            ("lower right", last, last),
        )
    )
    return View(operational.draw_pattern(cells, background), _rows(cells), (), (), tuple(moves), facts)


MAKERS: dict[str, tuple[Callable[[Random], View], float]] = {
    "things": (things, 0.34),
    "dots": (dots, 0.12),
    "bars": (bars, 0.11),
    "table": (table, 0.09),
    "curve": (curve, 0.08),
    "graph": (graph, 0.08),
    "tiles": (tiles, 0.07),
    "tray": (tray, 0.06),
    "pattern": (pattern, 0.05),
}
MOVING = ("tiles", "tray", "pattern")


def random_view(rng: Random) -> View:
    """One view, by the makers' weights."""
    makers, weights = zip(*MAKERS.values(), strict=True)
    maker: Callable[[Random], View] = rng.choices(makers, weights)[0]
    return maker(rng)


def drawing(rng: Random, view: View) -> tuple[str, Action] | None:
    """An instruction to draw on this view, and its action; None where nothing can be drawn."""
    named = [spot for spot in view.spots if _is_unique(view.spots, spot, "name")]
    placed = [spot for spot in view.spots if spot.place and _is_unique(view.spots, spot, "place")]
    if view.extras and (not named or rng.random() < 0.5):
        return rng.choice(view.extras)
    if placed and (not named or rng.random() < 0.3):
        spot = rng.choice(placed)
        spot = replace(spot, name=f"thing {spot.place}")
    elif named:
        spot = rng.choice(named)
    else:
        return None
    pairs = [other for other in named if other.centre != spot.centre]
    kind = rng.choice(("box", "box", "mark", "mark", "zoom", "line"))
    if kind == "mark" or not spot.place:
        texts: tuple[str, ...] = (f"Mark the {spot.name}.", f"Put a mark on the {spot.name}.")
        return rng.choice(texts), mark(*spot.centre)
    if kind == "zoom":
        return rng.choice((f"Zoom in on the {spot.name}.", f"Zoom to the {spot.name}.")), zoom(*spot.box)
    if kind == "line" and pairs:
        other = rng.choice(pairs)
        return f"Draw a line from the {spot.name} to the {other.name}.", line(*spot.centre, *other.centre)
    texts = (f"Draw a box around the {spot.name}.", f"Put a box around the {spot.name}.", f"Box the {spot.name}.")
    return rng.choice(texts), bbox(*ring(spot.box))


__all__ = ["MAKERS", "MOVING", "Spot", "View", "drawing", "random_view"]
