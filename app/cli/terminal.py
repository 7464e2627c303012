"""Terminal output: results on stdout, remarks and the red error line on stderr, exit codes.

Text from models and servers passes through `clean`, so that no control sequence reaches the terminal. An error of the
API names options of the command line in place of its fields: ``--after``, not ``body.after_step``.
"""

from __future__ import annotations

import math
import os
import re
import sys
import unicodedata
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from app.client import ApiError

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_NO_SERVER, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class CommandError(Exception):
    """A command failed: a message of one line and the exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def coloured(stream: TextIO) -> bool:
    """Whether to use colours: only on a terminal without NO_COLOR (no-color.org)."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def clean(text: str) -> str:
    """The text without control and format characters and lone surrogates; keeps line feeds and tabs."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable() or unicodedata.category(c) == "Zs")


def one_line(text: str) -> str:
    """The cleaned text with single spaces instead of line feeds and other white space."""
    return " ".join(clean(text).split())


def write(text: str) -> None:
    """Write to stdout and flush, so that streams are visible."""
    sys.stdout.write(text)
    sys.stdout.flush()


def remark(text: str) -> None:
    """Write a line about the run to stderr; stdout holds results only."""
    line = one_line(text)
    sys.stderr.write(f"\x1b[2m{line}\x1b[0m\n" if coloured(sys.stderr) else f"{line}\n")
    sys.stderr.flush()


def complain(text: str) -> None:
    """Write the error line."""
    line = f"omni-r1: {one_line(text)}"
    sys.stderr.write(f"\x1b[31m{line}\x1b[0m\n" if coloured(sys.stderr) else f"{line}\n")
    sys.stderr.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart, without trailing whitespace."""
    cells = [[one_line(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines) + "\n"


# Paths of fields, as regular expressions, and what stands for them on the command line.
_OPTIONS = (
    (r"body\.n", "--n"),
    (r"body\.question", "QUESTION"),
    (r"body\.images\.\d+\.fit", "--fit"),
    (r"body\.images(\..*)?", "IMAGE"),
    (r"body\.task_id", "TASK_ID"),
    (r"body\.after_step", "--after"),
    (r"body\.edits\.(?P<edit>\d+)\.text", "--text"),
    (r"body\.edits\.(?P<edit>\d+)\.image(\..*)?", "--image"),
    (r"body\.edits(\.(?P<edit>\d+)(\..*)?)?", "--text or --image"),
    (r"body\.then_text", "--then"),
    (r"body\.then", "--answer"),
    (r"body\.source", "SOURCE"),
    (r"body\.(sampling\.)?(?P<same>checkpoint|temperature|top_p|seed|max_new_tokens|max_images|name|drain)", ""),
    (r"body\.(?P<same>keep_days|max_gb)", ""),
    (r"query\.(?P<same>slice|seed|limit|status|method)", ""),
)


def message_of(error: ApiError, steps: Sequence[int] = ()) -> str:
    """The server's message with the option in place of the field; `steps`: those of a branch's edits, in order."""
    fields = error.problem.get("errors") or [{}]
    path = str(fields[0].get("path", ""))
    if not path or not error.detail.startswith(f"{path}: "):
        return error.detail
    option, detail = _option_of(path, steps), error.detail.removeprefix(f"{path}: ")
    return f"{option}: {detail}" if option else detail


def _option_of(path: str, steps: Sequence[int]) -> str:
    for pattern, option in _OPTIONS:
        found = re.fullmatch(pattern, path)
        if found is None:
            continue
        groups = found.groupdict()
        if "same" in groups:
            return f"--{groups['same'].replace('_', '-')}"
        edit = groups.get("edit")
        return option if edit is None or int(edit) >= len(steps) else f"{option} of step {steps[int(edit)]}"
    return re.sub(r"^(body|query)(\.|$)", "", path)


# ---- types of arguments: each rejects a bad value with a message that gives the allowed ones


def whole(least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """Whole numbers from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _expected("whole number", least, most, text) from None
        if _outside(value, least, most):
            raise _expected("whole number", least, most, text)
        return value

    return parse


def number(least: float | None = None, most: float | None = None) -> Callable[[str], float]:
    """Finite numbers from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or _outside(value, least, most):
            raise _expected("number", least, most, text)
        return value

    return parse


def filled(text: str) -> str:
    """Text that is not blank."""
    if not text.strip():
        raise ArgumentTypeError("must not be empty")
    return text


def data_place(text: str) -> str:
    """A file, a folder or an address on the hub."""
    if re.match(r"(?!hf:)\w+://", text):
        raise ArgumentTypeError(f"expected a file, a folder or hf://datasets/OWNER/NAME, got {text!r}")
    return filled(text)


def _outside(value: float, least: float | None, most: float | None) -> bool:
    return (least is not None and value < least) or (most is not None and value > most)


def _expected(kind: str, least: float | None, most: float | None, text: str) -> ArgumentTypeError:
    bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
    return ArgumentTypeError(f"expected a {kind}{bounds}, not {text!r}")
