"""Units of measurement and currencies: the meaning of a unit's text, as powers of base units and a factor.

Symbols are case-sensitive (``mW`` is not ``MW``), names are not. Some have several meanings (``C``: coulomb or degree
Celsius; ``oz``: mass or volume); :func:`read_unit` returns all of them. The table is curated: libraries that know every
unit with every prefix also find units in plain words ("cats": centi-at-seconds).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import islice, product

Dimensions = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """``base value = value * factor + offset``; ``dimensions`` are powers of base units, sorted."""

    dimensions: Dimensions
    factor: Fraction
    offset: Fraction = Fraction(0)

    def base(self, value: Fraction) -> Fraction:
        """A value of this unit in base units."""
        return value * self.factor + self.offset


GENERIC = Unit((), Fraction(1))  # "units", "square units": equivalent to no unit

_PREFIXES = {
    "Y": 24,
    "Z": 21,
    "E": 18,
    "P": 15,
    "T": 12,
    "G": 9,
    "M": 6,
    "k": 3,
    "h": 2,
    "da": 1,
    "d": -1,
    "c": -2,
    "m": -3,
    "μ": -6,
    "u": -6,
    "n": -9,
    "p": -12,
    "f": -15,
    "a": -18,
}
_PREFIX_NAMES = {
    "yotta": 24,
    "zetta": 21,
    "exa": 18,
    "peta": 15,
    "tera": 12,
    "giga": 9,
    "mega": 6,
    "kilo": 3,
    "hecto": 2,
    "deca": 1,
    "deci": -1,
    "centi": -2,
    "milli": -3,
    "micro": -6,
    "nano": -9,
    "pico": -12,
    "femto": -15,
    "atto": -18,
}

_ENERGY, _POWER, _FORCE, _PRESSURE = "kg m2 s-2", "kg m2 s-3", "kg m s-2", "kg m-1 s-2"
_VOLT, _OHM = "kg m2 s-3 A-1", "kg m2 s-3 A-2"
# symbols, names, dimensions, factor: with every prefix
_PREFIXED: tuple[tuple[str, str, str, str], ...] = (
    ("m", "meter metre", "m", "1"),
    ("g", "gram gramme", "kg", "1/1000"),
    ("s", "second sec", "s", "1"),
    ("A", "ampere amp", "A", "1"),
    ("K", "kelvin", "K", "1"),
    ("mol", "mole", "mol", "1"),
    ("Hz", "hertz", "s-1", "1"),
    ("N", "newton", _FORCE, "1"),
    ("Pa", "pascal", _PRESSURE, "1"),
    ("J", "joule", _ENERGY, "1"),
    ("W", "watt", _POWER, "1"),
    ("C", "coulomb", "A s", "1"),
    ("V", "volt", _VOLT, "1"),
    ("F", "farad", "kg-1 m-2 s4 A2", "1"),
    ("Ω", "ohm", _OHM, "1"),
    ("S", "siemens", "kg-1 m-2 s3 A2", "1"),
    ("Wb", "weber", "kg m2 s-2 A-1", "1"),
    ("T", "tesla", "kg s-2 A-1", "1"),
    ("H", "henry", "kg m2 s-2 A-2", "1"),
    ("lm", "lumen", "cd", "1"),
    ("lx", "lux", "cd m-2", "1"),
    ("Bq", "becquerel", "s-1", "1"),
    ("Sv", "sievert", "m2 s-2", "1"),
    ("L l ℓ", "liter litre", "m3", "1/1000"),
    ("eV", "electronvolt", _ENERGY, "1.602176634e-19"),
    ("bit b", "bit", "bit", "1"),
    ("B", "byte", "bit", "8"),
    ("cal", "calorie", _ENERGY, "4.184"),
    ("bar", "bar", _PRESSURE, "100000"),
    ("M", "molar", "mol m-3", "1000"),
    ("Wh", "watthour", _ENERGY, "3600"),
)
_PLAIN: tuple[tuple[str, str, str, str], ...] = (
    ("in", "inch inches", "m", "0.0254"),
    ("ft '", "foot feet", "m", "0.3048"),
    ('"', "", "m", "0.0254"),
    ("yd yds", "yard", "m", "0.9144"),
    ("mi", "mile", "m", "1609.344"),
    ("nmi", "", "m", "1852"),
    ("Å", "angstrom", "m", "1e-10"),
    ("ly", "lightyear", "m", "9460730472580800"),
    ("au AU", "", "m", "149597870700"),
    ("cm", "", "m", "1/100"),
    ("kg", "kilo kgs", "kg", "1"),
    ("t", "tonne", "kg", "1000"),
    ("lb lbs", "pound", "kg", "0.45359237"),
    ("oz", "ounce", "kg", "0.028349523125"),
    ("oz", "ounce", "m3", "0.0000295735295625"),
    ("", "ton", "kg", "1000"),
    ("", "ton", "kg", "907.18474"),
    ("", "stone", "kg", "6.35029318"),
    ("min mins", "minute", "s", "60"),
    ("h hr hrs", "hour", "s", "3600"),
    ("d", "day", "s", "86400"),
    ("wk wks", "week", "s", "604800"),
    ("mo", "month", "s", "2628000"),
    ("y yr yrs", "year", "s", "31536000"),
    ("", "decade", "s", "315360000"),
    ("", "century centuries", "s", "3153600000"),
    ("ha", "hectare", "m2", "10000"),
    ("ac", "acre", "m2", "4046.8564224"),
    ("gal", "gallon", "m3", "0.003785411784"),
    ("qt", "quart", "m3", "0.000946352946"),
    ("pt", "pint", "m3", "0.000473176473"),
    ("cc ccm", "", "m3", "1/1000000"),
    ("mph", "", "m s-1", "0.44704"),
    ("kph kmh kmph", "", "m s-1", "1/3.6"),
    ("kn kt", "knot", "m s-1", "1852/3600"),
    ("psi", "", _PRESSURE, "6894.757293168"),
    ("atm", "atmosphere", _PRESSURE, "101325"),
    ("mmHg torr", "", _PRESSURE, "101325/760"),
    ("hp", "horsepower", _POWER, "745.6998715822702"),
    ("Cal", "", _ENERGY, "4184"),
    ("bps", "", "bit s-1", "1"),
    ("rad", "radian", "rad", "1"),
    ("° deg", "degree", "rad", "pi/180"),
    ("rev", "revolution turn", "rad", "2pi"),
    ("rpm", "", "rad s-1", "2pi/60"),
    ("dB", "decibel", "dB", "1"),
    ("px", "pixel", "px", "1"),
    ("$ USD US$", "dollar usd buck", "USD", "1"),
    ("¢", "cent", "USD", "1/100"),
    ("€ EUR", "euro eur", "EUR", "1"),
    ("£ GBP", "pound gbp", "GBP", "1"),
    ("¥ JPY", "yen jpy", "JPY", "1"),
    ("₹ INR", "rupee inr", "INR", "1"),
    ("CNY RMB", "yuan cny rmb", "CNY", "1"),
    ("₩ KRW", "won krw", "KRW", "1"),
    ("CHF", "franc chf", "CHF", "1"),
)
_TEMPERATURES = (
    ("°C C degC ℃", ("celsius", "centigrade"), "1", "273.15"),
    ("°F F degF ℉", ("fahrenheit",), "5/9", "459.67*5/9"),
    ("°K", (), "1", "0"),
)
_POWERS_IN_WORDS = (
    (re.compile(r"^(?:square|sq\.?)\s*(.+)$", re.IGNORECASE), 2),
    (re.compile(r"^(?:cubic|cu\.?)\s+(.+)$", re.IGNORECASE), 3),
    (re.compile(r"^(.+?)\s+squared$", re.IGNORECASE), 2),
    (re.compile(r"^(.+?)\s+cubed$", re.IGNORECASE), 3),
)
_WORD_POWER = re.compile(r"\b(square|cubic)\s+([a-z]+)|\b([a-z]+)\s+(squared|cubed)\b", re.IGNORECASE)
_FACTOR = re.compile(
    r"([^\W\d_]+\$?|[°℃℉]\s?[CFK]?|[$€£¥₹₩¢'\"])(?:\s*(?:\^|\*\*)\s*[({]?\s*([+-]?\d)\s*[)}]?|([23]|-[1-4]))?"
)
_GENERIC = re.compile(
    r"(?:sq(?:uare|\.)?\s+|cubic\s+)?units?(?:\s+(?:squared|cubed)|\^?[({]?[23][)}]?)?", re.IGNORECASE
)
_SEPARATORS = re.compile(r"\s*[·*×⋅]\s*|\s+|(?<=\w)-(?=[^\W\d])")
_PER = re.compile(r"\s*/\s*|\s+per\s+|^per\s+", re.IGNORECASE)
MAX_UNIT_CHARS = 48
MAX_READINGS = 12


def _number(text: str) -> Fraction:
    """A factor of the tables: a decimal, a quotient, a product, a multiple of pi."""
    value = Fraction(1)
    for part in text.split("*"):
        quotient = [_atom(piece) for piece in part.split("/")]
        value *= quotient[0]
        for divisor in quotient[1:]:
            value /= divisor
    return value


def _atom(text: str) -> Fraction:
    return Fraction(text[:-2] or "1") * Fraction(math.pi) if text.endswith("pi") else Fraction(text)


def _dimensions(text: str) -> Dimensions:
    powers: dict[str, int] = {}
    for part in text.split():
        match = re.fullmatch(r"([A-Za-z]+)(-?\d)?", part)
        assert match is not None
        powers[match[1]] = powers.get(match[1], 0) + int(match[2] or 1)
    return tuple(sorted(powers.items()))


def _tables() -> tuple[dict[str, list[Unit]], dict[str, list[Unit]]]:
    symbols: dict[str, list[Unit]] = {}
    names: dict[str, list[Unit]] = {}
    for marks, words, dimensions, factor in _PLAIN:
        unit = Unit(_dimensions(dimensions), _number(factor))
        for mark in marks.split():
            symbols.setdefault(mark, []).append(unit)
        for word in words.split():
            names.setdefault(word, []).append(unit)
    for marks, kinds, factor, offset in _TEMPERATURES:
        unit = Unit((("K", 1),), _number(factor), _number(offset))
        for mark in marks.split():
            symbols.setdefault(mark, []).append(unit)
        for kind in kinds:
            names[kind] = names[f"degree {kind}"] = names[f"degrees {kind}"] = [unit]
        names["degree"] = [*names.get("degree", []), unit]
        symbols["°"] = [*symbols.get("°", []), unit]
    for marks, words, dimensions, factor in _PREFIXED:
        dims, size = _dimensions(dimensions), _number(factor)
        for mark in marks.split():
            symbols.setdefault(mark, []).append(Unit(dims, size))
            for prefix, power in _PREFIXES.items():
                if prefix + mark not in symbols:
                    symbols[prefix + mark] = [Unit(dims, size * Fraction(10) ** power)]
        for word in words.split():
            names.setdefault(word, []).append(Unit(dims, size))
            for prefix, power in _PREFIX_NAMES.items():
                names.setdefault(prefix + word, []).append(Unit(dims, size * Fraction(10) ** power))
    return symbols, names


_SYMBOLS, _NAMES = _tables()
_LOOSE = {
    "KM": "km",
    "Km": "km",
    "CM": "cm",
    "Cm": "cm",
    "MM": "mm",
    "KG": "kg",
    "Kg": "kg",
    "ML": "mL",
    "Ml": "mL",
    "SEC": "s",
    "Sec": "s",
    "KW": "kW",
    "Kw": "kW",
    "KWH": "kWh",
    "HZ": "Hz",
    "hz": "Hz",
    "LB": "lb",
    "LBS": "lb",
    "FT": "ft",
    "MPH": "mph",
    "KMH": "kmh",
    "secs": "s",
    "Hr": "h",
    "Hrs": "h",
    "Min": "min",
    "Mins": "min",
    "MIN": "min",
}


@lru_cache(maxsize=2_048)
def read_unit(text: str) -> tuple[Unit, ...]:
    """All readings of a unit's text; empty if it is not a unit.

    ``km/h``, ``m s^-2``, ``kg·m^2``, ``square metres``, ``degrees Celsius``; :data:`GENERIC` for "units".
    """
    text = " ".join(text.strip().strip("()[]").split())
    if not text or len(text) > MAX_UNIT_CHARS:
        return ()
    if _GENERIC.fullmatch(text):
        return (GENERIC,)
    if simple := _one(text):
        return tuple(simple)
    for pattern, power in _POWERS_IN_WORDS:
        if (match := pattern.match(text)) and (found := _one(match[1])):
            return tuple(_powered(unit, power) for unit in found)
    return tuple(islice(_compound(text), MAX_READINGS))


def _one(name: str) -> list[Unit]:
    """A symbol or a name alone."""
    if found := _SYMBOLS.get(name) or _SYMBOLS.get(_LOOSE.get(name, "")):
        return found
    low = name.lower()
    singular = low[:-1] if low.endswith("s") else low
    return _NAMES.get(low) or _NAMES.get(singular) or (_SYMBOLS.get(name.replace(" ", ""), []) if "°" in name else [])


def is_symbol(text: str) -> bool:
    """Whether a text is literally a unit's symbol, case included."""
    return text in _SYMBOLS


def _powered(unit: Unit, power: int) -> Unit:
    return Unit(
        tuple((name, exponent * power) for name, exponent in unit.dimensions if exponent * power), unit.factor**power
    )


def _compound(text: str) -> Iterator[Unit]:
    text = _WORD_POWER.sub(lambda m: f"{m[2] or m[3]}^{2 if (m[1] or m[4])[:2].lower() == 'sq' else 3}", text)
    over = _PER.split(text)
    if len(over) > 4 or any(not part.strip() for part in over[1:]):
        return
    choices: list[list[Unit]] = []
    for number, part in enumerate(over):
        for factor in filter(None, _SEPARATORS.split(part.strip(" ()"))):
            match = _FACTOR.fullmatch(factor)
            found = _one(match[1].strip()) if match else []
            if match is None or not found or len(choices) == 6:
                return
            power = int(match[2] or match[3] or 1) * (-1 if number else 1)
            choices.append([_powered(unit, power) for unit in found[:3]])
    if choices:
        for units in product(*choices):
            yield _multiplied(units)


def _multiplied(units: tuple[Unit, ...]) -> Unit:
    powers: dict[str, int] = {}
    factor = Fraction(1)
    for unit in units:
        factor *= unit.factor
        for name, exponent in unit.dimensions:
            powers[name] = powers.get(name, 0) + exponent
    return Unit(tuple(sorted((name, power) for name, power in powers.items() if power)), factor)
