"""Options of a question and their labels in any notation: "(B)", "B.", "Option b", "2", "ii", "B) red"."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

LETTERS = "ABCDEFGHIJ"
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
_DRESS = r"(?:(?:the\s+)?(?:option|choice|answer|letter|alternative|label)\s*:?\s*)?"
_LABEL = re.compile(rf"{_DRESS}[(\[{{<]?\s*([A-Za-z]{{1,4}}|\d{{1,2}})\s*[)\]}}>.:]{{0,2}}", re.IGNORECASE)
_DRESSED = re.compile(
    rf"{_DRESS}[(\[]\s*([A-Za-z]|[ivxIVX]{{1,4}}|\d{{1,2}})\s*[)\]][.:]?\s*[-:]?\s*(\S.*)", re.IGNORECASE | re.DOTALL
)
_LABEL_FIRST = re.compile(r"([A-Za-z]|[ivxIVX]{1,4}|\d{1,2})\s*(?:[).:]+\s*|\s-\s*|,\s+)(\S.*)", re.DOTALL)
_NAMED = re.compile(
    r"(?:option|choice|alternative)\s+\(?([A-Za-z]|\d{1,2})\)?[.:,]?\s+[-(]?\s*(\S.*?)\)?", re.IGNORECASE | re.DOTALL
)
_LABEL_LAST = re.compile(
    r"(\S.*?)(?:\s*\(\s*(?:option\s+|choice\s+)?|,?\s+(?:option|choice)\s+)([A-Ja-j])\s*\)?", re.IGNORECASE | re.DOTALL
)
_BLANK = re.compile(r"([A-Ja-j]|\d{1,2})\s+(\S.*)", re.DOTALL)
_NTH = re.compile(
    r"(?:the\s+)?(first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)\s+(?:option|choice|answer|one)",
    re.IGNORECASE,
)
_NTHS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_BETWEEN = re.compile(r"\s*(?:,\s*and|,|;|&|/|\band\b|\+)\s*", re.IGNORECASE)
_FILLERS = re.compile(
    r"^(?:(?:it|this|that)\s+(?:is|would\s+be)\s+)?(?:the|a|an)?\s*|\s+(?:one|option|choice|colou?r|answer)$",
    re.IGNORECASE,
)
_REASON = re.compile(r"(?:because|since|as|for|so)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Named:
    """An option as named in a text: its label, its text, or both."""

    label: str
    text: str


@lru_cache(maxsize=4_096)
def read_label(text: str) -> str | None:
    """Parse a label as an upper-case letter from A to J; None for anything else."""
    match = _LABEL.fullmatch(text.strip())
    if match is None or len(match[1]) != 1 or match[1].upper() not in LETTERS:
        return None
    return match[1].upper()


@lru_cache(maxsize=4_096)
def read_named(text: str) -> Named | None:
    """Parse a letter with a text after it, ``(B) red``, ``Option B: red``, or before it, ``red (B)``; else None."""
    text = text.strip()
    match = _DRESSED.fullmatch(text) or _LABEL_FIRST.fullmatch(text) or _NAMED.fullmatch(text)
    if match is not None:
        label, rest = match[1], match[2]
    elif (named := _LABEL_LAST.fullmatch(text)) is not None:
        label, rest = named[2], named[1]
    else:
        return None
    if read_label(rest) is not None:  # "A, C" names two options
        return None
    return Named(label.upper() if len(label) == 1 else label, rest.strip().rstrip("."))


class Options:
    """The options of one question."""

    def __init__(
        self, choices: Sequence[str] | Mapping[str, str], same: Callable[[str, str], bool], bare: Callable[[str], str]
    ) -> None:
        """Label the choices.

        Args:
            choices: the texts in order, or by their labels.
            same: whether two texts mean the same.
            bare: removes markup from a text.
        """
        self._same = same
        labels = list(choices) if isinstance(choices, Mapping) else []
        texts = list(choices.values()) if isinstance(choices, Mapping) else list(choices)
        self._labels = [label.strip().strip("()[].:").casefold() for label in labels]
        self._count = min(len(texts), 10)
        self.texts = [self._without_label(bare(text), k) for k, text in enumerate(texts)]

    def _without_label(self, text: str, index: int) -> str:
        """An option's text without the label that data sets often prepend."""
        named = read_named(text)
        return named.text if named is not None and self.index(named.label) == index else text

    def index(self, label: str) -> int | None:
        """Index of a label: the option's own, else A-J, 1-10, i-x."""
        label = label.strip().casefold()
        if self._labels:
            return self._labels.index(label) if label in self._labels else None
        index = -1
        if label.isdigit():
            index = int(label) - 1
        elif len(label) == 1 and label.upper() in LETTERS and not (label == "i" and self._count < 9):
            index = LETTERS.index(label.upper())
        elif label in _ROMAN:
            index = _ROMAN.index(label)
        return index if 0 <= index < self._count else None

    def find(self, text: str) -> frozenset[int] | None:
        """The options that a text names; empty if its label contradicts its text; None if it names none."""
        if (by_text := self._by_text(text)) is not None:
            return frozenset({by_text})
        if (match := _LABEL.fullmatch(text.strip())) and (index := self.index(match[1])) is not None:
            return frozenset({index})
        if (named := read_named(text)) is not None and (index := self.index(named.label)) is not None:
            return frozenset({index}) if self._fits(index, named.text) else frozenset()
        if (match := _NTH.fullmatch(text)) and (position := _NTHS.index(match[1].lower())) < self._count:
            return frozenset({position})
        if (match := _BLANK.fullmatch(text)) and (index := self._by_text(match[2])) is not None:  # "B blue"
            return frozenset({index}) if self.index(match[1]) == index else frozenset()
        return self._several(text)

    def _by_text(self, text: str) -> int | None:
        for wanted in dict.fromkeys((text, _FILLERS.sub("", text).strip())):
            exact = [k for k, option in enumerate(self.texts) if option.casefold() == wanted.casefold()]
            if exact:
                return exact[0]
        found = [k for k, option in enumerate(self.texts) if self._same(text, option)]
        return found[0] if len(found) == 1 else None

    def _fits(self, index: int, text: str) -> bool:
        """Whether a text after a label is the option's text, or gives a reason for it."""
        if self._by_text(text) == index:
            return True
        others = [option for k, option in enumerate(self.texts) if k != index]
        names_other = any(
            re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text, re.IGNORECASE) for option in others if option
        )
        return not names_other and _REASON.match(text) is not None

    def _several(self, text: str) -> frozenset[int] | None:
        """``A and C``, ``A, C``, ``AC``."""
        parts = (
            list(text) if re.fullmatch(r"[A-J]{2,6}", text) and len(set(text)) == len(text) else _BETWEEN.split(text)
        )
        if not 2 <= len(parts) <= 10:
            return None
        found = [self.index(match[1]) for part in parts if (match := _LABEL.fullmatch(part.strip()))]
        if len(found) != len(parts) or None in found:
            return None
        return frozenset(index for index in found if index is not None)
