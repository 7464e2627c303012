"""`omni-r1 prune`, over HTTP only; `backup` and `restore`, on the server's machine.

The parser of all commands imports this module for its options, so the client is imported when a command runs.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_OK, CommandError, filled, number, remark, whole, write

if TYPE_CHECKING:
    from app.operate import Report


def add_commands(commands: Any, command: Callable[[Any, str, str, str], ArgumentParser]) -> None:
    """Adds the commands to the parser; `command` is its way to add one by name, function and text."""
    text = "delete a running server's old traces, as its settings or these options say"
    parser = command(commands, "prune", "app.cli.operate:prune", text)
    parser.add_argument("--dry-run", action="store_true", help="only report what would be deleted")
    parser.add_argument("--keep-days", metavar="N", type=whole(1, 36_500), help="($OMNI_R1_KEEP_DAYS of the server)")
    parser.add_argument("--max-gb", metavar="GB", type=number(0.001, 1e9), help="($OMNI_R1_HOME_MAX_GB of the server)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--url", help="the server ($OMNI_R1_URL, else http://127.0.0.1:7860)")
    text = "copy the whole home into one archive, also while its server runs"
    parser = command(commands, "backup", "app.cli.operate:backup", text)
    parser.add_argument("file", metavar="FILE", type=filled, help="a new file outside the home; .gz compresses")
    parser.add_argument("--home", help="($OMNI_R1_HOME, else ~/.omni-r1)")
    parser.add_argument("--files-only", action="store_true", help="leave the database out, which pg_dump copies")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser = command(commands, "restore", "app.cli.operate:restore", "make a home of an archive")
    parser.add_argument("file", metavar="FILE", type=filled, help="an archive that `backup` made")
    parser.add_argument("--home", required=True, type=filled, help="folder to make; must be missing or empty")
    parser.add_argument("--json", action="store_true", help="print JSON")


def prune(args: Namespace) -> int:
    """Deletes old traces and prints what that frees."""
    from app.client import Client

    with Client(args.url) as client:
        found = client.prune(dry_run=args.dry_run, keep_days=args.keep_days, max_gb=args.max_gb)
    if args.json:
        write(json.dumps(found) + "\n")
    else:
        done = "would delete" if found["dry_run"] else "deleted"
        size = f"{found['bytes'] / 1e6:,.1f} MB"
        write(f"{done} {found['traces']:,} traces and {found['images']:,} images: {size}\n")
    if found["over_bytes"]:
        over = f"{found['over_bytes'] / 1e6:,.1f} MB"
        remark(f"the home stays {over} above the limit: see its sizes on the About page, or `omni-r1 checkpoints`")
    return EXIT_OK


def backup(args: Namespace) -> int:
    """Writes the archive and prints what it holds."""
    from app.common.settings import SettingsError, read_settings
    from app.operate import BackupError, backup

    try:
        settings = read_settings(**({} if args.home is None else {"home": args.home}))
        report = backup(settings, Path(args.file), files_only=args.files_only)
    except (BackupError, SettingsError) as error:
        raise CommandError(str(error), EXIT_BAD_INPUT) from None
    return _show(report, args, args.file)


def restore(args: Namespace) -> int:
    """Makes the home and prints what it holds."""
    from app.operate import BackupError, restore_home

    home = Path(args.home).expanduser()
    try:
        report = restore_home(Path(args.file), home)
    except BackupError as error:
        raise CommandError(str(error), EXIT_BAD_INPUT) from None
    return _show(report, args, str(home))


def _show(report: Report, args: Namespace, what: str) -> int:
    if args.json:
        write(json.dumps(vars(report)) + "\n")
    else:
        write(f"{what}: {report.files:,} files, {report.bytes / 1e6:,.1f} MB\n")
    if report.links:
        remark(f"{report.links} symbolic links are left out: copy where they lead by yourself")
    return EXIT_OK
