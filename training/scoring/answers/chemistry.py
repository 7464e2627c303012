"""Chemical formulas: their atoms, counted. Case matters: CO is carbon monoxide, Co is cobalt."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

_ELEMENTS = frozenset(
    [
        "H",
        "He",
        "Li",
        "Be",
        "B",
        "C",
        "N",
        "O",
        "F",
        "Ne",
        "Na",
        "Mg",
        "Al",
        "Si",
        "P",
        "S",
        "Cl",
        "Ar",
        "K",
        "Ca",
        "Sc",
        "Ti",
        "V",
        "Cr",
        "Mn",
        "Fe",
        "Co",
        "Ni",
        "Cu",
        "Zn",
        "Ga",
        "Ge",
        "As",
        "Se",
        "Br",
        "Kr",
        "Rb",
        "Sr",
        "Y",
        "Zr",
        "Nb",
        "Mo",
        "Tc",
        "Ru",
        "Rh",
        "Pd",
        "Ag",
        "Cd",
        "In",
        "Sn",
        "Sb",
        "Te",
        "I",
        "Xe",
        "Cs",
        "Ba",
        "La",
        "Ce",
        "Pr",
        "Nd",
        "Pm",
        "Sm",
        "Eu",
        "Gd",
        "Tb",
        "Dy",
        "Ho",
        "Er",
        "Tm",
        "Yb",
        "Lu",
        "Hf",
        "Ta",
        "W",
        "Re",
        "Os",
        "Ir",
        "Pt",
        "Au",
        "Hg",
        "Tl",
        "Pb",
        "Bi",
        "Po",
        "At",
        "Rn",
        "Fr",
        "Ra",
        "Ac",
        "Th",
        "Pa",
        "U",
        "Np",
        "Pu",
        "Am",
        "Cm",
        "Bk",
        "Cf",
        "Es",
        "Fm",
        "Md",
        "No",
        "Lr",
    ]
)
_ATOM = re.compile(r"([A-Z][a-z]?)_?(\d{0,3})|(\()|\)_?(\d{0,3})")
_CHARGE = re.compile(r"\^?\(?(\d?[+-])\)?$")


@lru_cache(maxsize=4_096)
def read_atoms(text: str) -> tuple[tuple[str, int], ...] | None:
    """Count the atoms of a chemical formula and its charge; None if it is none. Case matters: CO is not Co."""
    text = text.replace(" ", "") if "_" in text else text
    if not 1 <= len(text) <= 40 or (not text[0].isupper() and text[0] != "("):
        return None
    charge = _CHARGE.search(text)
    body = text[: charge.start()] if charge else text
    stack: list[Counter[str]] = [Counter()]
    position = 0
    while position < len(body):
        match = _ATOM.match(body, position)
        if match is None:
            return None
        if match[3]:
            stack.append(Counter())
        elif match[1] is None:
            if len(stack) == 1 or len(stack) > 4:
                return None
            inner = stack.pop()
            for element, count in inner.items():
                stack[-1][element] += count * int(match[4] or 1)
        elif match[1] in _ELEMENTS:
            stack[-1][match[1]] += int(match[2] or 1)
        else:
            return None
        position = match.end()
    if len(stack) != 1 or not stack[0]:
        return None
    atoms = sorted(stack[0].items())
    return (*atoms, (charge[1], 0)) if charge else tuple(atoms)
