"""Steps of a chain of thought as instructions, the form in which bases learn to draw."""

from __future__ import annotations

import re

_SUBJECT = re.compile(r"^(?:(?:first|now|next|then|so|finally),?\s+)?I\s+(?:now\s+|then\s+|will\s+)?", re.IGNORECASE)
_LABEL = re.compile(r"[^:]*\w:\s+(?=I\s)")  # "Number two: "


def as_instruction(text: str) -> str:
    """Rephrase a first-person thought as an instruction.

    >>> as_instruction("It is at 4. Link 2: I draw a line from red to blue.")
    'Link 2: draw a line from red to blue.'
    """
    parts = re.split(r"(?<=[.!?])\s+", text.strip())
    said = next((part for part in parts if re.search(r"\bI\s+\w", part)), parts[-1])
    label = match[0] if (match := _LABEL.match(said)) else ""
    said = said[len(label) :]
    said = _SUBJECT.sub("", said) if _SUBJECT.match(said) else re.sub(r"\s+I\s+(?=\w)", " ", said, count=1)
    said = label + said.rstrip(" .:") + "."
    return said[0].upper() + said[1:]
