"""A number with the unit or thing it counts: "5 cm", "$3", "50 %", "12 apples", "5 ft 6 in". Parsing and comparing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from training.scoring.answers.numerals import Numeral, read_number, same_value
from training.scoring.answers.units import GENERIC, Unit, read_unit
from training.scoring.answers.words import words_of

MAX_CHARS = 1_200
_ORDINAL = "(ordinal)"  # the third is 3, but not three stars
_CURRENCY = re.compile(r"([+-]?)\s*(US\$|[$€£¥₹₩]|\b(?:USD|EUR|GBP|JPY|CHF|INR|CNY)\b)\s*(?=[-+\d.])")
_PI = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)?\s*(?:π|pi)(?:\s*/\s*([1-9]\d{0,5}))?(\s*rad(?:ians?)?)", re.IGNORECASE)
_PERCENT = re.compile(r"\s*(?:%|percent|per\s?cent|percentage\s+points?)(?:\s+of\s+the\s+[a-z]{1,20})?", re.IGNORECASE)
_PER_MILLE = re.compile(r"\s*(?:‰|per\s+mille)", re.IGNORECASE)
_AGAIN = re.compile(r"\s*\(([^()]{1,60})\)")
_TRAILING = re.compile(
    r"\s+(?:long|wide|tall|high|deep|thick|old|in\s+total|total|altogether|in\s+all|away|ago|each)$", re.I
)
_SHORT_SCALE = {"k": 10**3, "K": 10**3, "M": 10**6, "m": 10**6, "B": 10**9, "b": 10**9, "bn": 10**9, "mn": 10**6}
_NOUN = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+){0,4}")
_NO_NOUN = frozenset(
    [
        "or",
        "and",
        "to",
        "more",
        "less",
        "fewer",
        "greater",
        "than",
        "at",
        "not",
        "no",
        "non",
        "but",
        "of",
        "out",
        "per",
        "x",
        "plus",
        "minus",
        "times",
        "least",
        "most",
        "over",
        "under",
        "above",
        "below",
        "between",
        "before",
        "after",
        "by",
        "vs",
        "versus",
        "into",
        "nor",
        "neither",
        "with",
        "without",
        "if",
        "is",
        "are",
        "was",
        "squared",
        "cubed",
        "am",
        "pm",
        "from",
        "in",
        "on",
        "divided",
        "multiplied",
        "half",
        "quarter",
        "is",
        "degree",
    ]
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value; ``units`` are all readings of its unit, ``noun`` is the counted thing without a unit."""

    value: Fraction
    whole: bool
    percent: bool = False
    units: tuple[Unit, ...] = ()
    noun: str = ""

    @property
    def is_bare(self) -> bool:
        """Whether it is only a number."""
        return not (self.percent or self.units or self.noun)

    def describe(self) -> str:
        """The value in base units for people."""
        value = float(self.value) if abs(self.value) < 10**300 else self.value
        return f"{value:g}{'%' if self.percent else ''}" if isinstance(value, float) else "a huge number"


@lru_cache(maxsize=8_192)
def read_quantity(text: str) -> Quantity | None:
    """Parse a quantity; None if there is none, or more than one."""
    if len(text) > MAX_CHARS:
        return None
    text = text.strip()
    if len(text) > 2 and text[0] + text[-1] in ("()", "[]") and not set("()[],;").intersection(text[1:-1]):
        text = text[1:-1].strip()
    if match := _CURRENCY.match(text):
        return _money(match, text)
    number = read_number(text) or _multiple_of_pi(text)
    if number is None:
        return None
    rest = _TRAILING.sub("", number.rest)
    if not rest.strip():
        return Quantity(number.value, number.whole, noun=_ORDINAL if number.ordinal else "")
    if _PERCENT.fullmatch(rest):
        return Quantity(number.value, number.whole, percent=True)
    if _PER_MILLE.fullmatch(rest):
        return Quantity(number.value / 10, False, percent=True)
    if number.ordinal:
        return None
    if (again := _AGAIN.fullmatch(rest)) and (said := read_number(again[1])) and not said.rest:  # 12 (twelve)
        return Quantity(number.value, number.whole) if said.value == number.value else None
    if rest in ("k", "K"):
        return Quantity(number.value * 1000, number.whole)
    joined = rest.strip().removeprefix("-") if rest[:1] != " " else rest.strip()
    if units := read_unit(joined):
        return Quantity(number.value, number.whole, units=() if GENERIC in units else units)
    return _sum(text) or _counted(number.value, number.whole, rest)


def _multiple_of_pi(text: str) -> Numeral | None:
    """``3π/4 rad``; numbers without a unit are left to the formulas."""
    match = _PI.fullmatch(text)
    if match is None:
        return None
    value = Fraction(math.pi) * Fraction(match[1] or "1") / int(match[2] or 1)
    return Numeral(value, match[3], whole=False)


def _money(match: re.Match[str], text: str) -> Quantity | None:
    number = read_number(match[1] + text[match.end() :])
    if number is None:
        return None
    rest = number.rest.strip()
    if rest.startswith(("/", "per ")) and (rate := read_unit(f"{match[2]} {rest}")):
        return Quantity(number.value, number.whole, units=rate)
    scale = _SHORT_SCALE.get(rest, 0) or (1 if not rest or read_unit(rest) == read_unit(match[2]) else 0)
    return Quantity(number.value * scale, number.whole, units=read_unit(match[2])) if scale else None


def _counted(value: Fraction, whole: bool, rest: str) -> Quantity | None:
    """``12 apples``: a few plain nouns."""
    noun = rest.strip()
    if rest[:1] not in (" ", "-") and not (rest.isalpha() and len(rest) > 2):  # 2xy is a formula
        return None
    noun = noun.removeprefix("-")
    words = noun.lower().replace("-", " ").split()
    if not _NOUN.fullmatch(noun) or _NO_NOUN.intersection(words) or (len(noun) < 2):
        return None
    return Quantity(value, whole, noun=words_of(words[-1])[0])


def _sum(text: str) -> Quantity | None:
    """``5 ft 6 in``, ``1 h 30 min``: numbers of like units, the larger ones first."""
    total, parts, unit = Fraction(0), 0, None
    factor = None
    rest = text
    while rest and parts < 5:
        number = read_number(rest)
        if number is None:
            return None
        match = re.match(r"\s*-?\s*([^\W\d_]+|['\"])(?:\s*,?\s*(?:and\s+)?(?=\d)|\s*$)", number.rest)
        found = read_unit(match[1]) if match else ()
        if match is None or not found or found[0].offset:
            return None
        if unit is not None and (found[0].dimensions != unit.dimensions or factor is None or found[0].factor >= factor):
            return None
        unit, factor = Unit(found[0].dimensions, Fraction(1)), found[0].factor
        total, parts, rest = total + number.value * found[0].factor, parts + 1, number.rest[match.end() :]
    return Quantity(total, False, units=(unit,)) if unit is not None and parts > 1 and not rest else None


def same_quantity(answer: Quantity, reference: Quantity) -> tuple[bool, Literal["number", "unit"]]:
    """Whether an answer's quantity equals the reference's, and whether a unit was compared.

    A unit that only one side has is not required. A percentage against a bare number counts by its value (50 % = 0.5);
    a bare answer to a percentage counts by its number, too (50 = 50 %).
    """
    whole = answer.whole and reference.whole
    if answer.percent or reference.percent:
        return _same_percentage(answer, reference, whole=whole), "number"
    if answer.units and reference.units:
        return _same_measure(answer, reference), "unit"
    if (answer.units and reference.noun) or (answer.noun and reference.units):
        return False, "unit"
    if answer.noun and reference.noun and answer.noun != reference.noun:
        return False, "unit"
    with_unit = bool(answer.units or reference.units)
    return same_value(answer.value, reference.value, whole=whole), "unit" if with_unit else "number"


def _same_percentage(answer: Quantity, reference: Quantity, *, whole: bool) -> bool:
    if answer.percent and reference.percent:
        return same_value(answer.value, reference.value, whole=whole)
    if not (answer.is_bare or reference.is_bare):
        return False
    if reference.percent and same_value(answer.value, reference.value, whole=whole):
        return True
    share = [q.value / 100 if q.percent else q.value for q in (answer, reference)]
    return same_value(share[0], share[1])


def _same_measure(answer: Quantity, reference: Quantity) -> bool:
    for one in answer.units:
        for other in reference.units:
            same_unit = (one.factor, one.offset) == (other.factor, other.offset)
            whole = same_unit and answer.whole and reference.whole
            if one.dimensions == other.dimensions and same_value(
                one.base(answer.value), other.base(reference.value), whole=whole
            ):
                return True
    return False
