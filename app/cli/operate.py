"""`omni-r1 prune`, over HTTP only; `backup`, `restore` and `keys`, on the server's machine.

The parser of all commands imports this module for its options, so the client is imported when a command runs.
"""

from __future__ import annotations

import json
import re
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.terminal import EXIT_BAD_INPUT, EXIT_OK, CommandError, filled, number, remark, table, whole, write
from app.contract.words import ROLES

if TYPE_CHECKING:
    from app.common.settings import Settings
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
    _add_keys(commands, command)
    parser = command(commands, "restore", "app.cli.operate:restore", "make a home of an archive")
    parser.add_argument("file", metavar="FILE", type=filled, help="an archive that `backup` made")
    parser.add_argument("--home", required=True, type=filled, help="folder to make; must be missing or empty")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_keys(commands: Any, command: Callable[[Any, str, str, str], ArgumentParser]) -> None:
    text = "list, add or revoke the named keys of the server on this machine"
    parser = command(commands, "keys", "app.cli.operate:keys_list", text)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    listing = command(actions, "list", "app.cli.operate:keys_list", "list all keys (the default)")
    adding = command(actions, "add", "app.cli.operate:keys_add", "make a key and print it, this once")
    adding.add_argument("name", metavar="NAME", type=filled, help="lower-case letters, digits and hyphens")
    adding.add_argument("--role", choices=ROLES, required=True, help="each includes those before it")
    adding.add_argument("--traces-per-minute", metavar="N", type=whole(1), help="(no limit)")
    adding.add_argument("--running", metavar="N", type=whole(1), help="traces queued or running at once (no limit)")
    adding.add_argument("--job-minutes", metavar="N", type=whole(1), help="minutes of jobs in 24 hours (no limit)")
    revoking = command(actions, "revoke", "app.cli.operate:keys_revoke", "end a key and its sessions, within seconds")
    revoking.add_argument("name", metavar="NAME", type=filled)
    for action in (parser, listing, adding, revoking):
        action.add_argument("--home", default=None if action is parser else SUPPRESS, help="($OMNI_R1_HOME)")
        action.add_argument("--json", action="store_true", default=False if action is parser else SUPPRESS)


def prune(args: Namespace) -> int:
    """Deletes old traces and prints what that frees."""
    from app.client import BadInput, Client

    with Client(args.url) as client:
        try:
            found = client.prune(dry_run=args.dry_run, keep_days=args.keep_days, max_gb=args.max_gb)
        except BadInput as error:
            if args.keep_days is not None or args.max_gb is not None:
                raise
            detail = (
                "the server has no limit: give --keep-days or --max-gb, or set OMNI_R1_KEEP_DAYS or OMNI_R1_HOME_MAX_GB"
            )
            raise CommandError(f"{detail} there", EXIT_BAD_INPUT) from error
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
    from app.operate import BackupError, backup

    try:
        report = backup(_settings(args), Path(args.file), files_only=args.files_only)
    except BackupError as error:
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


def _settings(args: Namespace) -> Settings:
    from app.common.settings import SettingsError, read_settings

    try:
        return read_settings(**({} if args.home is None else {"home": args.home}))
    except SettingsError as error:
        raise CommandError(str(error), EXIT_BAD_INPUT) from None


# ---- keys


@contextmanager
def _keys(args: Namespace) -> Iterator[Any]:
    """The store of keys."""
    from app.operate import Unready, key_store

    try:
        with key_store(_settings(args)) as store:
            yield store
    except Unready as error:
        raise CommandError(str(error), EXIT_BAD_INPUT) from None


def keys_list(args: Namespace) -> int:
    """Prints all keys, without their secrets."""
    with _keys(args) as store:
        found = [key.as_json() for key in store.all()]
    if args.json:
        write(json.dumps(found, indent=2) + "\n")
        return EXIT_OK
    limits = ("traces_per_minute", "running", "job_minutes")
    header = ["name", "role", "traces a minute", "running", "job minutes", "created", "last used"]
    rows = [
        [
            key["name"],
            key["role"],
            *("-" if key[name] is None else str(key[name]) for name in limits),
            key["created_at"][:10],
            key["last_used_at"] or "never",
        ]
        for key in found
    ]
    write(table(header, rows))
    return EXIT_OK


def keys_add(args: Namespace) -> int:
    """Makes a key and prints it: nobody can read it again."""
    from app.operate import NAME, Caller, KeyTaken

    if not re.fullmatch(NAME, args.name):
        detail = f"a name has 1 to 40 lower-case letters, digits and hyphens, not {args.name!r}"
        raise CommandError(detail, EXIT_BAD_INPUT)
    holder = Caller(args.name, args.role, args.traces_per_minute, args.running, args.job_minutes)
    try:
        with _keys(args) as store:
            secret = store.add(holder)
    except KeyTaken as error:
        raise CommandError(str(error), EXIT_BAD_INPUT) from None
    write((json.dumps({"name": args.name, "key": secret}) if args.json else secret) + "\n")
    remark("store it now: only its hash is kept. It works on a server that has OMNI_R1_API_KEY")
    return EXIT_OK


def keys_revoke(args: Namespace) -> int:
    """Ends a key."""
    with _keys(args) as store:
        if not store.revoke(args.name):
            raise CommandError(f"no key is called {args.name}: omni-r1 keys", EXIT_BAD_INPUT)
    remark(f"{args.name} is revoked")
    return EXIT_OK
