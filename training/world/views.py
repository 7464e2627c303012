"""Images to look at and draw on, for the base training: each with a caption and the things that can be pointed at.

A view is a random variant of a family's question image, without question or chain. Knows nothing of prompts (see
`drills.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from training.skills import Action
from training.world import diagrammatic, operational, structured
from training.world.canvas import BACKGROUNDS, COLOUR_NAMES, SHAPES, bbox, line, mark, place_word
from training.world.chain import ring, say
from training.world.task import Box


@dataclass(frozen=True)
class Spot:
    """Something that an instruction can name: by `name`, `place` ("in the upper left") or `also`."""

    name: str
    place: str
    centre: tuple[int, int]
    box: Box
    also: tuple[str, ...] = ()  # other unique names: "red thing"


@dataclass(frozen=True)
class Extra:
    """Something to draw that is not a single spot.

    `before` is the ink that the text refers to, and is drawn first; None: existing ink does not matter.
    """

    text: str
    action: Action
    before: tuple[Action, ...] | None = None


@dataclass(frozen=True)
class View:
    """An image, its caption, its things, and further things that can be drawn on it.

    `earlier` is the state a move before that of `image`.
    """

    image: Image.Image
    caption: str
    spots: tuple[Spot, ...] = ()
    extras: tuple[Extra, ...] = ()
    moves: tuple[tuple[str, Image.Image], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()  # short questions and their answers
    earlier: Image.Image | None = None


def listing(words: list[str]) -> str:
    """The words as one sentence."""
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


def spot_at(name: str, centre: tuple[int, int], box: Box) -> Spot:
    """A spot with its centre's place in words."""
    return Spot(name, _place(centre), centre, box)


def around(centre: tuple[int, int], half: int = 8) -> Box:
    """The box with half side `half` around a point."""
    return centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half


def is_unique(spots: tuple[Spot, ...], spot: Spot, attribute: str) -> bool:
    """Whether no other spot has the same `attribute`."""
    return [getattr(other, attribute) for other in spots].count(getattr(spot, attribute)) == 1


def dots(rng: Random) -> View:
    """Round dots."""
    colours = rng.sample(COLOUR_NAMES, rng.randint(2, 5))
    centres: list[tuple[int, int]] = []
    while len(centres) < len(colours):
        centre = 8 * rng.randint(1, 7), 8 * rng.randint(1, 7)
        if all(abs(centre[0] - x) >= 16 or abs(centre[1] - y) >= 16 for x, y in centres):
            centres.append(centre)
    order = sorted(zip(colours, centres, strict=True), key=lambda dot: (dot[1][1], dot[1][0]))
    spots = tuple(spot_at(f"{colour} dot", centre, around(centre)) for colour, centre in order)
    extras = []
    pairs = [(a, b) for a in spots for b in spots if a is not b]
    for a, b in rng.sample(pairs, min(2, len(pairs))):
        extras.append(Extra(f"Draw a line from the {a.name} to the {b.name}.", line(*a.centre, *b.centre)))
    caption = listing([f"{spot.name} {spot.place}" for spot in spots])
    image = diagrammatic.draw_segments([], order, rng.choice(BACKGROUNDS))
    facts = tuple((f"Where is the {spot.name}?", spot.place) for spot in spots)
    return View(image, caption, spots, tuple(extras), facts=facts)


def bars(rng: Random) -> View:
    """A bar chart."""
    chart = sorted(structured.random_bars(rng, rng.randint(2, 6), []), key=lambda bar: bar[1])
    spots, extras, facts = [], [], []
    for colour, column, value in chart:
        x, y = structured.bar_top((colour, column, value))
        spots.append(Spot(f"top of the {colour} bar", "", (x, y), (x - 4, y - 4, x + 4, structured.BASE_Y)))
        extras.append(Extra(f"Draw a box around the {colour} bar.", bbox(*ring((x - 4, y, x + 4, 60)))))
        across = line(x, y, structured.AXIS_X, y)
        extras += [
            Extra(f"{text} the {colour} bar{end}.", across)
            for text, end in (("Draw a line from", " to the axis"), ("Draw a line across from the top of", ""))
        ]
        text = say(rng, "Draw a line from there to the axis.", "From its top draw a line across to the axis.")
        extras.append(Extra(text, across, (mark(x, y),)))
        facts.append((f"What is the {colour} bar's value?", str(value)))
    level = rng.randint(1, 6)
    extras.append(Extra(f"Draw a line across at {level}.", line(structured.AXIS_X, 60 - 8 * level, 62, 60 - 8 * level)))
    caption = listing([f"{colour} bar {value}" for colour, _, value in chart])
    image = structured.draw_bars(tuple(chart), rng.choice(BACKGROUNDS))
    return View(image, caption, tuple(spots), tuple(extras), facts=tuple(facts))


def table(rng: Random) -> View:
    """A small table."""
    shapes = tuple(rng.sample(SHAPES, 3))
    cells = tuple(tuple(rng.choice(COLOUR_NAMES) for _ in range(3)) for _ in range(3))
    extras, facts = [], []
    for i in range(3):
        c = 24 + 16 * i
        along, down = line(16, c, 62, c), line(c, 16, c, 62)
        text = say(rng, f"Draw a line along the {shapes[i]} row.", f"Draw a line from the {shapes[i]} along its row.")
        extras.append(Extra(text, along))
        extras.append(Extra(f"Draw a line down column {i + 1}.", down))
        row = rng.randrange(3)
        other = line(16, 24 + 16 * row, 62, 24 + 16 * row)
        extras.append(
            Extra(
                say(rng, f"Draw another line down column {i + 1}.", f"Draw a line down column {i + 1}."), down, (other,)
            )
        )
        for j in range(3):
            x = 24 + 16 * j
            text = f"Draw a box around the cell in the {shapes[i]} row, column {j + 1}."
            box = bbox(x - 8, c - 8, x + 8, c + 8)
            if rng.random() < 0.4:
                extras.append(Extra(text, box))
            if cells[i].count(cells[i][j]) == 1:
                colour = cells[i][j]
                text = say(
                    rng, f"Draw a box around the {colour} cell on it.", f"On this row draw a box around {colour}."
                )
                extras.append(Extra(text, box, (along,)))
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
        spots.append(Spot(f"point over number {i + 1}", "", (x, y), around((x, y), 4)))
        down = line(x, y, x, structured.PLOT_Y)
        extras.append(Extra(f"Draw a line down from the point over {i + 1}.", down))
        text = say(rng, "Draw a line down to the axis.", "From the mark draw a line down to the numbers.")
        extras.append(Extra(text, down, (mark(x, y),)))
        if values.count(value) == 1 and value in (max(values), min(values)):
            end = "highest" if value == max(values) else "lowest"
            extras += [Extra(f"Mark the {end} point.", mark(x, y))] * 6
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
    spots = tuple(spot_at(f"{colours[i]} dot", centres[i], around(centres[i])) for i in order)
    extras, facts = [], []
    for a, b in edges:
        a, b = rng.sample((a, b), 2)
        text = f"Draw a line from the {colours[a]} dot to the {colours[b]} dot."
        extras.append(Extra(text, line(*centres[a], *centres[b])))
        facts.append((f"Is {colours[a]} linked to {colours[b]}?", "yes"))
    for _ in range(2):
        a, b = rng.sample(range(len(cells)), 2)
        if (a, b) not in edges and (b, a) not in edges:
            facts.append((f"Is {colours[a]} linked to {colours[b]}?", "no"))
    links = listing([f"{colours[a]} to {colours[b]}" for a, b in edges])
    caption = listing([f"{spot.name} {spot.place}" for spot in spots]) + " Links: " + links
    image = diagrammatic.draw_graph(cells, edges, colours, rng.choice(BACKGROUNDS))
    return View(image, caption, spots, tuple(extras), facts=tuple(facts))


def _rows(cells: operational.Cells) -> str:
    return " ".join(f"Row {i + 1}: {', '.join(row)}." for i, row in enumerate(cells))


def tiles(rng: Random) -> View:
    """Coloured tiles with a walker; its moves."""
    cells = tuple(tuple(rng.choice(COLOUR_NAMES) for _ in range(4)) for _ in range(4))
    return _tiles(rng, cells, (rng.randrange(4), rng.randrange(4)), rng.choice(BACKGROUNDS))


def _tiles(rng: Random, cells: operational.Cells, at: tuple[int, int], background: tuple[int, int, int]) -> View:
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
                    f"It moves {move}.",
                    f"It moves one tile {move}.",
                )
            ]
    extras = []
    for _ in range(3):
        row, column = rng.randrange(4), rng.randrange(4)
        box = (16 * column, 16 * row, 16 * column + 16, 16 * row + 16)
        extras.append(Extra(f"Draw a box around the tile in row {row + 1}, column {column + 1}.", bbox(*box)))
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
    return _tray(cells, background)


def _tray(cells: operational.Cells, background: tuple[int, int, int]) -> View:
    moves = []
    for move in operational.MOVES:
        after = operational.draw_blocks(operational.slide(cells, move), background)
        moves += [
            (text, after)
            for text in (
                f"Tilt the tray {move}.",
                f"The blocks slide {move}.",
                f"Let all blocks slide {move}.",
                f"Everything slides {move}.",
            )
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
    """A pattern of two by two (sometimes three by three) fields; its turns and flips."""
    cells = operational.random_pattern(rng, 2 if rng.random() < 0.8 else 3)
    return _pattern(cells, rng.choice(BACKGROUNDS))


def _pattern(cells: operational.Cells, background: tuple[int, int, int]) -> View:
    moves, last = [], len(cells) - 1
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


def moved(rng: Random) -> View:
    """A tray, a walker or a pattern after a move, with the state before; that move and all possible ones change it."""
    while True:
        view = _moved(rng)
        before = view.earlier
        moves = tuple(move for move in view.moves if move[1].tobytes() != view.image.tobytes())
        if before is not None and before.tobytes() != view.image.tobytes() and moves:
            return replace(view, moves=moves)


def _moved(rng: Random) -> View:
    kind, background = rng.choice(("tray", "tray", "tray", "tiles", "tiles", "pattern")), rng.choice(BACKGROUNDS)
    if kind == "tray":
        cells = operational.random_tray(rng, rng.randint(2, 6))
        after = operational.slide(cells, rng.choice(tuple(operational.MOVES)))
        return replace(_tray(after, background), earlier=operational.draw_blocks(cells, background))
    if kind == "pattern":
        cells = operational.random_pattern(rng, 2)
        after = operational.turn(cells, rng.choice(tuple(operational.TURNS)))
        return replace(_pattern(after, background), earlier=operational.draw_pattern(cells, background))
    cells = tuple(tuple(rng.choice(COLOUR_NAMES) for _ in range(4)) for _ in range(4))
    x, y = rng.randrange(4), rng.randrange(4)
    reached = [(x + dx, y + dy) for dx, dy in operational.MOVES.values()]
    at = rng.choice([spot for spot in reached if 0 <= spot[0] < 4 and 0 <= spot[1] < 4])
    return replace(_tiles(rng, cells, at, background), earlier=operational.draw_walker(cells, (x, y), background))
