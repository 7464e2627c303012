"""Whether two short texts mean the same: ordered checks, the first applicable one decides."""

from __future__ import annotations

import re
from typing import Literal

from training.scoring.answers.chemistry import read_atoms
from training.scoring.answers.formulas import (
    Formula,
    read_formula,
    read_side,
    relation_parts,
    same_formula,
    same_relation,
)
from training.scoring.answers.groups import Group, is_packed, read_group, same_group
from training.scoring.answers.moments import ratio_value, read_moment, same_moment
from training.scoring.answers.numerals import same_value
from training.scoring.answers.options import LETTERS, read_label
from training.scoring.answers.quantities import read_quantity, same_quantity
from training.scoring.answers.units import is_symbol, read_unit
from training.scoring.answers.words import polarity, same_words

Check = Literal["exact", "number", "unit", "date", "time", "ratio", "set", "formula", "text"]
Decision = tuple[bool, Check]

MAX_COMPARISONS = 600  # per answer, including its items
MAX_NESTING = 3
_NAME = re.compile(
    r"[^\W\d_](?:_\w{1,6}|'{1,3})?(?:\([^()]{1,12}\))?|[^\W\d_]+(?:[ '-][^\W\d_]+){0,7}|∠\s?[A-Z]{1,3}|\|[A-Z]{2}\|"
)
_DECIMAL = re.compile(r"[-+]?\d*\.\d{4,}")
_ROMAN = re.compile(r"M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})")
_ROMAN_DIGITS = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_ORDINARY = frozenset({"no", "on", "in", "so", "he", "as", "is", "us", "hi", "of", "up", "cap", "can", "ph"})


class Comparison:
    """Compares texts with a budget, so that nested groups of items terminate."""

    def __init__(self) -> None:
        self.details: dict[str, str] = {}
        self._left = MAX_COMPARISONS
        self._nesting = 0

    def same(self, one: str, other: str) -> bool:
        """Whether two texts mean the same."""
        self._left -= 1
        if self._left < 0 or self._nesting >= MAX_NESTING:
            return one == other
        details, self.details = self.details, {}
        self._nesting += 1
        try:
            return self.decide(one, other)[0]
        finally:
            self._nesting -= 1
            self.details = details

    def decide(self, given: str, wanted: str) -> Decision:
        """Whether an answer means the reference, and the deciding check."""
        if given == wanted:
            return True, "exact"
        if given.casefold() == wanted.casefold():
            return _despite_case(given, wanted)
        if (a := polarity(given)) is not None and (b := polarity(wanted)) is not None:
            return a == b, "text"
        for check in (_roman, self._moments, self._equations, self._quantities, self._groups, self._formulas):
            if (decided := check(given, wanted)) is not None:
                return decided
        one, other = read_label(given), read_label(wanted)
        if one is not None and one == other:
            return True, "text"
        return same_words(given, wanted) and _keeps_brackets(given, wanted), "text"

    def _note(self, name: str, given: object, wanted: object) -> None:
        self.details |= {f"answer_{name}": str(given), f"reference_{name}": str(wanted)}

    def _moments(self, given: str, wanted: str) -> Decision | None:
        a, b = read_moment(given), read_moment(wanted)
        if a is None and b is None:
            return None
        same = same_moment(given, wanted)
        if same is None:
            return self._ratio_as_number(given, wanted)
        kind = a[0] if a is not None else b[0] if b is not None else "date"
        self._note(kind, given, wanted)
        return same, kind

    def _ratio_as_number(self, given: str, wanted: str) -> Decision | None:
        """``3:2`` against ``1.5`` and ``3/2``."""
        values = []
        for text in (given, wanted):
            quantity = read_quantity(text)
            values.append(quantity.value if quantity is not None and quantity.is_bare else ratio_value(text))
        if values[0] is None or values[1] is None:
            return None
        self._note("value", *values)
        return same_value(values[0], values[1]), "ratio"

    def _quantities(self, given: str, wanted: str) -> Decision | None:
        a, b = read_quantity(given), read_quantity(wanted)
        if a is None or b is None:
            return None
        right, check = same_quantity(a, b)
        self._note("value", a.describe(), b.describe())
        if not right and is_packed(given) and is_packed(wanted):
            return self._groups(given, wanted)
        return right, check

    def _groups(self, given: str, wanted: str) -> Decision | None:
        a, b = read_group(given), read_group(wanted)
        if a is None and b is None:
            return None
        if a is None or b is None:
            return _one_sided(given if a is None else wanted, a or b)
        self._note("items", " | ".join(a.items), " | ".join(b.items))
        if same_group(a, b, self.same):
            return True, "set"
        if a.name and b.name and same_relation(given, wanted):
            return True, "formula"
        if "list" in (a.kind, b.kind) and a.kind == b.kind and not _has_digits(given + wanted):
            return same_words(given, wanted), "text"
        return False, "set"

    def _equations(self, given: str, wanted: str) -> Decision | None:
        signs, other_signs = relation_parts(given)[0], relation_parts(wanted)[0]
        if "=" not in (*signs, *other_signs) or {*signs, *other_signs} - {"="} or _is_list(given) or _is_list(wanted):
            return None
        if len(signs) > 5 or len(other_signs) > 5:
            return False, "formula"
        (names, value), (other_names, other_value) = self._read_equation(given), self._read_equation(wanted)
        if value is not None and other_value is not None:
            apart = names and other_names and not self._share_name(names, other_names)
            if not apart and ((right := self.same(value, other_value)) or not (signs and other_signs)):
                return right, "formula"
        same = same_relation(given, wanted)
        return (
            (bool(same), "formula") if same is not None or value is None or other_value is None else (False, "formula")
        )

    def _read_equation(self, text: str) -> tuple[list[str], str | None]:
        """The names that an equation gives a value, and the value: None if its sides disagree or both are names."""
        parts = relation_parts(text)[1]
        if len(parts) == 1:
            return [], text
        names = [part for part in parts if _is_name(part)]
        values = [part for part in parts if part and part not in names]
        if not values or "" in parts:
            return names, None
        agree = all(self.same(values[0], value) for value in values[1:])
        return names, values[-1] if agree else None

    def _share_name(self, names: list[str], others: list[str]) -> bool:
        """Whether two equations may concern the same thing: words may, different variables do not."""
        if any(a == b for a in names for b in others):
            return True
        return any(len(a) > 3 or len(b) > 3 for a in names for b in others) or self.same(names[0], others[0])

    def _formulas(self, given: str, wanted: str) -> Decision | None:
        atoms = read_atoms(given), read_atoms(wanted)
        if atoms[0] and atoms[1] and any(map(_is_molecule, (given, wanted))):
            self._note(
                "atoms", *(" ".join(f"{name}{count or ''}" for name, count in found) for found in atoms if found)
            )
            return atoms[0] == atoms[1], "formula"
        if relation_parts(given)[0] or relation_parts(wanted)[0]:
            same = same_relation(given, wanted)
            return None if same is None else (same, "formula")
        one, other = _formula(given), _formula(wanted)
        if one is None or other is None:
            return None
        rounded = any(_DECIMAL.fullmatch(text) for text in (given, wanted)) and _is_irrational(one, other)
        same = same_formula(one, other, rounded=rounded)
        return None if same is None else (same, "formula")


def _roman(given: str, wanted: str) -> Decision | None:
    """``IV`` against 4."""
    for text, other in ((given, wanted), (wanted, given)):
        if other.isdecimal() and len(other) < 5 and len(text) > 1 and _ROMAN.fullmatch(text):
            values = [_ROMAN_DIGITS[char] for char in text]
            signs = (-1 if value < after else 1 for value, after in zip(values, [*values[1:], 0], strict=True))
            return sum(sign * value for sign, value in zip(signs, values, strict=True)) == int(other), "number"
    return None


def _formula(text: str) -> Formula | None:
    """A formula; a number or single variable only if the other side is a formula."""
    found = read_formula(text)
    if found is not None or len(text) > 40:
        return found
    quantity = read_quantity(text)
    if quantity is not None and not (quantity.noun or quantity.units):
        value = quantity.value / 100 if quantity.percent else quantity.value
        return Formula(("number", value), frozenset())
    return read_side(text) if len(text) == 1 else None


def _is_irrational(one: Formula, other: Formula) -> bool:
    if one.variables or other.variables:
        return False
    try:
        return any(isinstance(formula.value({}), complex) for formula in (one, other))
    except (ValueError, ArithmeticError):
        return False


def _despite_case(given: str, wanted: str) -> Decision:
    """Equal up to case: wrong if case carries meaning, as in mW and MW, CO and Co, x and X."""
    if len(given) == 1 and given.isalpha():
        return given.upper() in LETTERS, "formula" if given.upper() not in LETTERS else "exact"
    if given.casefold() not in _ORDINARY and (a := read_atoms(given)) and (b := read_atoms(wanted)) and a != b:
        return False, "formula"
    if is_symbol(given) and is_symbol(wanted) and read_unit(given) != read_unit(wanted):
        return False, "unit"
    if (a_quantity := read_quantity(given)) is not None and (b_quantity := read_quantity(wanted)) is not None:
        return same_quantity(a_quantity, b_quantity)
    variables = _variables(given), _variables(wanted)
    if None not in variables and variables[0] != variables[1] and not (read_atoms(given) or read_atoms(wanted)):
        return False, "formula"
    return True, "exact"


def _variables(text: str) -> frozenset[str] | None:
    """The variables of a formula or of an equation's sides; None for words."""
    sides = relation_parts(text)[1]
    found = [read_formula(text)] if len(sides) == 1 else [read_side(side) for side in sides]
    return None if None in found else frozenset().union(*(one.variables for one in found if one is not None))


def _one_sided(single: str, group: Group | None) -> Decision | None:
    """A single value against a group: wrong, unless the group may be words with a comma."""
    if group is not None and (group.kind != "list" or _has_digits(single)):
        if group.kind == "set" and len(group.items) == 1:
            return None
        return False, "set"
    return None


def _is_list(text: str) -> bool:
    group = read_group(text)
    return group is not None and group.kind in ("list", "either", "union")


def _has_digits(text: str) -> bool:
    return any(map(str.isdigit, text))


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and read_quantity(text) is None


def _is_molecule(text: str) -> bool:
    return _has_digits(text) or (any(map(str.islower, text)) and sum(map(str.isupper, text)) > 1)


def _keeps_brackets(given: str, wanted: str) -> bool:
    """Bracket kinds matter around numbers."""
    if not _has_digits(given):
        return True
    brackets = [re.sub(r"[^()\[\]{}]", "", text) for text in (given, wanted)]
    return brackets[0] == brackets[1] or not (brackets[0] and brackets[1])
