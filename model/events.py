"""From tokens to the typed events of a trace, in token order.

:class:`Narrator` follows one sequence: it feeds the token stream to the template's parser and turns what the parser
finds into :class:`TraceEvent`s, asks for pictures to be decoded, and holds back the events behind an unfinished final
picture until it is there. It decodes nothing itself and knows no thread, no URL and no store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event of a trace as the API names it; `data` lacks only what the server adds (image_id, url)."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)
