"""When an answer is right."""

from __future__ import annotations

import pytest

from training.grading import is_right


@pytest.mark.parametrize("answer", ["red", "Red", "RED.", " red ", "red ."])
def test_case_blanks_and_a_final_stop_do_not_matter(answer: str) -> None:
    assert is_right(answer, "red")


@pytest.mark.parametrize("answer", [None, "", "the red one", "blue", "re", "red.."])
def test_anything_else_is_wrong(answer: str | None) -> None:
    assert not is_right(answer, "red")


def test_digits_are_compared_as_written() -> None:
    assert is_right("3.", "3")
    assert not is_right("13", "3")
