"""The figures of a GPU report as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def table(results: Mapping[str, Any], parts: Iterable[str]) -> str:
    """Every number as one row."""
    lines = [
        f"{results['machine']['device']}, torch {results['machine']['torch']}",
        "",
        "| part | figure | |",
        "|---|---|---|",
    ]

    def walk(part: str, name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(part, f"{name} {key}".strip(), inner)
        else:
            lines.append(f"| {part} | {name} | {f'{value:,.4g}' if isinstance(value, float) else value} |")

    for part in parts:
        walk(part, "", results.get(part, {"not run": ""}))
    return "\n".join(lines) + "\n"
