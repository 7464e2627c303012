"""The server's log lines, and the one line with which it refuses to start. The form is :mod:`model.log_lines`."""

from __future__ import annotations

import json
import logging
import os
import sys

from model import log_lines
from model.log_lines import LineFormatter

FORMAT = "OMNI_R1_LOG_FORMAT"


def configure(log_format: str, level: str) -> None:
    """Send every logger's records to stderr in one form; uvicorn's access lines stay out (`app/http/access_log.py`)."""
    log_lines.configure(log_format, level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def begin() -> None:
    """Choose the form before the settings are read, so that their refusal has it."""
    given = next((value for name, value in os.environ.items() if name.upper() == FORMAT), "")
    configure("json" if given.strip().lower() == "json" else "text", "info")


def refuse(reason: str) -> None:
    """Say on stderr why the server does not start or go on."""
    if log_lines.in_json():
        logging.getLogger("omni_r1.server").critical("%s", reason)
    else:
        sys.stderr.write(f"omni-r1: {reason}\n")


def announce(url: str) -> None:
    """The first line on stdout: where the server answers."""
    words = f"Omni-R1 Studio: {url}  (Ctrl-C stops it)"
    if log_lines.in_json():
        record = logging.makeLogRecord({"name": "omni_r1.server", "levelname": "INFO", "levelno": 20, "msg": words})
        words = json.dumps(json.loads(LineFormatter(as_json=True).format(record)) | {"url": url})
    sys.stdout.write(words + "\n")
    sys.stdout.flush()
