"""`omni-r1 data check`: checks a data set for what each method needs, without a server."""

from __future__ import annotations

import json
import tempfile
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, get_args

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, CommandError, data_place, one_line, whole, write
from app.contract.words import DataMethod

SHOWN_CHARS = 100


def add_options(parser: ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "file",
        metavar="FILE",
        type=data_place,
        help="jsonl, parquet, zip, a folder of such files, or hf://datasets/OWNER/NAME",
    )
    parser.add_argument("--method", choices=get_args(DataMethod), help="the method that the data is for (all)")
    parser.add_argument("--rows", type=whole(1), metavar="N", help="check only the first N rows")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        type=_renaming,
        metavar="OURS=THEIRS",
        help="what the data calls a field",
    )
    parser.add_argument("--rejections", metavar="OUT", help="write every rejection to this file, as JSON lines")
    parser.add_argument("--json", action="store_true")


def check(args: Namespace) -> int:
    """Prints the report of a file or folder; exit code 1 if no row can be used."""
    from training.data.check import report_for
    from training.data.rows import DataError

    try:
        with ExitStack() as opened:
            out = None if args.rejections is None else Path(args.rejections)
            rejections = None if out is None else opened.enter_context(out.open("w", encoding="utf-8"))
            report = report_for(_found(args, rejections), args.method)
    except DataError as error:
        raise CommandError(str(error), EXIT_BAD_INPUT) from None
    if args.json:
        report["preview"] = json.loads(json.dumps(report["preview"]), object_hook=_without_files)
        write(json.dumps({"path": args.file, **report}, ensure_ascii=False, indent=2) + "\n")
    else:
        write("".join(f"{line}\n" for line in _lines(args.file, report)))
    usable = report["usable_for"]
    return EXIT_OK if (usable[args.method] if args.method else any(usable.values())) else EXIT_FAILED


def _renaming(text: str) -> tuple[str, str]:
    ours, _, theirs = text.partition("=")
    if not ours or not theirs:
        raise ArgumentTypeError(f"expected OURS=THEIRS, got {text!r}")
    return ours, theirs


def _found(args: Namespace, rejections: IO[str] | None) -> Mapping[str, Any]:
    from training.data.archives import is_zip, unpack
    from training.data.check import check_data
    from training.data.hub import is_hub

    def keep(entry: Mapping[str, Any]) -> None:
        if rejections is not None and (args.method is None or args.method in entry["methods"]):
            rejections.write(json.dumps(entry, ensure_ascii=True) + "\n")

    def checked(path: str | Path) -> Mapping[str, Any]:
        return check_data(path, columns=dict(args.column), most=args.rows, on_rejection=keep).to_json()

    path, head = Path(args.file), b""
    if is_hub(args.file):
        return checked(args.file)
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(4)
    if not is_zip(head):
        return checked(path)
    with tempfile.TemporaryDirectory() as folder:
        unpack(path, Path(folder))
        return checked(Path(folder))


def _without_files(value: dict[str, Any]) -> dict[str, Any]:
    """No image is saved: its file has no address."""
    return {"url": None, "token_ids": value.get("token_ids")} if set(value) <= {"file", "token_ids"} else value


def _lines(file: str, report: Mapping[str, Any]) -> Iterator[str]:
    first = "" if report["complete"] else "the first "
    yield f"{one_line(file.rstrip('/').rpartition('/')[2])}: {first}{_count(report['rows'], 'row')}"
    for method, usable in report["usable_for"].items():
        yield f"  {method:<10} {usable:>9,} usable"
    rejected, method = report["rejected"], report["method"]
    if rejected["rows"]:
        yield f"{_count(rejected['rows'], 'row')} rejected by {method or 'at least one method'}"
        for code, count in sorted(rejected["reasons"].items(), key=lambda item: -item[1]):
            yield f"  {code:<18} {count:>9,}"
        for one in rejected["first"]:
            methods = "" if method else f" [{', '.join(one['methods'])}]"
            yield f"  {one_line(one['where'])}  {one['code']}: {one_line(one['detail'])}{methods}"
        if (left := sum(rejected["reasons"].values()) - len(rejected["first"])) > 0:
            yield f"  … and {left:,} more; --rejections FILE writes all of them"
    for number, row in enumerate(report["preview"]):
        if number == 0:
            yield "the first usable rows"
        drawn = f", {_count(row['steps_total'], 'step')}" if row["steps_total"] else ""
        yield f"  {one_line(row['where'])}  {_short(row['question'])}  ({_count(row['images_total'], 'image')}{drawn})"
        yield f"    answer: {_short(row['answer'])}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= SHOWN_CHARS else f"{line[: SHOWN_CHARS - 1]}…"
