"""Image placeholders in a text: ``<image_k>`` stands for image k, from 1. Knows no tokens or pixels.

split_places("Is <image_2> darker?", 2)  # [0, "Is ", 1, " darker?"]
"""

from __future__ import annotations

import re

_PLACE = re.compile(r"<image_([0-9]+)>")


class PlaceError(ValueError):
    """A text names a missing image."""


def place(number: int) -> str:
    """The placeholder of image `number`, from 1."""
    return f"<image_{number}>"


def split_places(text: str, count: int) -> list[str | int]:
    """Split a text with `count` images into pieces in reading order: text, or the index (from 0) of an image.

    Images without a placeholder come first. An image may have several placeholders.

    Raises:
        PlaceError: a placeholder names a missing image.
    """
    pieces: list[str | int] = []
    end = 0
    for match in _PLACE.finditer(text):
        number = int(match[1]) if len(match[1]) < 6 else 0
        if not 1 <= number <= count:
            given = "no image comes" if count == 0 else f"{count} image{'s' * (count > 1)} come{'s' * (count == 1)}"
            raise PlaceError(f"the text names {match[0][:24]}, and {given} with it")
        pieces += [text[end : match.start()], number - 1]
        end = match.end()
    pieces.append(text[end:])
    unplaced = [index for index in range(count) if index not in pieces]
    return [*unplaced, *(piece for piece in pieces if piece != "")]
