"""Numbers in human notation: digits with any separators, powers of ten, fractions, mixed numbers, words.

Values are exact fractions. Longer than `MAX_DIGITS` digits or above a power of ten of `MAX_EXPONENT`, nothing is parsed
as a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 1_000
MAX_EXPONENT = 5_000
TOLERANCE = Fraction(1, 10**9)  # relative; whole numbers are compared exactly

_GROUPED = (
    (re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?(?![\d,.]\d|\d)"), ",", "."),  # 1,234.5
    (re.compile(r"\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?(?![\d,]\d|\d)"), ",", "."),  # 1,00,000
    (re.compile(r"\d{1,3}(?:\.\d{3})+,\d+(?![\d,.]\d|\d)"), ".", ","),  # 1.234,5
    (re.compile(r"\d{1,3}(?:\.\d{3}){2,}(?![\d,.]\d|\d)"), ".", ","),  # 1.234.567
    (re.compile(r"[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?(?![\d,./]|\s*\d)"), " ", "."),  # 1 234.5
    (re.compile(r"[1-9]\d{0,2}(?: \d{3})+,\d+(?![\d,./]|\s*\d)"), " ", ","),  # 1 234,5
    (re.compile(r"\d{1,3}(?:'\d{3})+(?:\.\d+)?(?![\d'])"), "'", "."),
    (re.compile(r"\d{1,3}(?:_\d{3})+(?:\.\d+)?(?![\d_])"), "_", "."),
    (re.compile(r"(?:0,\d+|\d+,(?:\d{1,2}|\d{4,}))(?![\d,.]\d|\d)"), "", ","),  # 3,14
)
_MIXED = re.compile(r"(\d{1,12})\s+(\d{1,12})\s*/\s*(\d{1,12})(?![\d/.]|\s*/)")
_FRACTION = re.compile(r"(\d{1,300})(?:\s*/\s*|\s+out\s+of\s+)(\d{1,300})(?![\d/.,]\d|\d|\s*/)")
_DECIMAL = re.compile(r"\d+(?:\.\d+)?(?!\d|\.\d)|\.\d+(?![\d.]\d|\d)|\d+\.(?!\d)")
_EXPONENT = re.compile(r"[eE]([+-]?\d{1,5})(?![\d.])")
_POWER = r"10\s*(?:\^|\*\*)\s*[({]?\s*([+-]?\s*\d{1,5})\s*[)}]?(?!\s*[\d^*])"
_TIMES_POWER = re.compile(rf"\s*[×x*·]\s*{_POWER}")
_BARE_POWER = re.compile(_POWER)
_SIGN = re.compile(r"(?:[+-]|(?:minus|negative|plus)\b)\s*", re.IGNORECASE)
_SCALE = re.compile(r"\s*(hundred|thousand|million|billion|trillion|dozen|lakh|crore)s?\b", re.IGNORECASE)

_SMALL = {
    word: number
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS = {
    word: 10 * (k + 2)
    for k, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"])
}
_SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "lakh": 10**5,
    "crore": 10**7,
}
_ORDINALS = {
    "first": 1,
    "second": 2,
    "third": 3,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
    "eleventh": 11,
    "twelfth": 12,
    "thirteenth": 13,
    "fourteenth": 14,
    "fifteenth": 15,
    "sixteenth": 16,
    "seventeenth": 17,
    "eighteenth": 18,
    "nineteenth": 19,
    "twentieth": 20,
    "thirtieth": 30,
    "fortieth": 40,
    "fiftieth": 50,
    "sixtieth": 60,
    "seventieth": 70,
    "eightieth": 80,
    "ninetieth": 90,
    "hundredth": 100,
    "thousandth": 1000,
}
_PARTS = {"half": 2, "halve": 2, "quarter": 4} | {k: v for k, v in _ORDINALS.items() if v > 2}
_WORD = re.compile(r"[a-zA-Z]+")
NUMBER_WORDS = frozenset({*_SMALL, *_TENS, *_SCALES, *_ORDINALS, "half", "quarter", "double", "twice", "once", "pair"})


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number and the text after it. ``whole``: written as a whole number, so compared exactly."""

    value: Fraction
    rest: str
    whole: bool
    ordinal: bool = False


def read_number(text: str) -> Numeral | None:
    """Parse the number at the start of a text; None if there is none."""
    text = text.strip()
    sign = _SIGN.match(text)
    negative = sign is not None and sign[0].strip().lower() in ("-", "minus", "negative")
    body = text[sign.end() :] if sign else text
    found = _digits(body) if body[:1].isdigit() or body[:1] == "." else _spelled(body)
    if found is None or not negative:
        return found
    return Numeral(-found.value, found.rest, found.whole, found.ordinal)


def same_value(one: Fraction, other: Fraction, *, whole: bool = False) -> bool:
    """Whether two values are equal: exactly if both are written as whole numbers, else within `TOLERANCE`."""
    return one == other or (not whole and abs(one - other) <= TOLERANCE * max(abs(one), abs(other)))


def _digits(text: str) -> Numeral | None:
    if match := _BARE_POWER.match(text):
        exponent = int(match[1].replace(" ", ""))
        return (
            None
            if abs(exponent) > MAX_EXPONENT
            else Numeral(Fraction(10) ** exponent, text[match.end() :], exponent >= 0)
        )
    if match := _MIXED.match(text):
        if int(match[3]) == 0:
            return None
        return Numeral(int(match[1]) + Fraction(int(match[2]), int(match[3])), text[match.end() :], False)
    for pattern, group, point in _GROUPED:
        if match := pattern.match(text):
            digits = match[0].replace(group, "") if group else match[0]
            return _scaled(digits.replace(point, "."), text[match.end() :])
    if match := _FRACTION.match(text):
        if int(match[2]) == 0:
            return None
        return Numeral(Fraction(int(match[1]), int(match[2])), text[match.end() :], False)
    if match := _DECIMAL.match(text):
        return _scaled(match[0].rstrip("."), text[match.end() :])
    return None


def _scaled(digits: str, rest: str) -> Numeral | None:
    """A numeral with its power of ten or its "million"."""
    if len(digits) > MAX_DIGITS:
        return None
    value, whole = Fraction(digits), "." not in digits
    if match := _EXPONENT.match(rest) or _TIMES_POWER.match(rest):
        exponent = int(match[1].replace(" ", ""))
        if abs(exponent) > MAX_EXPONENT:
            return None
        return Numeral(value * Fraction(10) ** exponent, rest[match.end() :], False)
    if match := _SCALE.match(rest):
        return Numeral(value * _SCALES[match[1].lower()], rest[match.end() :], whole)
    if whole and (match := re.match(r"(?:st|nd|rd|th)\b", rest)):
        return Numeral(value, rest[match.end() :], True, ordinal=True)
    return Numeral(value, rest, whole)


def _spelled(text: str) -> Numeral | None:
    """The number spelled by the first words, with "and" and hyphens between them."""
    words: list[tuple[str, int]] = []
    end = 0
    for match in _WORD.finditer(text):
        if words and text[end : match.start()].strip(" -"):
            break
        if not words and match.start():
            return None
        end = match.end()
        words.append((match[0].lower(), end))
        if len(words) == 24:
            break
    read = spelled_number([word for word, _ in words])
    if read is None:
        return None
    value, used, ordinal = read
    return Numeral(value, text[words[used - 1][1] :], value.denominator == 1, ordinal)


def spelled_number(words: list[str]) -> tuple[Fraction, int, bool] | None:
    """The value of the number at the start of a list of words, its length in words, and whether it is an ordinal.

    ``["twenty", "one", "apples"]`` is (21, 2, False).
    """
    whole = _cardinal(words)
    if whole is None:
        return _part_or_ordinal(words)
    value, used = whole
    rest = words[used:]
    if rest[:1] == ["point"] and (decimals := _decimals(rest[1:])):
        return value + Fraction(int(decimals), 10 ** len(decimals)), used + 1 + len(decimals), False
    if rest[:3] == ["and", "a", "half"]:
        return value + Fraction(1, 2), used + 3, False
    if rest[:1] == ["and"] and (part := _share(rest[1:])):
        return value + part[0], used + 1 + part[1], False
    if rest and (size := _PARTS.get(_singular(rest[0]))) and _counts_parts(words[:used], rest[0]):
        return value / size, used + 1, False
    if rest and value % 10 == 0 and 0 < _ORDINALS.get(rest[0], 0) < 10:  # twenty first
        return value + _ORDINALS[rest[0]], used + 1, True
    return value, used, False


def _counts_parts(words: list[str], part: str) -> bool:
    """Whether ``two thirds``, not ``twenty third``, is meant."""
    return words[-1] not in _TENS and not (len(words) == 1 and words[0] in ("a", "an") and part not in _PARTS)


def _share(words: list[str]) -> tuple[Fraction, int] | None:
    """``three quarters``, ``one half``."""
    if len(words) >= 2 and words[0] in _SMALL and (size := _PARTS.get(_singular(words[1]))):
        return Fraction(_SMALL[words[0]], size), 2
    return None


def _cardinal(words: list[str]) -> tuple[Fraction, int] | None:
    total, current, used = 0, 0, 0
    seen = False
    last = 10**15
    for k, word in enumerate(words):
        if word in ("a", "an") and k == 0 and len(words) > 1 and (words[1] in _SCALES or words[1] == "couple"):
            current, seen, used = 1, True, 1
        elif word == "couple" and words[:k] in (["a"], []):
            return Fraction(2), k + 1 + (words[k + 1 : k + 2] == ["of"])
        elif word in _SMALL and (
            current % 100 == 0
            or (current % 10 == 0 and current % 100 >= 20 and _SMALL[word] < 10 and words[k - 1] in _TENS)
        ):
            if seen and words[k - 1] in _SMALL:
                break
            current, seen, used = current + _SMALL[word], True, k + 1
        elif word in _TENS and current % 100 == 0:
            current, seen, used = current + _TENS[word], True, k + 1
        elif word in ("hundred", "dozen", "hundreds") and (seen or k == 0) and current < 100:
            scale = _SCALES[word.rstrip("s")]
            current, seen, used = max(1, current) * scale, True, k + 1
        elif word in _SCALES and _SCALES[word] >= 1000 and (seen or k == 0) and _SCALES[word] < last:
            last = _SCALES[word]
            total, current, seen, used = total + max(1, current) * last, 0, True, k + 1
        elif (
            word == "and"
            and seen
            and k + 1 < len(words)
            and (words[k + 1] in _SMALL or words[k + 1] in _TENS)
            and words[k - 1] in _SCALES
        ):
            continue
        else:
            break
    return (Fraction(total + current), used) if seen and used else None


def _part_or_ordinal(words: list[str]) -> tuple[Fraction, int, bool] | None:
    articles = 1 if words[:1] in (["a"], ["an"]) else 0
    if len(words) <= articles:
        return None
    word = words[articles]
    if word == "half":
        if words[articles + 1 : articles + 3] == ["a", "dozen"]:
            return Fraction(6), articles + 3, False
        return Fraction(1, 2), articles + 1, False
    if articles or word == "quarter":
        return (Fraction(1, _PARTS[word]), articles + 1, False) if word in _PARTS else None
    return (Fraction(_ORDINALS[word]), 1, True) if word in _ORDINALS else None


def _decimals(words: list[str]) -> str:
    digits = ""
    for word in words:
        if word not in _SMALL or _SMALL[word] > 9:
            break
        digits += str(_SMALL[word])
    return digits


def _singular(word: str) -> str:
    return "half" if word == "halves" else word[:-1] if word.endswith("s") else word
