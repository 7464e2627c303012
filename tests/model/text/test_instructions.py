"""Thoughts rephrased as instructions."""

from __future__ import annotations

import pytest

from model.text.instructions import as_instruction


@pytest.mark.parametrize(
    ("thought", "instruction"),
    [
        ("I draw a box around the red star.", "Draw a box around the red star."),
        ("First I draw a box around it.", "Draw a box around it."),
        ("Number two: I mark the next star.", "Number two: mark the next star."),
        ("I mark a circle: that is one.", "Mark a circle: that is one."),
        ("From its top I draw a line across.", "From its top draw a line across."),
        ("It is at 6. I draw a line to the axis.", "Draw a line to the axis."),
        ("Next state: everything slides right.", "Next state: everything slides right."),
        ("The walker moves up.", "The walker moves up."),
        ("", "."),
    ],
)
def test_thought_becomes_an_instruction(thought: str, instruction: str) -> None:
    assert as_instruction(thought) == instruction
