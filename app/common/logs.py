"""The server's log output and its start-up errors. The format is :mod:`model.log_lines`."""

from __future__ import annotations

import json
import logging
import os
import sys

from model import log_lines
from model.log_lines import LineFormatter

FORMAT = "OMNI_R1_LOG_FORMAT"


def configure(log_format: str, level: str) -> None:
    """Send all records to stderr in one format, without uvicorn's access log (see `app/http/access_log.py`)."""
    log_lines.configure(log_format, level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def begin() -> None:
    """Choose the format before the settings are read, so that settings errors use it."""
    given = next((value for name, value in os.environ.items() if name.upper() == FORMAT), "")
    configure("json" if given.strip().lower() == "json" else "text", "info")


def fatal(reason: str) -> None:
    """Report on stderr why the server cannot start or continue."""
    if log_lines.in_json():
        logging.getLogger("omni_r1.server").critical("%s", reason)
    else:
        sys.stderr.write(f"omni-r1: {reason}\n")


def announce(url: str) -> None:
    """Print the server's URL, the first line on stdout."""
    words = f"Omni-R1 Studio: {url}  (Ctrl-C to stop)"
    if log_lines.in_json():
        record = logging.makeLogRecord({"name": "omni_r1.server", "levelname": "INFO", "levelno": 20, "msg": words})
        words = json.dumps(json.loads(LineFormatter(as_json=True).format(record)) | {"url": url})
    sys.stdout.write(words + "\n")
    sys.stdout.flush()
