"""Words of the private dialect that this project once had, and has no more."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORST = re.compile(r"\b(told|whoever|what nobody|in work)\b", re.IGNORECASE)
HISTORY = {"docs/lab-log.md"}


def texts() -> list[Path]:
    found = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for house in ("app", "model", "training"):
        found += (ROOT / house).rglob("*.py")
    return found + [path for path in (ROOT / "static").rglob("*.js") if "swagger" not in path.parts]


def test_worst_words_are_gone() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        if str(path.relative_to(ROOT)) not in HISTORY
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if WORST.search(line)
    ]
    assert wrong == []
