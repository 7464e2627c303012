"""A broad distribution of images for the tokenizer, covering tasks, drills and users' sketches.

    image = random_image(Random(1))

Half are images of the tasks (questions and steps); the rest are the same with random ink and crops, flat colours,
scattered shapes of any size and colour, gradients, smooth noise, and pen sketches.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from training.skills import Action, apply
from training.world.canvas import BACKGROUNDS, BLACK, COLOURS, EMPTY, GREY, INK, RGB, SHAPES, new_image, put_shape
from training.world.task import SIZE
from training.world.world import BASE_SEEDS, SLICES, make_task

_PALETTE: tuple[RGB, ...] = (*COLOURS.values(), BLACK, GREY, EMPTY, INK, (255, 255, 255), *BACKGROUNDS)


def random_image(rng: Random) -> Image.Image:
    """One 64x64 RGB image. Task images only use base seeds."""
    kind = rng.random()
    if kind < 0.56:
        return _task_image(rng)
    if kind < 0.76:
        return _with_random_ink(rng, _task_image(rng))
    if kind < 0.79:
        return new_image(rng.choice(_PALETTE) if rng.random() < 0.6 else _any_colour(rng))
    if kind < 0.88:
        return _shapes(rng)
    if kind < 0.90:
        return _gradient(rng)
    if kind < 0.92:
        return _noise(rng)
    return _sketch(rng)


def _task_image(rng: Random) -> Image.Image:
    level = "hard" if rng.random() < 0.15 else "normal"
    task = make_task(rng.choice(SLICES), rng.choice(BASE_SEEDS), level=level)
    return rng.choice([task.image, *(step.image for step in task.steps)])


def random_action(rng: Random) -> Action:
    """A box, line, mark or crop anywhere; two in three on the lattice of 4 px."""

    def place(low: int, high: int) -> float:
        return (4 * rng.randint(low // 4, high // 4) if rng.random() < 0.67 else rng.randint(low, high)) / SIZE

    kind = rng.randrange(4)
    if kind == 0:
        return Action("MARK", (place(4, 60), place(4, 60)))
    if kind == 1:
        x, y, length, angle = place(4, 60), place(4, 60), rng.uniform(0.2, 0.9), rng.uniform(0, 2 * math.pi)
        if rng.random() < 0.4:
            angle = math.pi / 2 * rng.randrange(4)
        ends = (x + length * math.cos(angle), y + length * math.sin(angle))
        return Action("LINE", (x, y, *(min(max(round(e * SIZE), 1), 62) / SIZE for e in ends)))
    x, y, w = place(0, 44), place(0, 44), place(16, 40)
    h = w if kind == 3 or rng.random() < 0.4 else place(16, 40)
    return Action("ZOOM" if kind == 3 else "BBOX", (x, y, min(w, 1 - x), min(h, 1 - y)))


def _with_random_ink(rng: Random, image: Image.Image) -> Image.Image:
    for _ in range(rng.randint(1, 3)):
        image = apply(random_action(rng), image)
    return image


def _any_colour(rng: Random) -> RGB:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _shapes(rng: Random) -> Image.Image:
    image = new_image(rng.choice(BACKGROUNDS) if rng.random() < 0.7 else _any_colour(rng))
    for _ in range(rng.randint(1, 8)):
        colour = rng.choice(_PALETTE) if rng.random() < 0.7 else _any_colour(rng)
        centre = rng.randint(4, 60), rng.randint(4, 60)
        put_shape(image, rng.choice(SHAPES), colour, centre, 2 * rng.randint(4, 16))
    return image


def _gradient(rng: Random) -> Image.Image:
    a, b = np.array(_any_colour(rng)), np.array(_any_colour(rng))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1)
    angle = rng.uniform(0, 2 * math.pi)
    share = ((x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)) / 1.42 + 0.5
    return Image.fromarray((a + (b - a) * share[..., None]).clip(0, 255).astype(np.uint8))


def _noise(rng: Random) -> Image.Image:
    n = rng.choice((2, 3, 4, 6, 8))
    small = Image.frombytes("RGB", (n, n), rng.randbytes(3 * n * n))
    return small.resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _sketch(rng: Random) -> Image.Image:
    """Wobbly pen strokes and filled blobs, as in a sketch pad, shrunk to 64 px."""
    scale = 4
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), rng.choice(BACKGROUNDS))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 5)):
        colour = BLACK if rng.random() < 0.3 else rng.choice(_PALETTE[:9])
        x, y, radius = rng.uniform(10, 54), rng.uniform(10, 54), rng.uniform(5, 14)
        corners = rng.choice((3, 4, 4, 12, 12, 12))
        turn, points = rng.uniform(-0.3, 0.3) - math.pi / 2, []
        if corners == 4 and rng.random() < 0.7:
            turn += math.pi / 4
        for i in range(corners + 1):
            angle = turn + 2 * math.pi * i / corners
            r = radius * rng.uniform(0.88, 1.12)
            points.append(((x + r * math.cos(angle)) * scale, (y + r * math.sin(angle)) * scale))
        if rng.random() < 0.5:
            draw.polygon(points, fill=colour)
        else:
            draw.line(points, fill=colour, width=round(rng.uniform(1.5, 4) * scale), joint="curve")
        if rng.random() < 0.3:
            start, walk = (rng.uniform(4, 60), rng.uniform(4, 60)), []
            heading = rng.uniform(0, 2 * math.pi)
            for _ in range(rng.randint(3, 14)):
                walk.append((start[0] * scale, start[1] * scale))
                heading += rng.uniform(-0.5, 0.5)
                start = start[0] + 4 * math.cos(heading), start[1] + 4 * math.sin(heading)
            draw.line(walk, fill=colour, width=round(rng.uniform(1.5, 3.5) * scale), joint="curve")
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)
