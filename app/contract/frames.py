"""Encoding of server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def encode(data: Mapping[str, Any]) -> str:
    """One line of JSON, ASCII only (some clients also split lines at U+2028)."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def frame(seq: int, type_: str, data: str) -> bytes:
    """The bytes of one event, identical for live and stored events."""
    return f"id: {seq}\nevent: {type_}\ndata: {data}\n\n".encode()
