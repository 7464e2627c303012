"""`omni-r1 serve`: the studio in this process, until Ctrl-C or SIGTERM. Returns app.main's exit code."""

from __future__ import annotations

import logging
import signal
import sys
from argparse import Namespace

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_FAILED, CommandError
from app.common import logs
from app.common.settings import SettingsError, read_settings
from model import log_lines


def serve(args: Namespace) -> int:
    """Reads the settings (options override the environment) and serves; returns 0 after a signal, 2 on failure."""
    logs.begin()
    names = ("home", "host", "port", "device", "checkpoint")
    try:
        settings = read_settings(**{name: getattr(args, name) for name in names if getattr(args, name) is not None})
    except SettingsError as error:
        if log_lines.in_json():
            logs.fatal(str(error))
            return EXIT_BAD_INPUT
        raise CommandError(str(error), EXIT_BAD_INPUT) from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the server takes the signals over
    from app import main

    try:
        return main.serve(settings)
    except KeyboardInterrupt:  # interrupted before the server handled signals
        return 0
    except Exception:
        if not log_lines.in_json():
            raise
        logging.getLogger("omni_r1.server").critical("the server failed", exc_info=True)
        return EXIT_FAILED
