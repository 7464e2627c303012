"""Checks whether a drawn image is right.

    ok = check_step(task, 1, previous, drawn)

`previous` is the image that the drawing started from *as the model saw it* (decoded from its codes), so that the
tokenizer's losses do not count as drawing. The limits come from the calibration (`calibrate.py`), never from a model's
score. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.skills import INK, apply
from training.world.canvas import STATE_COLOURS, zoom
from training.world.task import SIZE, BoxTarget, LineTarget, MarkTarget, OwnTarget, StateTarget, Task, ZoomTarget

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

MAX_INK_DISTANCE = 35.0  # Lab; nearer is ink
MIN_BLOB = 5  # pixels; smaller specks of new ink come from the tokenizer,
MIN_BLOB_SHARE = 0.25  # and so do parts of a box or mark below this share of the largest
MIN_BOX_IOU = 0.6
MIN_BOX_OUTLINE = 0.75  # inked share of the outline
MAX_MARK_OFFSET = 4.0  # pixels
MARK_EXTENT = (3, 16)  # pixels, smallest and largest width and height; numbered ones decode to 14 - 16
MAX_END_OFFSET = 4.0  # pixels
MAX_LINE_MEDIAN = 2.0  # pixels from the line
MIN_LINE_COVER = 0.6  # inked share of the line
MIN_NEW_LINE = 0.4  # share of the line's ink that is new
MAX_REST_MEAN = 12.0  # grey levels, outside the ink
MAX_CHANGED_PATCHES = 2  # of 8x8 px
PATCH_CHANGED = 40.0  # grey levels
MAX_CROP_MEAN = 18.0  # grey levels from the right crop; another shape of the same colour is 26 away (median)
CELL_RADIUS = 2  # pixels around a cell's centre


def judge_drawings(task: Task, seen: Image.Image, drawn: Sequence[Image.Image | None]) -> tuple[int, int]:
    """Count the right drawings of a trace, and the total: the reference's number, or more if more were drawn.

    Args:
        task: the task.
        seen: the question's image as the model saw it, decoded from its codes.
        drawn: the image of each step, None for a step without one. Larger images are resized to 64x64.
    """
    verdicts = drawing_verdicts(task, seen, drawn)
    return sum(verdict is True for verdict in verdicts), num_drawings(task, drawn)


def num_drawings(task: Task, drawn: Sequence[object | None]) -> int:
    """The total of :func:`judge_drawings`: the reference's number, or more if more were drawn."""
    return max(len(task.steps), sum(image is not None for image in drawn))


def drawing_verdicts(task: Task, seen: Image.Image, drawn: Sequence[Image.Image | None]) -> list[bool | None]:
    """The verdict on the drawing of each step; arguments as for :func:`judge_drawings`.

    A drawing after the reference's last step is wrong. None: there is no drawing, or it cannot be judged: a state is
    compared with the right state, not with the image before it, so after a wrong state only a right one is recognised.
    """
    verdicts: list[bool | None] = []
    previous, lost = sized(seen), False
    for k, image in enumerate(drawn, 1):
        if image is None:
            verdicts.append(None)
            continue
        if k > len(task.steps):
            verdicts.append(False)
            continue
        image = sized(image)
        right = check_step(task, k, previous, image)
        is_state = isinstance(task.steps[k - 1].target, StateTarget)
        verdicts.append(None if is_state and lost and not right else right)
        lost = not right if is_state else lost
        previous = image
    return verdicts


def sized(image: Image.Image) -> Image.Image:
    """Resize an image to the world's size."""
    return image if image.size == (SIZE, SIZE) else image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def check_step(task: Task, k: int, previous: Image.Image, drawn: Image.Image) -> bool:
    """Whether `drawn` is the right result of step k (from 1) of the task on `previous`. Images are 64x64 RGB."""
    if drawn.size != (SIZE, SIZE) or previous.size != (SIZE, SIZE):
        raise ValueError(f"expected an image of {SIZE}x{SIZE} pixels, got {drawn.size} after {previous.size}")
    target = task.steps[k - 1].target
    if isinstance(target, OwnTarget):
        return bool(target.accepts(previous, drawn))
    before, after = _array(previous), _array(drawn)
    if isinstance(target, StateTarget):
        return _state_is_right(target, after)
    if isinstance(target, ZoomTarget):
        return _zoom_is_right(target, previous, after)
    ink, new = _new_ink(before, after)
    if not new.any() or not _rest_is_kept(before, after, ink):
        return False
    if isinstance(target, BoxTarget):
        return _box_is_right(target, ink, _without_crumbs(new))
    if isinstance(target, MarkTarget):
        return _mark_is_right(target, _without_crumbs(new))
    return _line_is_right(target, ink, new)


def _array(image: Image.Image) -> Floats:
    return np.asarray(image.convert("RGB"), dtype=np.float64)


_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(rgb: Floats) -> Floats:
    """CIE Lab (D65) of sRGB levels 0 … 255, [..., 3]."""
    linear = rgb / 255.0
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    xyz = linear @ _TO_XYZ.T / _WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@cache
def _lab_of(colour: tuple[int, int, int]) -> Any:
    return lab(np.array(colour, dtype=np.float64))


def _ink_distance(rgb: Floats) -> Floats:
    return np.asarray(np.linalg.norm(lab(rgb) - _lab_of(INK), axis=-1))


def _grow(mask: Mask) -> Mask:
    """Grow by one pixel on every side."""
    padded = np.pad(mask, 1)
    out = mask.copy()
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            out |= padded[dy : dy + SIZE, dx : dx + SIZE]
    return out


def _new_ink(before: Floats, after: Floats) -> tuple[Mask, Mask]:
    """All ink, and the ink that is new, without specks."""
    ink = _ink_distance(after) < MAX_INK_DISTANCE
    new = ink & ~_grow(_ink_distance(before) < MAX_INK_DISTANCE)
    return ink, _joined(_blobs(new))


Blob = list[tuple[int, int]]  # (row, column) of its pixels


def _blobs(mask: Mask) -> list[Blob]:
    """The connected parts (8 neighbours) of at least `MIN_BLOB` pixels."""
    out: list[Blob] = []
    seen = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        if seen[y, x]:
            continue
        seen[y, x] = True
        blob = [(int(y), int(x))]
        for a, b in blob:  # grows during iteration
            for c in range(max(a - 1, 0), min(a + 2, SIZE)):
                for d in range(max(b - 1, 0), min(b + 2, SIZE)):
                    if mask[c, d] and not seen[c, d]:
                        seen[c, d] = True
                        blob.append((c, d))
        if len(blob) >= MIN_BLOB:
            out.append(blob)
    return out


def _joined(blobs: list[Blob]) -> Mask:
    out = np.zeros((SIZE, SIZE), dtype=np.bool_)
    for blob in blobs:
        rows, columns = zip(*blob, strict=True)
        out[list(rows), list(columns)] = True
    return out


def _without_crumbs(new: Mask) -> Mask:
    """New ink without parts that are small compared to the largest: a box or a mark is one thing."""
    blobs = _blobs(new)
    least = MIN_BLOB_SHARE * max(map(len, blobs))
    return _joined([blob for blob in blobs if len(blob) >= least])


def change_outside_ink(previous: Image.Image, drawn: Image.Image) -> float:
    """Mean change in grey levels away from ink (64x64 images): a mark should not change these pixels."""
    before, after = _array(previous), _array(drawn)
    change, rest = _change_of_rest(before, after, _new_ink(before, after)[0])
    return float(change.sum() / max(int(rest.sum()), 1))


def _change_of_rest(before: Floats, after: Floats, ink: Mask) -> tuple[Floats, Mask]:
    """The change of every pixel away from ink (0 elsewhere), and the mask of those pixels."""
    rest = ~_grow(_grow(ink))
    return np.abs(after - before).mean(axis=-1) * rest, rest


def _rest_is_kept(before: Floats, after: Floats, ink: Mask) -> bool:
    change, rest = _change_of_rest(before, after, ink)
    if change.sum() > MAX_REST_MEAN * max(int(rest.sum()), 1):
        return False
    patches = change.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    return int((patches > PATCH_CHANGED).sum()) <= MAX_CHANGED_PATCHES


def _extent(mask: Mask) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def _box_is_right(target: BoxTarget, ink: Mask, new: Mask) -> bool:
    left, top, right, bottom = _extent(new)
    a, b, c, d = target.box
    shared = max(0.0, min(right, c) - max(left, a)) * max(0.0, min(bottom, d) - max(top, b))
    union = (right - left) * (bottom - top) + (c - a) * (d - b) - shared
    if shared < MIN_BOX_IOU * union:
        return False
    if any(left < x < right and top < y < bottom for x, y in target.others):
        return False
    near = _grow(ink)
    xs, ys = np.arange(a + 1, c - 1).astype(int), np.arange(b + 1, d - 1).astype(int)
    sides = (near[int(b) + 1, xs], near[int(d) - 2, xs], near[ys, int(a) + 1], near[ys, int(c) - 2])
    if min(float(side.mean()) for side in sides) < MIN_BOX_OUTLINE - 0.25:
        return False
    if float(np.concatenate(sides).mean()) < MIN_BOX_OUTLINE:
        return False
    inner = new[int(b) + 5 : int(d) - 5, int(a) + 5 : int(c) - 5]
    return inner.size == 0 or float(inner.mean()) < 0.25


def _mark_is_right(target: MarkTarget, new: Mask) -> bool:
    left, top, right, bottom = _extent(new)
    smallest, largest = MARK_EXTENT
    if not (smallest <= right - left <= largest and smallest <= bottom - top <= largest):
        return False
    x, y = (left + right) / 2, (top + bottom) / 2
    return bool(np.hypot(x - target.point[0], y - target.point[1]) <= MAX_MARK_OFFSET)


def _line_is_right(target: LineTarget, ink: Mask, new: Mask) -> bool:
    start, end = np.array(target.start, dtype=np.float64), np.array(target.end, dtype=np.float64)
    length = float(np.linalg.norm(end - start))
    direction = (end - start) / length
    rim = length - target.end_radius
    ys, xs = np.nonzero(new)
    along, away = _project(xs, ys, start, direction)
    if np.median(away) > MAX_LINE_MEDIAN or np.quantile(away, 0.9) > 2 * MAX_LINE_MEDIAN:
        return False
    if along.min() < -MAX_END_OFFSET - 1 or along.max() > length + MAX_END_OFFSET + 1:
        return False
    all_ys, all_xs = np.nonzero(ink)
    all_along, all_away = _project(all_xs, all_ys, start, direction)
    on_line = all_along[all_away <= MAX_LINE_MEDIAN]
    if on_line.size == 0 or on_line.min() > MAX_END_OFFSET or on_line.max() < rim - MAX_END_OFFSET:
        return False
    bins = int(np.ceil(rim))
    covered = np.unique(np.clip(on_line, 0, rim - 1e-6).astype(int)).size
    fresh = np.unique(np.clip(along[away <= MAX_LINE_MEDIAN + 1], 0, rim - 1e-6).astype(int)).size
    return covered >= MIN_LINE_COVER * bins and fresh >= MIN_NEW_LINE * bins


def _project(xs: NDArray[Any], ys: NDArray[Any], start: Floats, direction: Floats) -> tuple[Floats, Floats]:
    """Distance along the line from its start, and from the line, of each pixel's centre."""
    dx, dy = xs + 0.5 - start[0] - 0.5, ys + 0.5 - start[1] - 0.5
    return dx * direction[0] + dy * direction[1], np.abs(dx * direction[1] - dy * direction[0])


def _zoom_is_right(target: ZoomTarget, previous: Image.Image, after: Floats) -> bool:
    crops = [_array(apply(zoom(*box), previous)) for box in target.candidates]
    decoys = [_array(previous), np.broadcast_to(_array(previous).max(axis=(0, 1)), after.shape)]
    distances = [float(np.abs(_small(crop) - _small(after)).mean()) for crop in (*crops, *decoys)]
    return int(np.argmin(distances)) == target.index and distances[target.index] <= MAX_CROP_MEAN


def _small(image: Floats) -> Floats:
    return np.asarray(image.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)))


_NAMES = (*STATE_COLOURS, "background", "ink")


@cache
def _palette() -> Any:
    return np.stack([*(_lab_of(colour) for colour in STATE_COLOURS.values()), _lab_of((250, 250, 250)), _lab_of(INK)])


def _state_is_right(target: StateTarget, after: Floats) -> bool:
    r = CELL_RADIUS
    means = np.stack(
        [after[int(y) - r : int(y) + r, int(x) - r : int(x) + r].mean(axis=(0, 1)) for x, y, _ in target.cells]
    )
    nearest = np.linalg.norm(lab(means)[:, None] - _palette()[None], axis=-1).argmin(axis=1)
    return all(_NAMES[i] == name for i, (_, _, name) in zip(nearest, target.cells, strict=True))
