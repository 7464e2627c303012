"""Fetches one checkpoint from the hub: ``python -m model.checkpoint.hub_child OWNER/NAME``.

:mod:`app.checkpoints.hub` starts it. Unlike a thread, a process can be killed at any moment, whatever the hub does. It
reports on stdout, one JSON object per line: ``{"bytes": n}`` as data arrives (0 once the files are listed), and finally
``{"folder": …}`` or ``{"error": {"code", "detail"}}``. It exits when its stdin closes, that is, with the server.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from model.checkpoint.shards import CheckpointError, fetch

REPORT_EVERY_S = 1.0


def main(repo_id: str) -> None:
    """Fetch a checkpoint; write its folder, or the error, as the last line of JSON to stdout."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _report({"folder": str(fetch(repo_id, tqdm_class=_progress()))})
    except CheckpointError as error:
        _report({"error": {"code": error.code, "detail": error.detail}})


def _report(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _progress() -> type:
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Progress(tqdm):
        """The hub client's progress bar as lines of JSON."""

        reported_at = 0.0

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            _report({"bytes": 0})

        def update(self, n: float | None = 1) -> Any:
            if time.monotonic() - Progress.reported_at > REPORT_EVERY_S:
                Progress.reported_at = time.monotonic()
                _report({"bytes": int(n or 0)})
            return super().update(n)

    return Progress


def _end_with_parent() -> None:
    while os.read(0, 1024):  # unbuffered: a lock held here would abort the interpreter's shutdown
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
