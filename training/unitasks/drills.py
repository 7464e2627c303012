"""Drills of the base training: seeing, drawing one thing that is asked for, and answering in text.

    drill = make_drill(12)        # the same seed, the same drill

They teach a model to look and to draw, never to reason in pictures: a drill holds one drawing at most, and the chains
of tasks come as text without their pictures. Seeds of the evaluation are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from PIL import Image

from training.skills import apply
from training.unitasks.chain import say
from training.unitasks.scenes import random_action, random_picture
from training.unitasks.views import MAKERS, MOVING, View, drawing, random_view
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


def make_drill(seed: int, *, kind: str | None = None) -> Drill:
    """The drill of a seed; `kind` forces one of `KINDS`. Raises ValueError for a seed of the evaluation."""
    rng = Random(f"drill/{require_training_seed(seed)}")
    name = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0] if kind is None else kind
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
        return Drill(name, text, view.image, (after,))
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
        action = random_action(rng) if given is None or rng.random() < 0.3 else given[1]
        if action.name != "ZOOM":
            image = apply(action, image)
    return View(image, view.caption, view.spots, view.extras, (), view.facts)


def _draw_drill(rng: Random) -> Drill:
    while True:
        view = _perhaps_inked(rng, random_view(rng))
        given = drawing(rng, view)
        if given is None:
            continue
        drawn = apply(given[1], view.image)
        if drawn.tobytes() != view.image.tobytes():  # it may have been drawn before
            return Drill("draw", given[0], view.image, (drawn,))


def _task_drill(kind: str, rng: Random, seed: int) -> Drill:
    task = make_task(rng.choice(SLICES), seed)
    steps = tuple(f"{step.text} {step.state}" for step in task.steps) if kind == "chain" else ()
    text = " ".join((*steps, task.answer))
    return Drill(kind, task.question, task.image, (text,), steps, task.answer)
