"""Uploaded training files: validated line by line, stored by content under `OMNI_R1_HOME/uploads`. Blocking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.contract.problems import Problem, field_problem
from app.storage.images import move_durably
from app.storage.uploads import Upload
from training.data.rows import SampleError, parse_line

FOLDER = "uploads"
MAX_DATASET_BYTES = 20_000_000


class DatasetStore:
    """The uploaded training files of one home."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def take(self, upload: Upload) -> dict[str, Any]:
        """Store a jsonl file; returns its `path` for `data.path` of a job. Errors name the invalid line."""
        if upload.size > MAX_DATASET_BYTES:
            limit = f"uploads are limited to {MAX_DATASET_BYTES} bytes; put larger files in OMNI_R1_HOME"
            raise Problem("body_too_large", limit)
        rows = _count_rows(upload.path)
        path = Path(FOLDER) / f"{upload.digest.hex()[:32]}.jsonl"
        if not (self._home / path).is_file():
            move_durably(upload.path, self._home / path)
        return {"path": str(path), "rows": rows, "bytes": upload.size}


def _count_rows(path: Path) -> int:
    rows = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
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
