"""Drills of the base training: seeing, drawing one requested thing, and answering in text.

    drill = make_drill(12)        # the same seed, the same drill

They teach a model to look and to draw, never to reason in images: an order requests one drawing, consecutive orders are
unrelated, and the chains of tasks are text without images. Evaluation seeds are rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from PIL import Image

from training.skills import apply
from training.world.asking import (
    BARE,
    HARD_TO_FINISH,
    HARD_TO_FOLLOW,
    HARD_TO_PLACE,
    MAKERS,
    MOVING,
    bare_view,
    drawing,
    random_view,
    stated,
    worded,
)
from training.world.chain import say
from training.world.scenes import random_action, random_image
from training.world.views import Extra, View, moved
from training.world.world import SLICES, make_task, require_training_seed

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
# Shares of the last drills: a base that draws on order, in many wordings.
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
# Shares of the drills after that: almost only orders in plain words on images without other ink, until drawings are
# placed precisely.
LOCATING: Final[dict[str, float]] = {
    "describe": 0.03,
    "picture": 0.01,
    "copy": 0.01,
    "draw": 0.05,
    "move": 0.02,
    "order": 0.83,
    "ask": 0.02,
    "direct": 0.01,
    "chain": 0.02,
}
# Shares of the last drills: the same with the inverse of orders, which makes the base a judge of its own drawings.
VERIFYING: Final[dict[str, float]] = {
    "describe": 0.03,
    "picture": 0.01,
    "copy": 0.01,
    "draw": 0.1,
    "move": 0.03,
    "order": 0.66,
    "between": 0.1,
    "ask": 0.03,
    "direct": 0.01,
    "chain": 0.02,
}
# The same, half of the orders on views that a base misplaces most.
AIMING: Final[dict[str, float]] = {**VERIFYING, "order": 0.3, "aim": 0.36}
# The same on the views and moves whose chains it then draws wrongly most often.
FOLLOWING: Final[dict[str, float]] = {**VERIFYING, "draw": 0.03, "order": 0.07, "follow": 0.5, "step": 0.16}
# The same, with moves of a state that a move has led to, and closer looks.
FINISHING: Final[dict[str, float]] = {
    **{**VERIFYING, "between": 0.06, "draw": 0.03, "move": 0.01, "order": 0.11},
    **{"finish": 0.5, "next": 0.18},
}
BARE_KINDS: Final = ("order", "step", "next", "aim", "follow", "finish", "between")
HARD: Final = {"aim": HARD_TO_PLACE, "follow": HARD_TO_FOLLOW, "finish": HARD_TO_FINISH}
BETWEEN: Final = "What was done between the two images?"


@dataclass(frozen=True)
class Drill:
    """One example. `prompt_text` (and `image`, if any) is given; `response` (texts and images) is the target.

    "direct" and "chain" are tasks without images in the response: the template renders `steps` (texts; none for
    "direct") and `answer`, and `response` has the same as plain text. `earlier` is given before `image`: the image
    before the newest ink. `more` are further given orders, each with its requested image. "order" is "draw" or "move"
    in plain words, on an image without other ink, "step" such a "move", "next" one after another; "aim", "follow" and
    "finish" are "draw" in plain words on views that are hard. "between" is the inverse of "order": the response names
    what changed `earlier` into `image`.
    """

    kind: str
    prompt_text: str
    image: Image.Image | None
    response: tuple[str | Image.Image, ...]
    steps: tuple[str, ...] = ()
    answer: str | None = None
    earlier: Image.Image | None = None
    more: tuple[tuple[str, Image.Image], ...] = ()
    order: str = ""


def make_drill(seed: int, *, kind: str | None = None, shares: Mapping[str, float] = KINDS) -> Drill:
    """The drill of a seed; `kind` forces one of `KINDS` or `BARE_KINDS`, `shares` weight the kinds.

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
        image = random_image(rng)
        return Drill(name, say(rng, "Copy the picture.", "Draw the same picture again."), image, (image,))
    if name == "draw":
        return _draw_drill(rng)
    if name == "move":
        return _move_drill(rng)
    if name == "order":
        return replace((_draw_drill if rng.random() < 0.8 else _move_drill)(rng, bare=True), kind=name)
    if name in HARD:
        return replace(_draw_drill(rng, bare=True, views=HARD[name]), kind=name)
    if name in ("step", "next"):
        return replace(_move_drill(rng, moved(rng) if name == "next" else None, bare=True), kind=name)
    if name == "between":
        return _between_drill(rng)
    if name == "ask":
        view = random_view(rng)
        question, answer = rng.choice(view.facts)
        return Drill(name, question, _inked(rng, view, 0.4)[-1] if "Where" in question else view.image, (answer,))
    raise ValueError(f"unknown kind {name!r}: one of {', '.join((*KINDS, *BARE_KINDS))}")


def _inked(rng: Random, view: View, share: float) -> list[Image.Image]:
    """The view's image and, in `share` of the cases, one or two more with earlier drawings."""
    images = [view.image]
    if rng.random() < share:
        for _ in range(rng.randint(1, 2)):
            given = drawing(rng, view)
            action = random_action(rng) if given is None or rng.random() < 0.3 else given.action
            if action.name != "ZOOM":
                images.append(apply(action, images[-1]))
    return images


def _move_drill(rng: Random, view: View | None = None, *, bare: bool = False) -> Drill:
    view = view or MAKERS[rng.choice(MOVING)][0](rng)
    text, after = rng.choice(view.moves)
    words = say(rng, text, f"Next state: {text[0].lower()}{text[1:]}") if bare else worded(rng, text, view)
    return Drill("move", words, view.image, (after,), earlier=view.earlier, order=text)


def _is_named_zoom(given: Extra) -> bool:
    return given.action.name == "ZOOM" and given.before is None


def _draw_drill(rng: Random, *, bare: bool = False, views: Mapping[str, float] = BARE) -> Drill:
    """One order that may refer to the newest ink, and up to three more that do not refer to earlier drawings."""
    while True:
        view = bare_view(rng, views) if bare else random_view(rng)
        given = drawing(rng, view, 0.8 if bare else 0.6)
        if given is None or (bare and _is_named_zoom(given)):
            continue
        images = _inked(rng, view, 0.0 if bare else 0.4) if given.before is None else [view.image]
        for action in given.before or ():
            images.append(apply(action, images[-1]))
        drawn = apply(given.action, images[-1])
        if drawn.tobytes() != images[-1].tobytes():  # it may have been drawn already
            break
    more: list[tuple[str, Image.Image]] = []
    newest, last, wanted = drawn, given.action.name, rng.choice((0, 1, 2, 3))
    for _ in range(3 * wanted):
        following = drawing(rng, view)
        if last == "ZOOM" or len(more) == wanted:
            break
        if following is None or following.before is not None or (bare and _is_named_zoom(following)):
            continue
        image = apply(following.action, newest)
        if image.tobytes() != newest.tobytes():
            more.append((following.text, image))
            newest, last = image, following.action.name
    several = len(given.before or ()) > 1  # then only the image before says which is the newest
    earlier = images[-2] if len(images) > 1 and (rng.random() < 0.5 or several) else None
    words = [
        stated(rng, text) if bare else worded(rng, text, view) for text in (given.text, *(text for text, _ in more))
    ]
    further = tuple((text, image) for text, (_, image) in zip(words[1:], more, strict=True))
    return Drill("draw", words[0], images[-1], (drawn,), earlier=earlier, more=further, order=given.text)


def _between_drill(rng: Random) -> Drill:
    made = (_draw_drill if rng.random() < 0.7 else _move_drill)(rng, bare=rng.random() < 0.7)
    question = say(rng, BETWEEN, BETWEEN, "What changed from the first image to the second?", "Which step was this?")
    (after,) = made.response
    assert isinstance(after, Image.Image)
    return Drill("between", question, after, (made.order,), earlier=made.image, order=made.order)


def _task_drill(kind: str, rng: Random, seed: int) -> Drill:
    task = make_task(rng.choice(SLICES), seed)
    steps = tuple(f"{step.text} {step.state}" for step in task.steps) if kind == "chain" else ()
    text = " ".join((*steps, task.answer))
    return Drill(kind, task.question, task.image, (text,), steps, task.answer)
