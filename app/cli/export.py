"""`omni-r1 export`: traces of a running server as a file, over HTTP only.

The parser of all commands imports this module for its options, so the client is imported when the command runs.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast, get_args

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_OK, CommandError, remark
from app.contract.words import ExportFormat, Slice, Status, VerdictWord

FORMATS = get_args(ExportFormat)
FILTERS = ("status", "checkpoint", "slice", "verdict", "rating", "tag", "q")


def add_options(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("ids", metavar="ID", nargs="*", help="traces, in the file's order (all that match the filters)")
    parser.add_argument("--format", choices=FORMATS, help="(by FILE's ending, else jsonl)")
    parser.add_argument("--rating", type=int, choices=(-1, 0, 1), help="only traces with this rating: 1 is good")
    parser.add_argument("--tag", help="only traces with this tag")
    parser.add_argument("--slice", choices=get_args(Slice), help="only tasks of this slice")
    parser.add_argument("--verdict", choices=get_args(VerdictWord), help="only tasks answered right, or wrong")
    parser.add_argument("--checkpoint", help="only answers of this checkpoint")
    parser.add_argument("--status", choices=get_args(Status), help="only traces with this status")
    parser.add_argument("--q", metavar="WORDS", help="only traces with these words in question or answer")
    parser.add_argument("-o", "--out", metavar="FILE", help="- writes to stdout (./traces.FORMAT, or ./ID.FORMAT)")
    parser.add_argument("--force", action="store_true", help="overwrite FILE")


def export(args: Namespace) -> int:
    """Saves traces as a file, complete or not at all."""
    from app.client import Client

    given: dict[str, Any] = {name: getattr(args, name) for name in FILTERS if getattr(args, name) is not None}
    if args.ids and given:
        raise CommandError("give either ids or filters", EXIT_BAD_INPUT)
    selection: dict[str, Any] = {"filter": given}
    if args.ids:
        selection = {"trace_ids": args.ids[0] if len(args.ids) == 1 else args.ids}
    if args.out not in (None, "-"):
        _check(Path(args.out), force=args.force)
    with Client(args.url) as client, client.export(**selection, format=_format(args)) as file:
        if file.skipped:
            traces = "1 trace is" if file.skipped == 1 else f"{file.skipped} traces are"
            remark(f"{traces} left out: still running, or (for jsonl) without an answer")
        if args.out == "-":
            for chunk in _some(file.chunks):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        else:
            path = Path(args.out or Path(file.name).name)  # a name, never a path of the server's choice
            _check(path, force=args.force)
            remark(f"{path}: {_save(path, _some(file.chunks)):,} bytes")
    return EXIT_OK


def _format(args: Namespace) -> ExportFormat:
    ending = Path(args.out or "").suffix.removeprefix(".").lower()
    if args.format is None and ending and ending not in FORMATS:
        detail = f"{args.out}: {ending} is not a format; use one of {', '.join(FORMATS)}, or --format"
        raise CommandError(detail, EXIT_BAD_INPUT)
    return cast(ExportFormat, args.format or ending or "jsonl")


def _check(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise CommandError(f"{path} is a folder", EXIT_BAD_INPUT)
    if not path.parent.is_dir():
        raise CommandError(f"{path.parent} is not a folder", EXIT_BAD_INPUT)
    if path.exists() and not force:
        raise CommandError(f"{path} exists; choose another name, or use --force", EXIT_BAD_INPUT)


def _some(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks; an error if there are none."""
    empty = True
    for chunk in chunks:
        empty = False
        yield chunk
    if empty:
        raise CommandError("no trace has what this format needs")


def _save(path: Path, chunks: Iterable[bytes]) -> int:
    """Write under a temporary name, then rename; returns the number of bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    written = 0
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                written += file.write(chunk)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return written
