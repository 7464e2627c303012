"""Dates, times of day and ratios. They look like sums, so they are parsed before formulas."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from training.scoring.answers.numerals import read_number

Moment = tuple[Literal["date", "time", "ratio"], tuple[int | Fraction | None, ...]]

_MONTHS = {
    name[:3]: k
    for k, name in enumerate(
        [
            "january",
            "february",
            "march",
            "april",
            "may",
            "june",
            "july",
            "august",
            "september",
            "october",
            "november",
            "december",
        ],
        1,
    )
}
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_WEEKDAY = re.compile(r"(?:mon|tues?|wed(?:nes)?|thu(?:rs)?|fri|sat(?:ur)?|sun)(?:day)?,?\s+", re.IGNORECASE)
_YMD = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})")
_XXY = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})")
_DAY_MONTH = re.compile(rf"(?:the\s+)?{_DAY}\s*(?:of\s+|-)?\s*{_MONTH},?\s*-?\s*(\d{{4}})?", re.IGNORECASE)
_MONTH_DAY = re.compile(rf"{_MONTH}\s*(?:the\s+)?{_DAY},?\s*(\d{{4}})?", re.IGNORECASE)
_MONTH_YEAR = re.compile(rf"{_MONTH},?\s*(\d{{4}})", re.IGNORECASE)
_TIME = re.compile(
    r"(\d{1,2})(?:[:.h](\d{2}))?(?::(\d{2}))?\s*(a\.?m\.?|p\.?m\.?|o'clock)?(?:\s+(?:hours|hrs|h))?", re.IGNORECASE
)
_RATIO = re.compile(r"(\S{1,40}?)\s*(?::|\s+to\s+)\s*(\S{1,40}?)(?:\s*:\s*(\S{1,40}))?")


@lru_cache(maxsize=4_096)
def read_moment(text: str) -> Moment | None:
    """Parse a date, time of day or ratio; None for anything else.

    A date is (year or None, month, day or None), ``1/5/2024`` the fifth of January. A time is (hour, minute, second),
    the hour negative if the half of the day is unknown. A ratio's last number is 1.
    """
    if len(text) > 80 or not any(map(str.isdigit, text)):
        return None
    text = _WEEKDAY.sub("", text.strip(), count=1) if _WEEKDAY.match(text) else text.strip()
    if (date := _date(text)) is not None:
        return "date", date
    if (time := _time(text)) is not None:
        return "time", time
    ratio = _ratio(text)
    return None if ratio is None else ("ratio", ratio)


def same_moment(one: str, other: str) -> bool | None:
    """Whether two texts are the same date, time or ratio; None if either is none of these.

    ``10:20`` is a time, unless the other side can only be a ratio.
    """
    a, b = read_moment(one), read_moment(other)
    if a is not None and b is not None and a[0] == b[0]:
        return a[1] == b[1] or (a[0] == "time" and _same_time(a[1], b[1]))
    kinds = {a[0] if a else None, b[0] if b else None}
    if "date" in kinds:
        return False
    if "time" in kinds and "ratio" in kinds:
        first, second = _ratio(one), _ratio(other)
        return first is not None and first == second
    return None


def ratio_value(text: str) -> Fraction | None:
    """A ratio of two numbers as their quotient: ``3:2`` is 3/2."""
    found = read_moment(text)
    if found is None or found[0] != "ratio" or len(found[1]) != 2:
        return None
    first, second = found[1]
    return Fraction(first) / Fraction(second) if first is not None and second else None


def _date(text: str) -> tuple[int | None, ...] | None:
    if match := _YMD.fullmatch(text):
        return _checked(int(match[1]), int(match[3]), int(match[4]))
    if match := _XXY.fullmatch(text):
        first, second = int(match[1]), int(match[3])
        year = int(match[4]) + (2000 if len(match[4]) == 2 else 0)
        return _checked(year, first, second) or _checked(year, second, first)
    if match := _DAY_MONTH.fullmatch(text):
        return _checked(int(match[3]) if match[3] else None, _MONTHS[match[2].lower()], int(match[1]))
    if match := _MONTH_YEAR.fullmatch(text):
        return int(match[2]), _MONTHS[match[1].lower()], None
    if match := _MONTH_DAY.fullmatch(text):
        return _checked(int(match[3]) if match[3] else None, _MONTHS[match[1].lower()], int(match[2]))
    return None


def _checked(year: int | None, month: int, day: int) -> tuple[int | None, ...] | None:
    return (year, month, day) if 1 <= month <= 12 and 1 <= day <= 31 else None


def _time(text: str) -> tuple[int, ...] | None:
    match = _TIME.fullmatch(text)
    if match is None or (match[2] is None and match[4] is None):
        return None
    if match[4] is None and ":" not in text:
        return None
    hour, minute, second = int(match[1]), int(match[2] or 0), int(match[3] or 0)
    half = (match[4] or "").lower()[:1]
    if hour > 24 or minute > 59 or second > 59 or (half in "ap" and half and not 1 <= hour <= 12):
        return None
    if half in ("a", "p"):
        return hour % 12 + (12 if half == "p" else 0), minute, second
    return (hour if hour > 12 or hour == 0 else -hour), minute, second


def _same_time(one: tuple[int | Fraction | None, ...], other: tuple[int | Fraction | None, ...]) -> bool:
    """Equal, or equal on a clock's face if either does not state the half of the day."""
    if one[1:] != other[1:] or one[0] is None or other[0] is None:
        return False
    open_hour, hour = sorted((one[0], other[0]))
    return (
        open_hour < 0 <= hour
        and hour in (-open_hour, -open_hour % 12, -open_hour % 12 + 12)
        and hour <= 23
        and (hour == -open_hour or hour - 12 == -open_hour or hour == -open_hour % 12)
    )


def _ratio(text: str) -> tuple[Fraction, ...] | None:
    match = _RATIO.fullmatch(text)
    if match is None:
        return None
    parts = [read_number(part) for part in match.groups() if part is not None]
    values = [part.value for part in parts if part is not None and not part.rest]
    if len(values) != len(parts) or any(value < 0 for value in values) or not any(values):
        return None
    scale = next(value for value in reversed(values) if value)
    return tuple(value / scale for value in values)
