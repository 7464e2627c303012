"""Encoding of server-sent events, and the way back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def encode(data: Mapping[str, Any]) -> str:
    """One line of JSON, ASCII only (some clients also split lines at U+2028)."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def frame(seq: int, type_: str, data: str) -> bytes:
    """The bytes of one event, identical for live and stored events."""
    return f"id: {seq}\nevent: {type_}\ndata: {data}\n\n".encode()


def events_of(chunk: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Type and data of each event in whole frames; comments are passed over."""
    for block in chunk.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            yield fields["event"], json.loads(fields["data"])
