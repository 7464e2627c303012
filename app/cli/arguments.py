"""Types of arguments for argparse: each rejects a bad value with a message that gives the allowed ones."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable


def whole(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """Whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _expected("whole number", least, most, text) from None
        if _outside(value, least, most):
            raise _expected("whole number", least, most, text)
        return value

    return parse


def number(least: float | None = None, most: float | None = None) -> Callable[[str], float]:
    """Finite numbers from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or _outside(value, least, most):
            raise _expected("number", least, most, text)
        return value

    return parse


def filled(text: str) -> str:
    """Text that is not blank."""
    if not text.strip():
        raise ArgumentTypeError("must not be empty")
    return text


def _outside(value: float, least: float | None, most: float | None) -> bool:
    return (least is not None and value < least) or (most is not None and value > most)


def _expected(kind: str, least: float | None, most: float | None, text: str) -> ArgumentTypeError:
    bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
    return ArgumentTypeError(f"expected a {kind}{bounds}, not {text!r}")
