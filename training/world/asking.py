"""Drawable things of a view and their wordings: orders, first-person thoughts, after a remark.

Wordings and lengths vary on purpose: a small model that always sees its order at the same distance from the given image
learns to copy by counting tokens, and shifts the copy by one code when the order is one word longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

from training.world.canvas import bbox, line, mark, zoom
from training.world.chain import ring, say
from training.world.lines import axes, rays, walls
from training.world.things import closer, neighbours, things
from training.world.views import Extra, View, bars, curve, dots, graph, is_unique, pattern, table, tiles, tray

MAKERS: dict[str, tuple[Callable[[Random], View], float]] = {
    "things": (things, 0.37),
    "dots": (dots, 0.03),
    "rays": (rays, 0.08),
    "walls": (walls, 0.08),
    "axes": (axes, 0.08),
    "bars": (bars, 0.11),
    "table": (table, 0.08),
    "curve": (curve, 0.07),
    "graph": (graph, 0.03),
    "tiles": (tiles, 0.03),
    "tray": (tray, 0.02),
    "pattern": (pattern, 0.02),
    "neighbours": (neighbours, 0.0),
    "closer": (closer, 0.0),
}
MOVING = ("tray", "tray", "tiles", "pattern")


def random_view(rng: Random) -> View:
    """Sample a view by the makers' weights."""
    makers, weights = zip(*MAKERS.values(), strict=True)
    maker: Callable[[Random], View] = rng.choices(makers, weights)[0]
    return maker(rng)


# Weights of the views that a base misplaced most after seven phases.
HARD_TO_PLACE: dict[str, float] = {"things": 0.45, "rays": 0.2, "walls": 0.2, "table": 0.15}
# Weights of the views of the chains that it draws wrongly most often after eight.
HARD_TO_FOLLOW: dict[str, float] = {
    "things": 0.2,
    "neighbours": 0.25,
    "walls": 0.25,
    "table": 0.15,
    "axes": 0.1,
    "rays": 0.05,
}
# Weights of the views of the chains that it still draws wrongly after nine, and some of what it had forgotten.
HARD_TO_FINISH: dict[str, float] = {
    "closer": 0.2,
    "walls": 0.24,
    "neighbours": 0.12,
    "things": 0.12,
    "axes": 0.12,
    "rays": 0.12,
    "bars": 0.05,
    "curve": 0.03,
}
BARE: dict[str, float] = {
    "things": 40,
    "rays": 10,
    "walls": 12,
    "axes": 12,
    "bars": 12,
    "table": 8,
    "curve": 6,
}


def bare_view(rng: Random, weights: Mapping[str, float] = BARE) -> View:
    """Sample a view with more than scattered dots and tiles, diagrams more often."""
    return MAKERS[rng.choices(tuple(weights), tuple(weights.values()))[0]][0](rng)


def drawing(rng: Random, view: View, extras_share: float = 0.6) -> Extra | None:
    """Choose something to draw on this view and its wording; no single thing in `extras_share` of the cases.

    None if nothing can be drawn.
    """
    named = [spot for spot in view.spots if spot.also or is_unique(view.spots, spot, "name")]
    placed = [spot for spot in view.spots if spot.place and is_unique(view.spots, spot, "place")]
    if view.extras and (not named or rng.random() < extras_share):
        return rng.choice(view.extras)
    if placed and (not named or rng.random() < 0.2):
        spot = rng.choice(placed)
        spot = replace(spot, name=f"thing {spot.place}")
    elif named:
        spot = rng.choice(named)
        names = [*spot.also, *([spot.name] if is_unique(view.spots, spot, "name") else [])]
        spot = replace(spot, name=rng.choice(names))
    else:
        return None
    the, pairs = f"the {spot.name}", [other for other in named if other.centre != spot.centre and not other.also]
    kind = rng.choice(("box", "box", "box", "mark", "mark", "zoom", "line"))
    if kind == "mark" or not spot.place:
        text = say(rng, f"Mark {the}.", f"Put a mark on {the}.", f"Find {the} and mark it.")
        return Extra(text, mark(*spot.centre))
    if kind == "zoom":
        return Extra(say(rng, f"Zoom in on {the}.", f"Zoom to {the}."), zoom(*spot.box))
    if kind == "line" and pairs:
        other = rng.choice(pairs)
        return Extra(f"Draw a line from {the} to the {other.name}.", line(*spot.centre, *other.centre))
    texts = (
        f"Draw a box around {the}.",
        f"Put a box around {the}.",
        f"Box {the}.",
        f"Look for {the} and draw a box around it.",
        f"Find {the} and put a box around it.",
    )
    return Extra(rng.choice(texts), bbox(*ring(spot.box)))


_VERBS = ("Mark", "Put", "Find", "Look", "Zoom", "Draw", "Box", "Extend", "Move", "Tilt", "Let", "Turn", "Flip")
_LEADS = ("Now", "Now,", "First", "First,", "Next", "Next,", "Then", "Then,", "Please", "So", "Finally,")
_THOUGHTS = ("I", "I", "Now I", "First I", "Next I", "Then I", "I now", "I will", "So I", "Next, I", "Finally I")


def stated(rng: Random, text: str) -> str:
    """An order, literally or as a thought ("I mark the red star."), without additions."""
    number, colon, order = text.partition(": ")
    if colon and number.startswith("Number"):
        return f"{number}: {say(rng, '', 'I ')}{order}"
    if text.split()[0] not in _VERBS or rng.random() < 0.5:
        return text
    return f"{say(rng, 'I', 'I', 'Now I', 'First I', 'Next I')} {text[0].lower()}{text[1:]}"


def worded(rng: Random, text: str, view: View) -> str:
    """Vary an order ("Mark the red star."): literally, after lead-ins and remarks, or as a thought."""
    number, colon, order = text.partition(": ")
    if colon and number.startswith("Number"):
        return f"{_remark(rng, view)}{number}: {say(rng, '', 'I ')}{order}"
    said = text
    lower = text[0].lower() + text[1:]
    style = rng.random()
    if style < 0.3:
        said = f"{rng.choice(_LEADS[:-3] if text.split()[0] not in _VERBS else _LEADS)} {lower}"
    elif style < 0.65 and text.split()[0] in _VERBS:
        said = f"{rng.choice(_THOUGHTS)} {lower}"
    elif style < 0.65:
        said = say(rng, f"Next state: {lower}", f"I see: {lower}", text)
    if rng.random() < 0.15:
        place = rng.randint(1, 4)
        said = say(rng, f"THOUGHT {place}: ", f"Step {place}: ", f"{place}. ") + said
    if rng.random() < 0.1:
        said = said.removesuffix(".") + say(rng, "", ":", "!", " now.")
    return _remark(rng, view) + said


def _remark(rng: Random, view: View) -> str:
    """Text between the given image and the order: nothing, a question, a fact, the whole caption."""
    kind = rng.random()
    if kind < 0.55 or not view.facts:
        return ""
    if kind < 0.9:
        said = []
        for question, answer in rng.sample(view.facts, min(len(view.facts), rng.choice((1, 1, 2)))):
            said.append(question if rng.random() < 0.5 else f"{question} {answer[:1].upper()}{answer[1:]}.")
        return " ".join(said) + say(rng, " ", "\n")
    return view.caption + say(rng, " ", "\n")
