"""Drills of the base training: seeing, drawing one thing that is asked for, and answering in text.

    drill = make_drill(12)        # the same seed, the same drill

They teach a model to look and to draw, never to reason in pictures: a drill holds one drawing at most, and the chains
of tasks come as text without their pictures. Seeds of the evaluation are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from PIL import Image

from training.skills import apply
from training.unitasks.asking import MAKERS, MOVING, drawing, random_view, worded
from training.unitasks.chain import say
from training.unitasks.scenes import random_action, random_picture
from training.unitasks.views import View
from training.unitasks.world import SLICES, make_task, require_training_seed

KINDS: Final[dict[str, float]] = {
    "describe": 0.12,
    "picture": 0.08,
    "copy": 0.06,
    "draw": 0.32,
    "move": 0.15,
    "ask": 0.09,
    "direct": 0.08,
    "chain": 0.10,
}
# Of the drills that come last: a base that draws what it is told, in many words.
DRAWING: Final[dict[str, float]] = {
    "describe": 0.04,
    "picture": 0.02,
    "copy": 0.01,
    "draw": 0.62,
    "move": 0.2,
    "ask": 0.04,
    "direct": 0.03,
    "chain": 0.04,
}


@dataclass(frozen=True)
class Drill:
    """One example. `prompt_text` (and `image`, if any) is given; `response` (texts and pictures) is learnt.

    "direct" and "chain" are tasks without pictures in the response: `steps` (texts; none for "direct") and `answer` are
    for the template to render, and `response` holds the same as plain text.
    """

    kind: str
    prompt_text: str
    image: Image.Image | None
    response: tuple[str | Image.Image, ...]
    steps: tuple[str, ...] = ()
    answer: str | None = None


def make_drill(seed: int, *, kind: str | None = None, shares: Mapping[str, float] = KINDS) -> Drill:
    """The drill of a seed; `kind` forces one of `KINDS`, `shares` say how often each comes.

    Raises:
        ValueError: a seed of the evaluation, or an unknown kind.
    """
    rng = Random(f"drill/{require_training_seed(seed)}")
    name = rng.choices(tuple(shares), tuple(shares.values()))[0] if kind is None else kind
    if name in ("direct", "chain"):
        return _task_drill(name, rng, seed)
    if name == "describe":
        view = random_view(rng)
        return Drill(
            name,
            say(rng, "Describe the picture.", "What does the picture show?", "What do you see?"),
            view.image,
            (view.caption,),
        )
    if name == "picture":
        view = random_view(rng)
        return Drill(name, say(rng, "Draw this: ", "Make a picture: ") + view.caption, None, (view.image,))
    if name == "copy":
        image = random_picture(rng)
        return Drill(name, say(rng, "Copy the picture.", "Draw the same picture again."), image, (image,))
    if name == "draw":
        return _draw_drill(rng)
    if name == "move":
        view = MAKERS[rng.choice(MOVING)][0](rng)
        text, after = rng.choice(view.moves)
        return Drill(name, worded(rng, text, view), view.image, (after,))
    if name == "ask":
        view = random_view(rng)
        question, answer = rng.choice(view.facts)
        return Drill(name, question, _perhaps_inked(rng, view).image if "Where" in question else view.image, (answer,))
    raise ValueError(f"unknown kind {name!r}: one of {', '.join(KINDS)}")


def _perhaps_inked(rng: Random, view: View) -> View:
    """In two of five cases a view on which something has been drawn before."""
    if rng.random() < 0.6:
        return view
    image = view.image
    for _ in range(rng.randint(1, 2)):
        given = drawing(rng, view)
        action = random_action(rng) if given is None or rng.random() < 0.3 else given.action
        if action.name != "ZOOM":
            image = apply(action, image)
    return View(image, view.caption, view.spots, view.extras, (), view.facts)


def _draw_drill(rng: Random) -> Drill:
    while True:
        view = random_view(rng)
        given = drawing(rng, view)
        if given is None:
            continue
        before = _perhaps_inked(rng, view).image if given.before is None else view.image
        for action in given.before or ():
            before = apply(action, before)
        drawn = apply(given.action, before)
        if drawn.tobytes() != before.tobytes():  # it may have been drawn before
            return Drill("draw", worded(rng, given.text, view), before, (drawn,))


def _task_drill(kind: str, rng: Random, seed: int) -> Drill:
    task = make_task(rng.choice(SLICES), seed)
    steps = tuple(f"{step.text} {step.state}" for step in task.steps) if kind == "chain" else ()
    text = " ".join((*steps, task.answer))
    return Drill(kind, task.question, task.image, (text,), steps, task.answer)
