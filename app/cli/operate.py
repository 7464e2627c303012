"""`omni-r1 prune`: what a server keeps, over HTTP only.

The parser of all commands imports this module for its options, so the client is imported when a command runs.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

from app.cli.terminal import EXIT_OK, number, remark, whole, write


def add_commands(commands: Any, command: Callable[[Any, str, str, str], ArgumentParser]) -> None:
    """Adds the commands to the parser; `command` is its way to add one by name, function and text."""
    text = "delete a running server's old traces, as its settings or these options say"
    parser = command(commands, "prune", "app.cli.operate:prune", text)
    parser.add_argument("--dry-run", action="store_true", help="only report what would be deleted")
    parser.add_argument("--keep-days", metavar="N", type=whole(1, 36_500), help="($OMNI_R1_KEEP_DAYS of the server)")
    parser.add_argument("--max-gb", metavar="GB", type=number(0.001, 1e9), help="($OMNI_R1_HOME_MAX_GB of the server)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--url", help="the server ($OMNI_R1_URL, else http://127.0.0.1:7860)")


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
