"""Formulas: parsed by a small grammar, compared by their values at fixed points, in exact fractions where possible.

Two polynomials that agree at a few points with large numerators are equal for all practical purposes. Computer algebra
systems have unbounded run times and cannot be stopped in a thread. Length, depth and the size of powers are bounded, so
that a comparison takes milliseconds, and nothing is executed as code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from training.scoring.answers.arithmetic import FUNCTIONS, FormulaError, Node, Value, evaluate
from training.scoring.answers.numerals import TOLERANCE

MAX_CHARS = 200
MAX_DEPTH = 24
ROUNDING = 1e-6  # an irrational value against its decimal numeral

_TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|([a-zA-Zα-ωΑ-Ω∞°](?:[a-zA-Z]*)(?:_[0-9a-zA-Z]+|'+)?)|(\*\*|[-+*/^()\[\]|!,×·÷√%±]))"
)
_NAMES = {*FUNCTIONS, "log", "sqrt", "root", "abs", "pi"}
_CONSTANTS: dict[str, complex] = {"π": complex(math.pi), "pi": complex(math.pi), "e": complex(math.e), "i": 1j}
_RELATIONS = {
    "<": "<",
    ">": ">",
    "≤": "≤",
    "≥": "≥",
    "<=": "≤",
    ">=": "≥",
    "=<": "≤",
    "=>": "≥",
    "≠": "≠",
    "!=": "≠",
    "=": "=",
    "==": "=",
}
_RELATION = re.compile(r"<=|>=|=<|=>|!=|==|[<>≤≥≠=]")
_DATE_LIKE = re.compile(r"\s*\d+(?:\s*([-/.])\s*\d+)(?:\s*\1\s*\d+)+\s*")
_LEADING_ZERO = re.compile(r"(?<![\d.])0\d")
_POINTS = (
    Fraction(7_368_787, 2_097_143),
    Fraction(3_145_739, 1_048_573),
    Fraction(1_299_709, 4_194_301),
    Fraction(-6_291_469, 2_097_143),
    Fraction(-524_287, 1_048_573),
)


@dataclass(frozen=True)
class Formula:
    """A parsed formula."""

    node: Node
    variables: frozenset[str]

    def value(self, point: Mapping[str, Fraction]) -> Value:
        """Evaluate with these values of the variables.

        Raises:
            FormulaError: too large.
            ArithmeticError: undefined there.
        """
        try:
            return evaluate(self.node, point)
        except OverflowError as error:
            raise FormulaError("too large") from error


@lru_cache(maxsize=4_096)
def read_formula(text: str) -> Formula | None:
    """Parse a formula; None for words, dates, and texts that are too long or too deep."""
    if (
        len(text) > MAX_CHARS
        or not re.search(r"[\d^*/+√()!|π×·÷-]", text)
        or _DATE_LIKE.fullmatch(text)
        or _LEADING_ZERO.search(text)
    ):
        return None
    try:
        parser = _Parser(text)
        return Formula(parser.whole(), frozenset(parser.variables))
    except FormulaError:
        return None


def same_formula(one: Formula, other: Formula, *, rounded: bool = False) -> bool | None:
    """Whether two formulas are equal; None if neither can be calculated. ``rounded``: one is a rounded decimal."""
    return _agree(one, other, lambda a, b: _close(a, b, rounded=rounded))


def same_relation(one: str, other: str) -> bool | None:
    """Whether two equations or inequalities are equivalent: their differences are multiples of each other.

    None if either is not a relation, or has more than one.
    """
    a, b = _sides(one), _sides(other)
    if a is None or b is None:
        return None
    (sign, left, right), (other_sign, other_left, other_right) = a, b
    if sign != other_sign:
        return False
    first, second = _difference(left, right), _difference(other_left, other_right)
    ratios: list[complex] = []

    def proportional(x: Value, y: Value) -> bool:
        x, y = complex(x), complex(y)
        if abs(x) < 1e-12 or abs(y) < 1e-12:
            return abs(x) < 1e-12 and abs(y) < 1e-12
        ratios.append(x / y)
        return _near(ratios[0], x / y) and (sign in "=≠" or ratios[0].real > 0)

    return bool(_agree(first, second, proportional)) and bool(ratios)


def relation_parts(text: str) -> tuple[list[str], list[str]]:
    """The relation signs of a text, and the parts between them."""
    return [_RELATIONS[sign] for sign in _RELATION.findall(text)], [part.strip() for part in _RELATION.split(text)]


def _sides(text: str) -> tuple[str, Formula, Formula] | None:
    """The sign and both sides of a relation, normalised so that the sign is never "greater"."""
    signs, parts = relation_parts(text)
    if len(signs) != 1:
        return None
    left, right = read_side(parts[0]), read_side(parts[1])
    if left is None or right is None:
        return None
    sign = {">": "<", "≥": "≤"}.get(signs[0])
    return (signs[0], left, right) if sign is None else (sign, right, left)


def read_side(text: str) -> Formula | None:
    """A side of a relation: a formula, a number or a single variable."""
    return read_formula(f"({text})") if 0 < len(text) <= MAX_CHARS - 2 else None


def _difference(left: Formula, right: Formula) -> Formula:
    return Formula(("-", left.node, right.node), left.variables | right.variables)


def _agree(one: Formula, other: Formula, equal: Callable[[Value, Value], bool]) -> bool | None:
    variables = sorted(one.variables | other.variables)
    points = _POINTS if variables else _POINTS[:1]
    seen = failed = 0
    for number, start in enumerate(points):
        point = {name: start * Fraction(2 * k + 3, 2 * k + 1) + k * (number + 1) for k, name in enumerate(variables)}
        values: list[Value | None] = []
        for formula in (one, other):
            try:
                values.append(formula.value(point))
            except FormulaError:
                return None
            except (ArithmeticError, ValueError):
                values.append(None)
        a, b = values
        if a is None and b is None:
            failed += 1
        elif a is None or b is None or _unreal(a) != _unreal(b):
            if start > 0:
                return False
        elif not equal(a, b):
            return False
        else:
            seen += 1
    return seen > 0 if seen or not failed else None


def _unreal(value: Value) -> bool:
    return isinstance(value, complex) and abs(value.imag) > 1e-9 * max(1.0, abs(value.real))


def _close(a: Value, b: Value, *, rounded: bool) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b or (abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) and not a.denominator == b.denominator == 1)
    x, y = complex(a), complex(b)
    if 0 in (a, b):
        return abs(x - y) < 1e-14
    return abs(x - y) <= (ROUNDING if rounded else 1e-9) * max(abs(x), abs(y))


def _near(x: complex, y: complex) -> bool:
    return abs(x - y) <= 1e-9 * max(abs(x), abs(y))


class _Parser:
    """Recursive descent: sums, products (also without a sign), powers, functions, roots, absolute values."""

    def __init__(self, text: str) -> None:
        self.variables: set[str] = set()
        self._tokens = _tokens(text)
        self._position = self._depth = self._bars = 0

    def whole(self) -> Node:
        node = self._sum()
        if self._position < len(self._tokens):
            raise FormulaError("more than a formula")
        return node

    def _peek(self) -> str:
        return self._tokens[self._position] if self._position < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._position += 1
        return token

    def _expect(self, *tokens: str) -> None:
        if self._take() not in tokens:
            raise FormulaError(f"{tokens} expected")

    def _sum(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FormulaError("too deep")
        node = self._product()
        while self._peek() in ("+", "-"):
            node = (self._take(), node, self._product())
        self._depth -= 1
        return node

    def _product(self) -> Node:
        node = self._signed()
        while (token := self._peek()) and token not in ("+", "-", ")", "]", ",", "±"):
            if token in ("*", "×", "·"):
                self._take()
                node = ("*", node, self._signed())
            elif token in ("/", "÷"):
                self._take()
                node = ("/", node, self._signed())
            elif (token == "|" and self._bars) or token in ("^", "**", "!", "%", "°"):
                break
            else:
                node = ("*", node, self._power())
        return node

    def _signed(self) -> Node:
        negative = False
        while self._peek() in ("+", "-"):
            negative ^= self._take() == "-"
        node = self._power()
        return ("neg", node) if negative else node

    def _power(self) -> Node:
        node = self._postfix()
        if self._peek() in ("^", "**"):
            self._take()
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise FormulaError("too deep")
            sign = self._take() if self._peek() in ("+", "-") else ""
            exponent = self._power()
            self._depth -= 1
            node = ("^", node, ("neg", exponent) if sign == "-" else exponent)
        return node

    def _postfix(self) -> Node:
        node = self._atom()
        while self._peek() in ("!", "%", "°"):
            node = (self._take(), node)
        return node

    def _atom(self) -> Node:
        token = self._take()
        if token[:1].isdigit() or token[:1] == ".":
            return ("number", Fraction(token))
        if token in ("(", "["):
            node = self._sum()
            self._expect(")" if token == "(" else "]")
            return node
        if token == "|":
            self._bars += 1
            node = self._sum()
            self._expect("|")
            self._bars -= 1
            return ("abs", node)
        if token == "√":
            return ("sqrt", self._postfix())
        if not token or not token[0].isalpha():
            raise FormulaError(f"{token!r} instead of a value")
        return self._named(token)

    def _named(self, token: str) -> Node:
        name, _, base = token.partition("_")
        if name in FUNCTIONS or name in ("log", "sqrt", "abs", "root"):
            return self._call(name, base)
        if token in _CONSTANTS:
            return ("constant", _CONSTANTS[token])
        self.variables.add(token)
        return ("variable", token)

    def _call(self, name: str, base: str) -> Node:
        exponent = None
        if self._peek() in ("^", "**"):
            self._take()
            exponent = self._atom() if self._peek() != "-" else (self._take(), self._atom())[1]
        if name == "root":
            self._expect("(")
            degree = self._sum()
            self._expect(",")
            inside = self._sum()
            self._expect(")")
            node: Node = ("root", degree, inside)
        else:
            argument = self._argument()
            node = (name, argument)
            if name == "log":
                number = ("number", Fraction(base)) if base.isdigit() else self._base(base)
                node = ("log", argument, number)
        return node if exponent is None else ("^", node, exponent)

    def _base(self, base: str) -> Node:
        if not base:
            return ("number", Fraction(10))
        return self._named(base)

    def _argument(self) -> Node:
        """In brackets, or the factors up to the next sign: ``sin 2x``."""
        if self._peek() in ("(", "[", "|"):
            return self._postfix()
        negative = self._peek() == "-" and bool(self._take())
        node = self._power()
        while (token := self._peek()) and (token[0].isalnum()) and token.partition("_")[0] not in _NAMES - {"pi"}:
            node = ("*", node, self._power())
        return ("neg", node) if negative else node


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    latex_like = "^" in text or "_" in text
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise FormulaError(f"{text[position]!r} is not part of a formula")
        position = match.end()
        tokens += _split_name(match[2], 4 if latex_like else 2) if match[2] else [match[1] or match[3]]
    if not tokens:
        raise FormulaError("empty")
    return tokens


def _split_name(word: str, longest: int) -> list[str]:
    """Split adjacent letters: a function, or a product of single letters."""
    name, mark, index = word.partition("_")
    letters, quotes = name.rstrip("'"), name[len(name.rstrip("'")) :]
    if letters in _NAMES:
        return [word]
    found = next(
        (f for f in sorted(_NAMES, key=len, reverse=True) if letters.startswith(f) and len(letters) - len(f) == 1), None
    )
    if found:
        return [found, letters[len(found) :] + quotes + mark + index]
    if len(letters) > longest:
        raise FormulaError(f"{letters!r} is a word")
    return [*letters[:-1], letters[-1:] + quotes + mark + index]
