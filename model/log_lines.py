"""Log lines: one line per record, as text or JSON, the same in every process. Standard library only."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from contextvars import ContextVar
from types import TracebackType
from typing import TextIO

_IDS = {"trace": re.compile(r"\b(tr_[0-9a-z]{20})\b"), "job": re.compile(r"\b(job_[0-9a-z]{20})\b")}
# Control characters, line and paragraph separators, direction marks, surrogates.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# Id of the request being handled; added to every record.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def escaped(text: str) -> str:
    r"""`text` in one line without terminal control sequences: line breaks become ⏎, other control characters \x1b."""
    folded = text.replace("\r\n", "\n").replace("\n", " ⏎ ")
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], folded)


class LineFormatter(logging.Formatter):
    """Formats time, level, logger and message in one line; a traceback is folded into it, or is a key of the JSON.

    A record's `fields` (a dict, by `extra`) are keys of the JSON as well.
    """

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, with the id of the request that it belongs to."""
        try:
            message = record.getMessage().rstrip("\n")
        except (TypeError, ValueError, KeyError):  # wrong arguments must not lose the line
            message = f"{record.msg} {record.args}"
        stack = self.formatException(record.exc_info) if record.exc_info else record.stack_info
        moment = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"
        request = request_id.get()
        if not self.as_json:
            text = message if not stack else f"{message} | {stack}"
            end = f" request={request}" if request else ""
            return f"{moment} {record.levelname:<7} {record.name}: {escaped(text)}{end}"
        line = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": message}
        if request:
            line["request_id"] = request
        for name, pattern in _IDS.items():
            found = pattern.search(message)
            if found:
                line[name] = found[1]
        if stack:
            line["exception"] = stack
        return json.dumps(line | getattr(record, "fields", {}), default=str)


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment; a stream kept from the start may be closed by then."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(log_format: str, level: str, handler: logging.Handler | None = None) -> None:
    """Log every logger's records, warnings and (as JSON) uncaught exceptions in one format to `handler`, or stderr.

    Raises:
        ValueError: for an unknown level.
    """
    as_json = log_format == "json"
    handler = handler or _ToStderr()
    handler.setFormatter(LineFormatter(as_json=as_json))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("omni_r1").setLevel(level.upper())
    logging.captureWarnings(True)
    if as_json:
        sys.excepthook = _uncaught
        threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def configure_from_environment(handler: logging.Handler | None = None) -> None:
    """Configure the log of a child process like the server's."""
    given = os.environ.get
    configure(given("OMNI_R1_LOG_FORMAT", "text").lower(), given("OMNI_R1_LOG_LEVEL", "info"), handler)


def in_json() -> bool:
    """Whether `configure` chose JSON."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    return any(isinstance(formatter, LineFormatter) and formatter.as_json for formatter in formatters)


def _uncaught(kind: type[BaseException], error: BaseException | None, stack: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit | KeyboardInterrupt):
        found = (kind, error or kind(), stack)
        logging.getLogger("omni_r1").critical("%s", f"{kind.__name__}: {error}", exc_info=found)
