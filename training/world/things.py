"""Scattered shapes to look at and draw on, for the base training: by name, in reading order, or by neighbour."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from training.world import natural
from training.world.canvas import BACKGROUNDS, COLOUR_NAMES, SHAPES, bbox, mark, zoom
from training.world.chain import COUNT_WORDS, ORDINALS, ring, say
from training.world.views import Extra, Spot, View, is_unique, listing, spot_at

NOUNS = ("shape", "object", "thing")


def neighbours(rng: Random) -> View:
    """Shapes on a grid, of which only neighbours are drawn on: "Mark the thing above it."."""
    while True:
        looks = [(rng.choice(SHAPES), rng.choice(COLOUR_NAMES)) for _ in range(rng.randint(3, 8))]
        scene = _on_grid(rng, looks)
        if extras := _beside(rng, scene):
            break
    caption = listing([f"{spot.name} {spot.place}" for spot in _spots(scene)])
    return View(natural.draw_things(scene, rng.choice(BACKGROUNDS)), caption, extras=tuple(extras))


def things(rng: Random) -> View:
    """Scattered shapes."""
    looks = [(rng.choice(SHAPES), rng.choice(COLOUR_NAMES)) for _ in range(rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 7)))]
    if rng.random() < 0.25:  # several of a kind
        looks = [(looks[0][0], c) if rng.random() < 0.6 else (s, c) for s, c in looks]
    elif rng.random() < 0.33:
        looks = [(s, looks[0][1]) if rng.random() < 0.6 else (s, c) for s, c in looks]
    on_grid = rng.random() < 0.4
    scene = _on_grid(rng, looks) if on_grid else sorted(natural.scatter_things(rng, looks), key=_reading_order)
    spots = _spots(scene)
    facts = [("How many things are there?", str(len(scene)))]
    for spot in spots:
        if is_unique(spots, spot, "place"):
            facts.append((f"What is {spot.place}?", spot.name))
        if is_unique(spots, spot, "name"):
            facts.append((f"Where is the {spot.name}?", spot.place))
    caption = listing([f"{spot.name} {spot.place}" for spot in spots])
    extras = (*_in_order(rng, scene), *_closer(rng, spots), *(_beside(rng, scene) if on_grid else ()))
    return View(natural.draw_things(scene, rng.choice(BACKGROUNDS)), caption, spots, extras, facts=tuple(facts))


def closer(rng: Random) -> View:
    """Scattered shapes, one of them with a mark or a box, to look at more closely: "Zoom in there."."""
    looks = [(rng.choice(SHAPES), rng.choice(COLOUR_NAMES)) for _ in range(rng.randint(2, 6))]
    scene = sorted(natural.scatter_things(rng, looks), key=_reading_order)
    spots = _spots(scene)
    caption = listing([f"{spot.name} {spot.place}" for spot in spots])
    return View(natural.draw_things(scene, rng.choice(BACKGROUNDS)), caption, spots, tuple(_closer(rng, spots)))


def _on_grid(rng: Random, looks: list[tuple[str, str]]) -> list[natural.Thing]:
    """Things in different cells of a 3 x 3 grid, in reading order."""
    grid = rng.sample([(24 * c, 24 * r) for c in range(3) for r in range(3)], len(looks))
    scene = [natural.make_thing(rng, *look, *corner) for look, corner in zip(looks, grid, strict=True)]
    return sorted(scene, key=_reading_order)


def _reading_order(thing: natural.Thing) -> tuple[int, int]:
    return thing.y, thing.x


def _spots(scene: list[natural.Thing]) -> tuple[Spot, ...]:
    """A spot for each thing, with the other names that it alone has."""
    shapes, colours = [thing.shape for thing in scene], [thing.colour for thing in scene]
    return tuple(
        replace(
            spot_at(thing.name, thing.centre, thing.box),
            also=(thing.shape,) * (shapes.count(thing.shape) == 1)
            + tuple(f"{thing.colour} {noun}" for noun in NOUNS if colours.count(thing.colour) == 1),
        )
        for thing in scene
    )


def _in_order(rng: Random, scene: list[natural.Thing]) -> list[Extra]:
    """Numbered marks: the first, next or third of a kind in reading order, with the previous ones marked."""
    kinds = [(f"{thing.colour} {rng.choice(NOUNS)}", "colour", thing.colour) for thing in scene]
    kinds += [(thing.shape, "shape", thing.shape) for thing in scene]
    extras = []
    for name, attribute, value in rng.sample(kinds, min(3, len(kinds))):
        alike = [thing for thing in scene if getattr(thing, attribute) == value]
        place = rng.randrange(len(alike))
        before = tuple(mark(*thing.centre, i + 1) for i, thing in enumerate(alike[:place]))
        article, number = "an" if name[0] in "aeiou" else "a", COUNT_WORDS[place + 1]
        text = say(
            rng,
            f"Mark the {ORDINALS[place]} {name}.",
            f"Mark {article} {name}: that is {number}.",
            f"Number {number}: mark the {'next ' if place else ''}{name}.",
        )
        extras.append(Extra(text, mark(*alike[place].centre, place + 1), before))
    return extras


def _closer(rng: Random, spots: tuple[Spot, ...]) -> list[Extra]:
    """A closer look at something with a mark on it or a box around it."""
    spot = rng.choice(spots)
    by, ink = ("mark", mark(*spot.centre)) if rng.random() < 0.7 else ("box", bbox(*ring(spot.box)))
    text = say(rng, f"Zoom in on the {by}.", "Zoom in there.", "Zoom in to see it better.", f"Zoom to the {by}.")
    return [Extra(text, zoom(*spot.box), (ink,))] * 2


def _beside(rng: Random, scene: list[natural.Thing]) -> list[Extra]:
    """The neighbour of a thing that is named or has the newest mark."""
    at = {(thing.x // 24, thing.y // 24): thing for thing in scene}
    pairs = [
        (words, one, at[cell])
        for one in scene
        for words, (dx, dy) in _SIDES.items()
        if (cell := (one.x // 24 + dx, one.y // 24 + dy)) in at
    ]
    extras = []
    for (of, its), one, other in rng.sample(pairs, min(3, len(pairs))):
        named = [thing.name for thing in scene].count(one.name) == 1 and rng.random() < 0.4
        where = f"{of} the {one.name}" if named else its
        before = [] if named else [mark(*one.centre)]
        earlier = [a for _, a, b in pairs if b is one and a is not other]
        if before and earlier and rng.random() < 0.4:
            before.insert(0, mark(*rng.choice(earlier).centre))
        noun = say(rng, "thing", "one", "object")
        if rng.random() < 0.55:
            extras.append(Extra(f"Mark the {noun} {where}.", mark(*other.centre), tuple(before) or None))
        else:
            extras.append(
                Extra(f"Draw a box around the {noun} {where}.", bbox(*ring(other.box)), tuple(before) or None)
            )
    return extras


_SIDES = {
    ("right of", "to its right"): (1, 0),
    ("left of", "to its left"): (-1, 0),
    ("below", "below it"): (0, 1),
    ("above", "above it"): (0, -1),
}
