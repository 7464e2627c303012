"""When an answer is right, and how much of the accuracy reward it earns."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from training.grading import extract_answer, grade, is_right


@pytest.mark.parametrize("answer", ["red", "Red", "RED.", " red ", "red ."])
def test_case_blanks_and_a_final_stop_do_not_matter(answer: str) -> None:
    assert is_right(answer, "red")


@pytest.mark.parametrize("answer", [None, "", "the red one", "blue", "re", "red.."])
def test_anything_else_is_wrong(answer: str | None) -> None:
    assert not is_right(answer, "red")


def test_digits_are_compared_as_written() -> None:
    assert is_right("3.", "3")
    assert not is_right("13", "3")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("3", "3.0"),
        ("$1,250.50", "1250.5"),
        ("1,000", "1000"),
        ("50%", "0.5"),
        ("50 %", "1/2"),
        ("50%", "50"),
        ("1/2", "0.5"),
        ("-3/4", "-.75"),
        ("1 1/2", "1.5"),
        ("\\frac{3}{4}", "75%"),
        ("2e-3", "0.002"),
        ("€5", "5 €"),
        ("0.3333333333", "1/3"),  # 3.3e-11 off
        ("The answer is 42.", "42"),
        ("\\boxed{7}", "7"),
    ],
)
def test_equal_numbers_are_right_however_they_are_written(answer: str, reference: str) -> None:
    result = grade(answer, reference)
    assert (result.score, result.check) == (1.0, "numeric")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("3", "4"), ("0.333333", "1/3"), ("50%", "0.5%"), ("10", "1,0"), ("1,00", "100"), ("-3", "3"), ("1/0", "0")],
)
def test_other_numbers_are_wrong_and_earn_nothing(answer: str, reference: str) -> None:
    assert grade(answer, reference).score == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("$\\sqrt{8}$", "sqrt(8)", True),
        ("2x+1", "1+2x", True),
        ("(x-1)(x+1)", "x^2-1", True),
        ("x^2+1", "x^2-1", False),
        ("3\\pi", "\\pi", False),
    ],
)
def test_formulas_are_right_where_they_are_equal(answer: str, reference: str, right: bool) -> None:
    result = grade(answer, reference)
    assert (result.score, result.check) == (float(right), "symbolic")


def test_formulas_can_be_compared_outside_the_main_thread() -> None:
    seen: list[float] = []
    thread = threading.Thread(target=lambda: seen.append(grade("2y+2", "2(y+1)").score))
    thread.start()
    thread.join()
    assert seen == [1.0]


def test_a_formula_that_would_take_for_ever_is_not_calculated() -> None:
    assert grade("9^9^9^9", "9^9^9^8").check == "text"
    assert grade("2^{99999999}", "2^{99999998}").score == 0.0


@pytest.mark.parametrize(
    "answer", ["B", "b", "(B)", "B.", "2", "ii", "option B", "a red star", "B) a red star", "(b) A red star."]
)
@pytest.mark.parametrize("reference", ["B", "a red star"])
def test_a_label_is_worth_its_option(answer: str, reference: str) -> None:
    result = grade(answer, reference, ["a blue moon", "a red star", "nothing"])
    assert (result.score, result.check) == (1.0, "choice")


@pytest.mark.parametrize("answer", ["A", "1", "iii", "nothing", "B) nothing", "D", "K"])
def test_another_label_is_wrong(answer: str) -> None:
    assert grade(answer, "B", ["a blue moon", "a red star", "nothing"]).score == 0.0


def test_an_option_that_reads_like_a_label_is_taken_by_its_text() -> None:
    assert grade("2", "C", ["4", "3", "2"]).score == 1.0  # the third option, not the second
    assert grade("2", "B", ["4", "3", "2"]).score == 0.0


def test_text_that_is_nearly_the_same_keeps_its_similarity() -> None:
    # 2 * 15 equal characters of 15 + 16
    result = grade("the bank of Rome", "the bank of Rom")
    assert result.score == pytest.approx(30 / 31)
    assert result.check == "text"
    assert grade("the bank of Rome", "a river").score == 0.0


def test_the_same_words_with_other_numbers_are_wrong() -> None:
    assert grade("row 2, column 3", "row 2, column 4").score == 0.0
    assert grade("row 2, column 3", "row 3, column 2").score == 0.0
    assert grade("Row 2, column 3.", "row 2, column 3").score == 1.0


def test_a_not_turns_an_answer_around() -> None:
    assert grade("it does not fit into the box", "it does fit into the box").score == 0.0


@pytest.mark.parametrize("answer", [None, "", "  \n"])
def test_no_answer_earns_nothing(answer: str | None) -> None:
    result = grade(answer, "red")
    assert (result.score, result.check) == (0.0, "none")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I look at it. Final Answer: red", "red"),
        ("The answer is: blue.\nOr so I think.\nFinal Answer: red\nDone", "red"),
        ("so \\boxed{\\frac{1}{2}} holds", "\\frac{1}{2}"),
        ("<answer>4</answer>", "4"),
        ("green", "green"),
    ],
)
def test_the_final_answer_is_found_in_what_was_written(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


def test_the_worlds_verdict_does_not_load_a_mathematics_library() -> None:
    code = (
        "import sys; from training.grading import grade, is_right; grade('red', 'blue'); grade('3', '4');"
        "assert not {'sympy', 'torch', 'math_verify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
