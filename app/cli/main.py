"""`omni-r1`: serve the studio, ask questions from a terminal, train and evaluate models, diagnose problems.

`ask`, `branch`, `why`, `task`, `export`, `checkpoints`, `jobs` and `train` use a running server over HTTP (OMNI_R1_URL,
default http://127.0.0.1:7860); `serve`, `evaluate`, `data`, `grade`, `train nano`, `convert`,
`calibrate` and `doctor` need none. Errors become one
line and an exit code; commands are imported when called, so that `--help` is instant.

Exit codes: 0 done, 1 failed, 2 bad input, 3 no server, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from app.cli.parser import build_parser
from app.cli.terminal import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NO_SERVER,
    CommandError,
    complain,
    message_of,
    one_line,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code; `argv` excludes the program's name."""
    try:
        args = build_parser().parse_args(argv)
        return cast(int, _load(args.run)(args))
    except SystemExit as end:  # argparse: --help, --version, a reported error
        return end.code if isinstance(end.code, int) else EXIT_FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED
    except CommandError as error:
        complain(str(error))
        return error.exit_code
    except BrokenPipeError:  # `omni-r1 ask … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except Exception as error:
        message, code = _explain(error)
        complain(message)
        return code


def _load(name: str) -> Callable[[argparse.Namespace], object]:
    module, _, function = name.partition(":")
    return cast(Callable[[argparse.Namespace], object], getattr(import_module(module), function))


def _explain(error: Exception) -> tuple[str, int]:
    """One line and the exit code for an unhandled error."""
    from app.client import (
        ApiError,
        BadInput,
        Conflict,
        MalformedAnswer,
        NotAllowed,
        NotFound,
        OmniError,
        ServerUnreachable,
    )

    if isinstance(error, ServerUnreachable):
        return f"{error}. Start one with `omni-r1 serve`, or set OMNI_R1_URL", EXIT_NO_SERVER
    elsewhere = "Another program may be running there; set OMNI_R1_URL to the studio's address"
    if isinstance(error, MalformedAnswer):
        return f"{error}. {elsewhere}", EXIT_NO_SERVER
    if isinstance(error, NotFound) and "code" not in error.problem:  # every 404 of the studio has one
        return f"{error}. {elsewhere}", EXIT_BAD_INPUT
    if isinstance(error, NotAllowed) and error.status == 401:
        return f"{error.title or error}. Set OMNI_R1_API_KEY to the server's key", EXIT_BAD_INPUT
    if isinstance(error, BadInput | NotFound | Conflict):
        return message_of(error), EXIT_BAD_INPUT
    if isinstance(error, ApiError) and error.retry_after is not None:
        return f"{error}. Retry in {error.retry_after:.0f} s", EXIT_FAILED
    if isinstance(error, OmniError):
        return str(error), EXIT_FAILED
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}", EXIT_FAILED
    if os.environ.get("OMNI_R1_LOG_LEVEL", "").lower() == "debug":
        raise error
    return f"{type(error).__name__}: {one_line(str(error))} (set OMNI_R1_LOG_LEVEL=debug for a traceback)", EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
