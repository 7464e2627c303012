"""The last drills: drawings in many wordings, single or in unrelated sequences."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from model.checkpoint.checkpoint import load_checkpoint
from training.data.drills import drill_images, last_mix, render_drill
from training.skills import Action, apply
from training.world.asking import MAKERS, drawing, random_view, worded
from training.world.canvas import COLOURS
from training.world.drills import AIMING, DRAWING, FINISHING, FOLLOWING, LOCATING, VERIFYING, make_drill
from training.world.lines import axes, rays, walls

INK = ("in there", "from there", "to its", "below it.", "above it.", "next ")  # references to earlier drawings


def pixels(action: Action) -> list[tuple[int, int]]:
    numbers = [round(float(number) * 64) for number in action.args]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_order_varies_its_distance_from_the_image() -> None:
    lengths = {len(make_drill(seed, kind="draw").prompt_text) for seed in range(300)}
    assert len(lengths) > 60
    assert min(lengths) < 25
    assert max(lengths) > 120


def test_order_is_worded_as_order_or_thought() -> None:
    view = random_view(Random(0))
    wordings = {worded(Random(seed), "Mark the red star.", view) for seed in range(400)}
    assert "Mark the red star." in wordings
    assert any("ow mark the red star" in text for text in wordings)
    assert any("I mark the red star" in text for text in wordings)
    assert all("ark the red star" in text for text in wordings)


def test_every_view_can_be_drawn_on() -> None:
    for name, (maker, _) in MAKERS.items():
        for seed in range(20):
            view = maker(Random(f"{name}/{seed}"))
            given = drawing(Random(seed), view)
            if given is None:
                assert view.moves, name
                continue
            before = view.image
            for action in given.before or ():
                before = apply(action, before)
            assert apply(given.action, before).tobytes() != before.tobytes(), (name, seed, given.text)
            if any(word in given.text for word in ("next", "on the box", "there", "to its", "below it", "above it")):
                assert given.before, given.text


def test_consecutive_orders_are_unrelated() -> None:
    rows = [drill for seed in range(200) if (drill := make_drill(seed, kind="draw")).more]
    assert {len(drill.more) for drill in rows} == {1, 2, 3}
    for drill in rows:
        newest = drill.response[0]
        for order, image in drill.more:
            assert isinstance(newest, Image.Image)
            assert image.tobytes() != newest.tobytes(), order
            if not image_is_a_crop(order):
                assert changed(newest, image) < 0.35, order
            words = order.rpartition("\n")[2]
            assert not any(word in words for word in INK), order
            newest = image


def image_is_a_crop(order: str) -> bool:
    return "oom" in order


def changed(one: Image.Image, other: Image.Image) -> float:
    different = np.any(np.asarray(one) != np.asarray(other), axis=-1)
    return float(different.mean())


def test_previous_image_may_be_shown() -> None:
    drills = [make_drill(seed, kind="draw") for seed in range(100)]
    shown = [drill for drill in drills if drill.earlier is not None]
    assert 10 < len(shown) < 60
    for drill in shown:
        assert drill.image is not None
        assert drill.earlier is not None
        assert 0 < changed(drill.earlier, drill.image) < 0.35


def test_only_drawings_carry_loss_in_sequences(tiny_checkpoint: Path) -> None:
    template = load_checkpoint(tiny_checkpoint).template
    drill = next(d for seed in range(100) if len((d := make_drill(seed, kind="draw")).more) == 2)
    images = drill_images(drill)
    n = template.vocab.codes_per_image
    rendered = render_drill(drill, [(number,) * n for number in range(len(images))], template)
    learnt = [token for token, mask in zip(rendered.ids, rendered.loss_mask, strict=True) if mask]
    drawn = [template.vocab.image_ids((number,) * n) for number in range(len(images) - 3, len(images))]
    assert learnt == [*(token for ids in drawn for token in ids), template.vocab.eos_id]


def test_plain_order_has_no_additions() -> None:
    drills = [make_drill(seed, kind="order") for seed in range(200)]
    words = [text for drill in drills for text in (drill.prompt_text, *(order for order, _ in drill.more))]
    assert not any("?" in text or "\n" in text for text in words)
    assert max(len(text) for text in words) < 75
    assert {"I mark", "Mark "} <= {text[:6].rstrip("a") if text.startswith("I m") else text[:5] for text in words}


def test_aiming_drills_are_orders_on_views_that_are_hard_to_place_in() -> None:
    drills = [make_drill(seed, kind="aim") for seed in range(200)]
    assert {drill.kind for drill in drills} == {"aim"}
    words = " ".join(drill.prompt_text for drill in drills)
    assert "black line" in words
    assert "ray" in words
    assert "column" in words
    assert not any(word in words for word in ("axis", "bar ", "Tilt"))


def test_following_drills_name_neighbours_and_refer_to_the_ray_before() -> None:
    drills = [make_drill(seed, kind="follow") for seed in range(300)]
    assert {drill.kind for drill in drills} == {"follow"}
    words = [drill.prompt_text for drill in drills]
    for part in ("above it", "to its left", "as steep as before", "column", "axis", "black line"):
        assert any(part in text for text in words), part
    assert not any("Tilt" in text for text in words)


def test_step_drills_are_moves_in_plain_words() -> None:
    drills = [make_drill(seed, kind="step") for seed in range(100)]
    assert {drill.kind for drill in drills} == {"step"}
    assert all(drill.image is not None and not drill.more for drill in drills)
    assert any("Tilt" in drill.prompt_text for drill in drills)
    assert max(len(drill.prompt_text) for drill in drills) < 75


def test_finishing_drills_look_closer_at_what_is_marked() -> None:
    drills = [make_drill(seed, kind="finish") for seed in range(300)]
    assert {drill.kind for drill in drills} == {"finish"}
    words = [drill.prompt_text for drill in drills]
    for part in ("oom in", "above it", "as steep as before", "black line", "behind", "bar"):
        assert any(part in text for text in words), part
    closer = [drill for drill in drills if "oom in there" in drill.prompt_text]
    assert {len(drill_images(drill)) for drill in closer} == {2, 3}, "with and without the image before the mark"


def test_next_drills_move_on_from_a_state_that_a_move_has_led_to() -> None:
    drills = [make_drill(seed, kind="next") for seed in range(300)]
    assert {drill.kind for drill in drills} == {"next"}
    words = [drill.prompt_text.lower() for drill in drills]
    for part in ("slide", "tray", "walker", "tile", "flip"):
        assert any(part in text for text in words), part
    for drill in drills:
        assert drill.earlier is not None
        assert drill.image is not None
        images = [image.tobytes() for image in drill_images(drill)]
        assert len(images) == 3
        assert images[0] != images[1] != images[2], "each move changes something"
        if "walker" in drill.prompt_text:
            changed = ImageChops.difference(drill.earlier, drill.image).getbbox()
            assert changed is not None
            wide, high = changed[2] - changed[0], changed[3] - changed[1]
            assert min(wide, high) <= 16 < max(wide, high) <= 32, "from one tile to the next"


def test_inverse_drill_names_the_order_between_two_images() -> None:
    drills = [make_drill(seed, kind="between") for seed in range(300)]
    orders = [drill.response[0] for drill in drills]
    for drill, order in zip(drills, orders, strict=True):
        assert isinstance(order, str)
        assert order == drill.order
        assert drill.earlier is not None
        assert drill.image is not None
        assert len(drill_images(drill)) == 2
    same = [drill.earlier.tobytes() == drill.image.tobytes() for drill in drills if drill.earlier and drill.image]
    assert sum(same) < 0.05 * len(drills), "only moves that move nothing"
    assert len(set(orders)) > 100
    assert {"Draw", "Mark", "Zoom", "Tilt"} <= {str(order).split()[0] for order in orders}
    assert not any(str(order).startswith(("I ", "Now", "First", "Then")) for order in orders), "as an instruction"


def test_shares_weight_the_kinds_of_drills() -> None:
    assert {make_drill(seed, shares={"move": 1.0}).kind for seed in range(20)} == {"move"}
    for shares in (DRAWING, LOCATING, VERIFYING, AIMING, FOLLOWING, FINISHING):
        assert sum(shares.values()) == pytest.approx(1.0)
    drawn = [make_drill(seed, shares=DRAWING).kind for seed in range(300)]
    assert 0.7 < sum(kind in ("draw", "move") for kind in drawn) / 300 < 0.92


@pytest.mark.parametrize(
    "lineage",
    [
        {},
        {"drills": 3},
        {"before": 3},
        *({"drills": {"shares": shares}} for shares in ({}, {"new": 1}, {"draw": 0}, {"draw": "x"}, {"draw": -1})),
    ],
)
def test_rehearsal_without_a_known_mix_takes_the_usual_one(lineage: dict[str, Any]) -> None:
    assert last_mix(lineage) == VERIFYING


def test_rehearsal_repeats_the_bases_last_mix() -> None:
    assert last_mix({"stage": "base", "drills": {"count": 8, "shares": AIMING}}) == AIMING
    assert (
        last_mix({"stage": "pesft", "before": [{"drills": {"shares": AIMING}}, {"drills": {"shares": DRAWING}}]})
        == AIMING
    )


def _colour(image: Image.Image, at: tuple[int, int]) -> str | None:
    shown = image.getpixel(at)
    return next((name for name, rgb in COLOURS.items() if rgb == shown), None)


@pytest.mark.parametrize("maker", [rays, walls, axes])
def test_line_ends_as_worded(maker: object) -> None:
    for seed in range(40):
        view = maker(Random(seed))  # type: ignore[operator]
        for extra in view.extras:
            ends = pixels(extra.action)
            if maker is rays or "angle" in extra.text or "steep" in extra.text:
                assert _colour(view.image, ends[-1]), extra.text  # on a dot
            if "angle" in extra.text:
                assert extra.before is not None
                (x0, y0), (x1, y1) = pixels(extra.before[0])
                (x2, y2), (x3, y3) = ends
                assert (x1, y1) == (x2, y2)
                towards, back = (x1 - x0, y1 - y0), (x3 - x2, y3 - y2)
                # The way back is as steep: |dy/dx| is equal up to whole pixels.
                assert abs(abs(towards[1] * back[0]) - abs(towards[0] * back[1])) <= 2.5 * max(map(abs, towards + back))
            if extra.text.startswith("Mark the place"):
                assert extra.before is not None
                dot, foot = pixels(extra.before[0])
                assert [2 * f - d for d, f in zip(dot, foot, strict=True)] == list(ends[0])
