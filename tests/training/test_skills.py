"""The atomic actions: strings, images, words."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from training.skills import INK, Action, ActionError, apply, skill_of_text
from training.world.world import FAMILIES, make_task


def _white(size: int = 64) -> Image.Image:
    return Image.new("RGB", (size, size), (255, 255, 255))


def _inked(image: Image.Image) -> np.ndarray:
    return (np.asarray(image) == INK).all(axis=-1)


@pytest.mark.parametrize(
    "text", ["BBOX(0.25,0.5,0.2,0.2)", "ZOOM(0,0,0.5,0.5)", "LINE(0,0,1,1)", "MARK(0.5,0.25,3)", "PRED(tilt left)"]
)
def test_action_round_trip(text: str) -> None:
    assert Action.parse(str(Action.parse(text))) == Action.parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "BBOX(1,2,3)", "BOX(0,0,1,1)", "LINE(0,0,1,2)", "MARK(a,b)", "PRED()", "MARK(0.5,0.5,x)", "ZOOM(nan,0,1,1)"],
)
def test_invalid_actions_are_rejected(text: str) -> None:
    with pytest.raises(ActionError):
        Action.parse(text)


def test_box_is_an_outline_inside_its_bounds() -> None:
    # 0.25, 0.5 and a quarter wide: pixels 16 … 31 across, 32 … 47 down.
    ink = _inked(apply(Action.parse("BBOX(0.25,0.5,0.25,0.25)"), _white()))
    assert ink[32:48, 16:32].sum() == ink.sum() == 16 * 16 - 10 * 10


def test_level_line_is_three_pixels_wide() -> None:
    ink = _inked(apply(Action.parse("LINE(0.25,0.5,0.75,0.5)"), _white()))
    assert ink[31:34, 16:48].all()
    assert ink.sum() == 3 * 32


def test_slanted_line_keeps_width_and_ends() -> None:
    ink = np.asarray(apply(Action.parse("LINE(0.25,0.25,0.75,0.75)"), _white()))[..., 1] < 128
    ys, xs = np.nonzero(ink)
    assert abs(ys - xs).max() <= 2
    assert ys.min() >= 14
    assert ys.max() <= 49


def test_mark_is_a_disc_around_its_point() -> None:
    ys, xs = np.nonzero(_inked(apply(Action.parse("MARK(0.5,0.25)"), _white())))
    assert (xs.mean() + 0.5, ys.mean() + 0.5) == (32, 16)


def test_numbered_mark_is_wider_around_same_point() -> None:
    plain, numbered = (_inked(apply(Action.parse(text), _white())) for text in ("MARK(0.5,0.25)", "MARK(0.5,0.25,3)"))
    ys, xs = np.nonzero(numbered)
    assert (xs.mean() + 0.5, ys.mean() + 0.5) == (32, 16)
    assert numbered.sum() > 2 * plain.sum()
    large = apply(Action.parse("MARK(0.5,0.5,3)"), _white().resize((256, 256)))
    assert large.getpixel((128, 108)) == INK  # the disc reaches beyond its number
    assert set(large.crop((122, 122, 134, 134)).get_flattened_data()) != {INK}


def test_zoom_fills_the_image_with_the_crop() -> None:
    image = _white()
    image.paste((225, 30, 30), (32, 0, 48, 16))
    zoomed = apply(Action.parse("ZOOM(0.5,0,0.25,0.25)"), image)
    assert zoomed.size == (64, 64)
    assert set(zoomed.get_flattened_data()) == {(225, 30, 30)}


def test_apply_leaves_its_input_unchanged() -> None:
    image = _white()
    apply(Action.parse("BBOX(0,0,1,1)"), image)
    assert not _inked(image).any()


def test_ink_scales_with_the_image() -> None:
    assert _inked(apply(Action.parse("LINE(0,0.5,1,0.5)"), _white(512)))[:, 100].sum() == 24


def test_next_state_needs_the_worlds_rule() -> None:
    with pytest.raises(ActionError):
        apply(Action.parse("PRED(up)"), _white())
    requested: list[str] = []

    def rule(change: str, image: Image.Image) -> Image.Image:
        requested.append(change)
        return image

    apply(Action.parse("PRED(up)"), _white(), predict=rule)
    assert requested == ["up"]


@pytest.mark.parametrize(("slice_", "family"), [(s, f) for s, families in FAMILIES.items() for f in families])
def test_every_step_text_names_its_skill(slice_: str, family: str) -> None:
    for seed in range(60):
        for step in make_task(slice_, seed, family=family).steps:
            assert skill_of_text(step.text) == step.skill, step.text


def test_text_without_skill_names_none() -> None:
    assert skill_of_text("The sky is blue today.") is None
