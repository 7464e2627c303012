"""Training files that were uploaded: checked line by line, kept by content under `OMNI_R1_HOME/uploads`. Blocking."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from app.artifacts import write_durably
from app.errors import Problem, field_problem
from training.rows import SampleError, parse_line

FOLDER = "uploads"
MAX_DATASET_BYTES = 20_000_000


class DatasetStore:
    """The uploads of one home."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def put(self, data: bytes) -> dict[str, Any]:
        """Keep a jsonl file; `path` is what `data.path` of a job may say. Names the line that is broken."""
        if len(data) > MAX_DATASET_BYTES:
            limit = (
                f"an upload may have {MAX_DATASET_BYTES} bytes; put a larger file below OMNI_R1_HOME and name its path"
            )
            raise Problem("body_too_large", limit)
        rows = _count_rows(data)
        path = Path(FOLDER) / f"{hashlib.sha256(data).hexdigest()[:32]}.jsonl"
        if not (self._home / path).is_file():
            write_durably(self._home / path, data)
        return {"path": str(path), "rows": rows, "bytes": len(data)}


def _count_rows(data: bytes) -> int:
    rows = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            parse_line(line, first=number == 1)
        except SampleError as error:
            raise field_problem("invalid", "body", f"line {number}: {error.detail}") from None
        rows += 1
    if not rows:
        raise field_problem("invalid", "body", "the file is empty")
    return rows
