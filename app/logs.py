"""Logs: one line a record on stderr, as text or JSON, with the id of the trace it is about."""

from __future__ import annotations

import json
import logging
import re
import sys
import time

_ID = re.compile(r"\b(tr_[0-9a-z]{20})\b")


class LineFormatter(logging.Formatter):
    """Time, level and message in one line; what has line breaks (a stack) is folded into it."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += " | " + self.formatException(record.exc_info)
        moment = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"
        if self._as_json:
            line = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": message}
            found = _ID.search(message)
            if found:
                line["trace"] = found[1]
            return json.dumps(line)
        return f"{moment} {record.levelname:<7} {record.name}: {plain(message)}"


def plain(text: str) -> str:
    """`text` on one line that no terminal takes for a command: control, format and separator characters escaped."""
    folded = text.replace("\r\n", "\n").replace("\n", " ⏎ ")
    return "".join(char if char == " " or char.isprintable() else ascii(char)[1:-1] for char in folded)


def configure(log_format: str, level: str) -> None:
    """Send every logger's records to stderr in one form; uvicorn's access lines stay out (there are metrics)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(as_json=log_format == "json"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("omni_r1").setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
