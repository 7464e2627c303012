"""Drills of the base training as token sequences."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from PIL import Image
from tqdm import tqdm

from model.images.view import model_view
from model.text.template import ImagePart, Part, Rendered, StepPart, Template, TextPart
from training.data.token_sets import Codes, ImageCoder, TokenSet
from training.world.drills import BARE_KINDS, KINDS, VERIFYING, Drill, make_drill

BLANK = Image.new("RGB", (64, 64), "white")  # codes of a drill without images, discarded


def drill_set(
    first: int,
    count: int,
    coder: ImageCoder,
    templates: Sequence[Template],
    context_len: int,
    *,
    shares: Mapping[str, float] = KINDS,
) -> TokenSet:
    """Encode the drills of ``count`` seeds from ``first``; every eighth in the second of the two templates."""
    seeds = iter(tqdm(range(first, first + count), desc="drills", mininterval=5))

    def rendered() -> Iterator[Rendered]:
        while chunk := [make_drill(seed, shares=shares) for seed in islice(seeds, 64)]:
            chains = [drill_images(drill) or [BLANK] for drill in chunk]
            coded = coder.chains([[model_view(image, coder.vq.config) for image in chain] for chain in chains])
            for number, (drill, codes) in enumerate(zip(chunk, coded, strict=True)):
                yield render_drill(drill, codes, templates[number % 8 == 0])

    return TokenSet.build(rendered(), context_len)


def rehearsal(
    first: int,
    count: int,
    coder: ImageCoder,
    template: Template,
    context_len: int,
    lineage: Mapping[str, Any],
) -> TokenSet:
    """The drills of `count` seeds from `first`, in one template and the mix that the base of this lineage saw last."""
    return drill_set(first, count, coder, [template, template], context_len, shares=last_mix(lineage))


def last_mix(lineage: Mapping[str, Any]) -> Mapping[str, float]:
    """Shares of the kinds in a checkpoint's last drills; `VERIFYING` if its lineage does not say."""
    earlier = lineage.get("before")
    for stage in (lineage, *(earlier if isinstance(earlier, list) else [])):
        drills = stage.get("drills") if isinstance(stage, dict) else None
        shares = drills.get("shares") if isinstance(drills, dict) else None
        if isinstance(shares, dict) and shares.keys() <= {*KINDS, *BARE_KINDS} and _are_weights(shares.values()):
            return shares
    return VERIFYING


def _are_weights(values: Collection[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, (int, float)) and 0.0 <= value < math.inf]
    return len(numbers) == len(values) and sum(numbers) > 0.0


def drill_images(drill: Drill) -> list[Image.Image]:
    """All images of a drill in order, the given ones first."""
    given = [image for image in (drill.earlier, drill.image) if image is not None]
    drawn = [part for part in drill.response if not isinstance(part, str)]
    return [*given, *drawn, *(image for _, image in drill.more)]


def render_drill(drill: Drill, codes: Sequence[Codes], template: Template) -> Rendered:
    """Render a drill as a sequence; ``codes`` are those of :func:`drill_images`."""
    left = iter(codes)
    given: list[Part] = [ImagePart(next(left)) for image in (drill.earlier, drill.image) if image is not None]
    if drill.answer is not None:
        images = [part.codes for part in given if isinstance(part, ImagePart)]
        return template.render(drill.prompt_text, images, [StepPart(text) for text in drill.steps], drill.answer)
    response: list[Part] = [TextPart(p) if isinstance(p, str) else ImagePart(next(left)) for p in drill.response]
    turns: list[tuple[list[Part], list[Part]]] = [([*given, TextPart(drill.prompt_text)], response)]
    turns += [([TextPart(order)], [ImagePart(next(left))]) for order, _ in drill.more]
    return template.render_turns(turns)
