"""The value of a formula at a point: exact fractions where possible, complex numbers after a root or a sine.

Powers, roots and factorials are bounded in size before they are calculated.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MAX_BITS = 20_000  # of an exact power
MAX_FACTORIAL = 300

Value = Fraction | complex
Node = tuple[Any, ...]

FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "exp": cmath.exp,
    "ln": cmath.log,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "asin": cmath.asin,
    "acos": cmath.acos,
    "atan": cmath.atan,
    "lg": cmath.log10,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
}


class FormulaError(ValueError):
    """Not a formula, or too large to compare."""


class _Undefined(ArithmeticError):
    """No value at this point."""


def evaluate(node: Node, point: Mapping[str, Fraction]) -> Value:
    """Evaluate a formula's tree.

    Raises:
        FormulaError: too large.
        ArithmeticError: undefined at this point.
        OverflowError: beyond the range of floats.
    """
    kind = node[0]
    if kind == "number":
        return node[1]  # type: ignore[no-any-return]
    if kind == "constant":
        return node[1]  # type: ignore[no-any-return]
    if kind == "variable":
        return point[node[1]]
    values = [evaluate(child, point) for child in node[1:]]
    return _checked(_apply(kind, values))


def _checked(value: Value) -> Value:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > 4 * MAX_BITS:
            raise FormulaError("too large")
    elif not cmath.isfinite(value):
        raise _Undefined
    return value


def _apply(kind: str, values: list[Value]) -> Value:
    if kind in ("+", "-", "*", "/"):
        return _arithmetic(kind, values[0], values[1])
    if kind == "^":
        return _raise(values[0], values[1])
    if kind == "neg":
        return -values[0]
    if kind == "%":
        return _arithmetic("/", values[0], Fraction(100))
    if kind == "°":
        return complex(values[0]) * math.pi / 180
    if kind == "!":
        return _factorial(values[0])
    if kind == "abs":
        return abs(values[0]) if isinstance(values[0], Fraction) else complex(abs(values[0]))
    if kind == "sqrt":
        return _root(values[0], 2)
    if kind == "root":
        degree = values[0]
        if not isinstance(degree, Fraction) or degree.denominator != 1 or not 1 <= degree <= 100:
            raise FormulaError("a root of this degree is not calculated")
        return _root(values[1], int(degree))
    if kind == "log":
        return cmath.log(complex(values[0])) / cmath.log(complex(values[1]))
    return FUNCTIONS[kind](complex(values[0]))


def _arithmetic(sign: str, a: Value, b: Value) -> Value:
    if not (isinstance(a, Fraction) and isinstance(b, Fraction)):
        a, b = complex(a), complex(b)
    if sign == "+":
        return a + b
    if sign == "-":
        return a - b
    return a * b if sign == "*" else a / b


def _raise(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1:
            power = int(exponent)
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if base not in (0, 1, -1) and size * abs(power) > MAX_BITS:
                raise FormulaError("too large")
            return base**power if base not in (1, -1) else Fraction(base if power % 2 else 1)
        if exponent.denominator <= 100 and base >= 0:
            return _raise(_root(base, exponent.denominator), Fraction(exponent.numerator))
    return complex(base) ** complex(exponent)


def _root(value: Value, degree: int) -> Value:
    """An exact root if possible; the real root of a negative number if the degree is odd."""
    if not isinstance(value, Fraction):
        return complex(value) ** (1 / degree)
    if value < 0:
        return -_root(-value, degree) if degree % 2 else complex(value) ** (1 / degree)
    exact = [_integer_root(part, degree) for part in (value.numerator, value.denominator)]
    if exact[0] is not None and exact[1] is not None:
        return Fraction(exact[0], exact[1])
    return complex(float(value) ** (1 / degree))


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
    elif value.bit_length() > 900:
        return None
    else:
        root = round(value ** (1 / degree))
    return root if root**degree == value else None


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or value < 0:
        raise _Undefined
    if value > MAX_FACTORIAL:
        raise FormulaError("too large")
    return Fraction(math.factorial(int(value)))
