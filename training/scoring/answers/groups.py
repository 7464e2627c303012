"""Several values in one answer: tuples, sets, intervals, inequalities, unions, lists joined by commas or words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from training.scoring.answers.formulas import relation_parts

MAX_ITEMS = 24
MAX_CHARS = 600

Kind = Literal["tuple", "set", "list", "either", "union"]
_BRACKETS = {"(": ")", "[": "]", "{": "}", "⟨": "⟩"}
_CLOSING = frozenset(_BRACKETS.values())
_MEMBER = re.compile(r"^[a-zA-Z]\s*∈\s*")
_AND = re.compile(r",\s*(?:and|&)\s+|,\s+|;\s*|,|\s+(?:and|&)\s+", re.IGNORECASE)
_OR = re.compile(r",?\s+or\s+|,\s+", re.IGNORECASE)
_UNION = re.compile(r"\s*∪\s*|(?<=[)\]])\s*U\s*(?=[(\[])")
_COMMAS = re.compile(r"\s*[,;]\s*")
_NOT_A_LIST = re.compile(r"\b(?:because|since|which|that|than|then|if|when|while|but|from|between)\b", re.IGNORECASE)
_TWO_NUMBERS = re.compile(r"-?\d{1,2}(?:,-?\d{1,2})+")


@dataclass(frozen=True)
class Group:
    """Items and their grouping.

    ``tuple``: ordered, in the brackets ``marks``; ``set``: in braces; ``list``: no brackets, any order; ``either``:
    joined by "or"; ``union``: of intervals. ``name`` is the variable of an inequality that was read as an interval.
    """

    kind: Kind
    items: tuple[str, ...]
    marks: str = ""
    name: str = ""


@lru_cache(maxsize=4_096)
def read_group(text: str) -> Group | None:
    """Parse a group; None for a single value."""
    if not 2 <= len(text) <= MAX_CHARS:
        return None
    text = _MEMBER.sub("", text.strip())
    if (union := _split_top(text, _UNION)) and len(union) > 1:
        return Group("union", tuple(union))
    if text.count("±") == 1:
        return Group("list", (text.replace("±", "+"), text.replace("±", "-")))
    if (interval := _inequality(text)) is not None:
        return interval
    if (bracketed := _bracketed(text)) is not None:
        return bracketed
    return _bare(text)


def is_packed(text: str) -> bool:
    """Whether a text is small numbers with commas and no blanks, ``1,2``: a list, or a decimal comma."""
    return _TWO_NUMBERS.fullmatch(text) is not None


def same_group(one: Group, other: Group, same: Callable[[str, str], bool]) -> bool:
    """Whether two groups have the same items: in order if either is a tuple, once each if both are sets."""
    if one.name and other.name and one.name != other.name:
        return False
    kinds = {one.kind, other.kind}
    if kinds == {"tuple"}:
        return one.marks == other.marks and _in_order(one.items, other.items, same)
    if kinds == {"tuple", "list"}:
        return _in_order(one.items, other.items, same)
    if kinds == {"set"}:
        return _unordered(_distinct(one.items, same), _distinct(other.items, same), same)
    if len(kinds) == 1 or kinds == {"set", "list"}:
        return _unordered(one.items, other.items, same)
    if "either" in kinds:  # "x = 2 or x = 3" lists the solutions, "2 or 3" is undecided
        return _lists_solutions(one, other) and _unordered(one.items, other.items, same)
    return False


def _lists_solutions(one: Group, other: Group) -> bool:
    either = one if one.kind == "either" else other
    rest = other if either is one else one
    return rest.kind in ("list", "set") and all("=" in item for item in either.items)


def _in_order(one: tuple[str, ...], other: tuple[str, ...], same: Callable[[str, str], bool]) -> bool:
    return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))


def _unordered(one: tuple[str, ...], other: tuple[str, ...], same: Callable[[str, str], bool]) -> bool:
    if len(one) != len(other):
        return False
    left = list(other)
    for item in one:
        match = next((k for k, candidate in enumerate(left) if same(item, candidate)), None)
        if match is None:
            return False
        del left[match]
    return True


def _distinct(items: tuple[str, ...], same: Callable[[str, str], bool]) -> tuple[str, ...]:
    kept: list[str] = []
    for item in items:
        if not any(item == other or same(item, other) for other in kept):
            kept.append(item)
    return tuple(kept)


def _bracketed(text: str) -> Group | None:
    opening, closing = text[0], text[-1]
    if opening == "]" or (opening in "[(" and closing == "["):  # ]1, 2[ is an open interval
        inside, marks = text[1:-1], ("(" if opening == "]" else opening) + (")" if closing == "[" else closing)
    elif opening in _BRACKETS and closing in _CLOSING and _closes_last(text):
        inside, marks = text[1:-1], opening + closing
    else:
        return None
    items = _split_top(inside, _COMMAS)
    if items is None or not 1 <= len(items) <= MAX_ITEMS or not all(items):
        return None
    if marks == "{}":
        return Group("set", tuple(items), marks)
    if len(items) == 1 and marks in ("()", "[]"):
        return None
    return Group("tuple", tuple(items), marks) if marks[0] in "([⟨" and marks[1] in ")]⟩" else None


def _closes_last(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    depth = 0
    for k, char in enumerate(text):
        depth += (char in _BRACKETS) - (char in _CLOSING)
        if depth == 0:
            return k == len(text) - 1
    return False


def _split_top(text: str, separator: re.Pattern[str]) -> list[str] | None:
    """The pieces between separators outside of all brackets; None where brackets do not match."""
    cuts: list[tuple[int, int]] = []
    levels = _levels(text)
    if levels is None:
        return None
    for match in separator.finditer(text):
        if levels[match.start()] == 0:
            cuts.append(match.span())
    pieces, start = [], 0
    for begin, end in cuts:
        pieces.append(text[start:begin].strip())
        start = end
    return [*pieces, text[start:].strip()]


def _levels(text: str) -> list[int] | None:
    depth, levels = 0, []
    for char in text:
        depth -= char in _CLOSING
        levels.append(depth)
        depth += char in _BRACKETS
        if depth < 0:
            return None
    return levels if depth == 0 else None


def _bare(text: str) -> Group | None:
    if _NOT_A_LIST.search(text):
        return None
    text = re.sub(r"^(?:both|either)\s+", "", text, flags=re.IGNORECASE)
    undecided = re.search(r"\sor\s", text, re.IGNORECASE) is not None
    for separator in (_OR, _AND) if undecided else (_AND,):
        items = _split_top(text, separator)
        if items and 2 <= len(items) <= MAX_ITEMS and all(0 < len(item) <= 80 for item in items):
            return Group("either" if separator is _OR else "list", tuple(items))
    return None


def _inequality(text: str) -> Group | None:
    """``1 < x ≤ 2`` and ``x > 3`` as intervals."""
    signs, parts = relation_parts(text)
    if not 1 <= len(signs) <= 2 or len({sign in "<≤" for sign in signs}) != 1 or not set(signs) <= set("<>≤≥"):
        return None
    if signs[0] in ">≥":  # read from right to left
        signs, parts = [{">": "<", "≥": "≤"}[sign] for sign in reversed(signs)], parts[::-1]
    if len(signs) == 2 and _is_name(parts[1]):
        marks = ("[" if signs[0] == "≤" else "(") + ("]" if signs[1] == "≤" else ")")
        return Group("tuple", (parts[0], parts[2]), marks, parts[1])
    if len(signs) == 1 and _is_name(parts[0]) and not _is_name(parts[1]):
        return Group("tuple", ("-∞", parts[1]), "(" + ("]" if signs[0] == "≤" else ")"), parts[0])
    if len(signs) == 1 and _is_name(parts[1]) and not _is_name(parts[0]):
        return Group("tuple", (parts[0], "∞"), ("[" if signs[0] == "≤" else "(") + ")", parts[1])
    return None


def _is_name(text: str) -> bool:
    return len(text) == 1 and text.isalpha()
