"""Twelve drawings from the app's sketch pad: stored complete and answered; correctness is only reported."""

from __future__ import annotations

import json
from collections.abc import Callable

from PIL import Image

from app.client import Client
from tests.e2e.sketches import FOLDER, LIST, SKETCHES, ask_all


def test_every_sketch_has_question_and_answer() -> None:
    rows = json.loads(LIST.read_text())
    assert [(r["file"], r["family"], r["question"], r["answer"]) for r in rows] == [
        (f"{s.name}.png", s.family, s.question, s.answer) for s in SKETCHES
    ]
    assert len(rows) == 12
    for row in rows:
        with Image.open(FOLDER / row["file"]) as picture:
            assert (picture.size, picture.mode) == ((512, 512), "RGB")
            assert picture.getpixel((0, 0)) == (255, 255, 255)
            colours = picture.resize((64, 64)).getcolors(64 * 64) or []
            assert sum(count for count, colour in colours if colour != (255, 255, 255)) > 200


def test_every_sketch_is_answered(client: Client, record_property: Callable[[str, object], None]) -> None:
    """`python -m tests.e2e.sketches` prints the answers."""
    rows = ask_all(client)
    assert [row["trace"]["status"] for row in rows] == ["completed"] * 12
    record_property("sketches_right", sum(row["right"] for row in rows))
