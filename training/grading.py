"""Is an answer right? Knows nothing of tasks or pictures.

:func:`is_right` is the world's strict verdict. :func:`grade` is the accuracy reward R_Acc in [0, 1] (docs/method): the
final answer is taken out of what was written, then the first check that applies decides:

1. *numeric*, where both are numbers: currency signs, thousands, percent and fractions are read; right within 1e-9;
2. *symbolic*, where both are formulas: equal by ``math-verify``; right or wrong, nothing between;
3. *choice*, where the question has options: a label (A-J, 1-10, roman) is worth its option's text;
4. *text*: the same words with other numbers, or with a "not" more, are wrong; otherwise the similarity, kept above .77.

    grade("The answer is 50%.", "1/2").score  # 1.0
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, Literal

Check = Literal["none", "numeric", "symbolic", "choice", "text"]

MIN_SIMILARITY = 0.77
TOLERANCE = Fraction(1, 10**9)
MAX_FORMULA_LEN = 80
FORMULA_SECONDS = 10  # a formula that takes longer is not equal

_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
_LETTERS = "abcdefghij"
_MARKERS = re.compile(
    r"(?:final answer|the answer|answer)\s*(?:is\s*:?|:|=)\s*|<answer>\s*", re.IGNORECASE
)  # the last one counts
_PLAIN = r"\d{1,40}(?:\.\d{0,40})?|\.\d{1,40}"
_THOUSANDS = r"\d{1,3}(?:,\d{3}){1,12}(?:\.\d{1,40})?"
_NUMBER = re.compile(rf"([+-]?)\s*({_THOUSANDS}|{_PLAIN})(?:e([+-]?\d{{1,3}}))?", re.IGNORECASE)
_FRACTION = re.compile(r"([+-]?)\s*(?:(\d{1,12})\s+)?(\d{1,12})\s*/\s*(\d{1,12})")
_LATEX_FRACTION = re.compile(r"([+-]?)\s*\\[dt]?frac\s*\{\s*(\d{1,12})\s*\}\s*\{\s*(\d{1,12})\s*\}")
_DIGITS = re.compile(r"\d+(?:[.,]\d+)*")
_NEGATION = re.compile(r"\b(?:not?|never|none|neither|nor|without|cannot)\b|n't\b")
_LABEL = re.compile(r"(?:option|choice)?\s*[(\[]?\s*([a-z]+|\d{1,2})\s*[)\].:]?", re.IGNORECASE)
_LABEL_AND_TEXT = re.compile(r"\(?([a-z]|\d{1,2}|[ivx]{1,4})\s*[).:]\s+(\S.*)", re.IGNORECASE | re.DOTALL)
_FORMULA_CHARS = re.compile(r"[0-9a-zA-Z\s+\-*/^=().,{}\\_<>|!°π√∞\[\]$]+")
_FORMULA_WORDS = re.compile(r"\\[a-zA-Z]+|sqrt|sin|cos|tan|log|ln|exp|pi")
_HUGE_POWER = re.compile(r"\^\s*\{?\s*-?\d{4,}|\*\*\s*\d{4,}|!|\^[^^]*\^[^^]*\^")


@dataclass(frozen=True, slots=True)
class Grade:
    """R_Acc and the check that decided it."""

    score: float
    check: Check


def normalise(answer: str) -> str:
    """Lower case, without outer blanks and a final full stop."""
    text = " ".join(answer.lower().split())
    return text[:-1].rstrip() if text.endswith(".") else text


def is_right(answer: str | None, reference: str) -> bool:
    """Whether `answer` equals `reference` but for case, blanks and a final full stop; None (no answer) never does."""
    return answer is not None and normalise(answer) == normalise(reference)


def grade(answer: str | None, reference: str, choices: Sequence[str] = ()) -> Grade:
    """The accuracy reward of an answer.

    Args:
        answer: what the model wrote as its answer; None where it wrote none.
        reference: the right answer; with `choices` it may be an option's label or its text.
        choices: the question's labelled options, in order, if it has any.
    """
    if answer is None or not answer.strip():
        return Grade(0.0, "none")
    given, wanted = _bare(extract_answer(answer)), _bare(reference)
    if choices and (decided := _choice(given, wanted, [_bare(choice) for choice in choices])) is not None:
        return Grade(float(decided), "choice")
    numbers = _numbers(given), _numbers(wanted)
    if numbers[0] and numbers[1]:
        return Grade(float(_same_number(given, wanted)), "numeric")
    if normalise(given) == normalise(wanted):
        return Grade(1.0, "text")
    if _is_formula(given) and _is_formula(wanted):
        return Grade(float(_same_formula(given, wanted)), "symbolic")
    return Grade(_similarity(normalise(given), normalise(wanted)), "text")


def extract_answer(text: str) -> str:
    """The final answer in a free text: the last ``\\boxed{}``, else what follows the last answer mark, else all."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth = 0
        for end in range(start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : end].strip()
    marks = list(_MARKERS.finditer(text))
    if marks and (rest := text[marks[-1].end() :].strip()):
        text = rest.split("\n", 1)[0]
    return re.sub(r"</?answer>", "", text).strip()


def _bare(text: str) -> str:
    """Without what only dresses an answer: mathematics' dollars, bold marks, quotes, a final full stop."""
    text = " ".join(text.split())
    while True:
        before = text
        for left, right in (("**", "**"), ('"', '"'), ("'", "'"), ("`", "`"), ("\\(", "\\)"), ("$$", "$$"), ("$", "$")):
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
                inner = text[len(left) : -len(right)].strip()
                if left not in inner:
                    text = inner
        if match := re.fullmatch(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", text):
            text = match[1].strip()
        if text.endswith(".") and not text.endswith("..."):
            text = text[:-1].rstrip()
        if text == before:
            return text


@lru_cache(maxsize=4_096)
def _numbers(text: str) -> tuple[Fraction, bool] | None:
    """The number that a text is, and whether it is a percentage; None for anything else."""
    text = re.sub(
        r"^([+-]?)\s*(?:\\?\$|[€£¥])\s*|\s*(?:[€£¥]|\b(?:dollars|euros|usd|eur)\b)$", r"\1", text.strip().lower()
    )
    bare = re.sub(r"\s*(?:\\?%|percent|per cent)$", "", text)
    percent = bare != text
    value: Fraction
    if match := _NUMBER.fullmatch(bare):
        value = Fraction(match[2].replace(",", "").rstrip(".")) * Fraction(10) ** int(match[3] or 0)
    elif match := _FRACTION.fullmatch(bare):
        if int(match[4]) == 0:
            return None
        value = int(match[2] or 0) + Fraction(int(match[3]), int(match[4]))
    elif match := _LATEX_FRACTION.fullmatch(bare):
        if int(match[3]) == 0:
            return None
        value = Fraction(int(match[2]), int(match[3]))
    else:
        return None
    return (-value if match[1] == "-" else value), percent


def _same_number(given: str, wanted: str) -> bool:
    one, other = _numbers(given), _numbers(wanted)
    assert one is not None
    assert other is not None
    (a, a_percent), (b, b_percent) = one, other
    pairs = [(a, b)]
    if a_percent and not b_percent:
        pairs.append((a / 100, b))
    elif b_percent and not a_percent:
        pairs.append((a, b / 100))
    return any(abs(x - y) <= TOLERANCE * max(Fraction(1), abs(x), abs(y)) for x, y in pairs)


def _choice(given: str, wanted: str, choices: list[str]) -> bool | None:
    """Whether two answers mean the same option; None where one of them names none."""
    right, asked = _option(wanted, choices), _option(given, choices)
    return None if right is None or asked is None else right == asked


def _option(text: str, choices: list[str]) -> int | None:
    """Which option a text names: by its text first (an option may read "2"), then by its label, or by both."""
    plain = [normalise(choice) for choice in choices]
    if normalise(text) in plain:
        return plain.index(normalise(text))
    if match := _LABEL.fullmatch(text.strip()):
        return _label(match[1], len(choices))
    if match := _LABEL_AND_TEXT.fullmatch(text.strip()):
        index = _label(match[1], len(choices))
        if index is not None and normalise(match[2]) == plain[index]:
            return index
    return None


def _label(label: str, count: int) -> int | None:
    label = label.lower()
    index = -1
    if label.isdigit():
        index = int(label) - 1
    elif len(label) == 1 and label in _LETTERS and not (label == "i" and count < 9):
        index = _LETTERS.index(label)
    elif label in _ROMAN:
        index = _ROMAN.index(label)
    return index if 0 <= index < min(count, 10) else None


def _similarity(given: str, wanted: str) -> float:
    """Similarity of two normalised texts, 0 up to `MIN_SIMILARITY`."""
    if _DIGITS.findall(given) != _DIGITS.findall(wanted) or _negations(given) != _negations(wanted):
        return 0.0
    ratio = SequenceMatcher(None, given, wanted, autojunk=False).ratio()
    return ratio if ratio > MIN_SIMILARITY else 0.0


def _negations(text: str) -> int:
    return len(_NEGATION.findall(text))


def _is_formula(text: str) -> bool:
    """Whether a text is mathematics: its signs only, no word but a function's, and something to calculate."""
    if len(text) > MAX_FORMULA_LEN or not _FORMULA_CHARS.fullmatch(text) or _HUGE_POWER.search(text):
        return False
    rest = _FORMULA_WORDS.sub(" ", text)
    return re.search(r"[a-zA-Z]{2}", rest) is None and re.search(r"[0-9^=+*/\\]", text) is not None


@lru_cache(maxsize=1_024)
def _same_formula(given: str, wanted: str) -> bool:
    """Whether two formulas are equal for ``math-verify``. Only its LaTeX grammar reads them: nothing is evaluated as
    Python. Its clock is a signal, so there is none outside the main thread."""
    parse, verify, config = _math_verify()
    seconds = FORMULA_SECONDS if threading.current_thread() is threading.main_thread() else None
    one, other = (
        parse(f"${text}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=seconds)
        for text in (wanted, given)
    )
    return bool(one and other and verify(one, other, timeout_seconds=seconds))


@cache
def _math_verify() -> tuple[Any, Any, list[Any]]:
    """Imported when the first pair of formulas comes: sympy takes a second, and the grammar's tables another."""
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # says at every call that there is no clock
    config = [LatexExtractionConfig()]
    verify(*(parse(f, extraction_config=config, parsing_timeout=None) for f in ("$x^2-1$", "$(x-1)(x+1)$")),
           timeout_seconds=None)  # fmt: skip
    return parse, verify, config
