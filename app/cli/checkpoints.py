"""`omni-r1 checkpoints`: the checkpoints of a running server, over HTTP only."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from app.cli.terminal import EXIT_OK, remark, table, write
from app.client import Client


def list_all(args: Namespace) -> int:
    """Lists the server's checkpoints."""
    with Client(args.url) as client:
        found = client.checkpoints()
    if args.json:
        _print(found)
    else:
        write(table(["checkpoint", "state", "size", "licence", "base"], [_row(entry) for entry in found]))
    return EXIT_OK


def show(args: Namespace) -> int:
    """Shows a checkpoint as JSON."""
    with Client(args.url) as client:
        _print(client.checkpoint(args.id))
    return EXIT_OK


def register(args: Namespace) -> int:
    """Registers a folder or hub id; local folders may be relative to the current one."""
    local = Path(os.path.expanduser(args.source))
    source = str(local.absolute()) if local.is_dir() else args.source
    with Client(args.url) as client:
        entry = client.register_checkpoint(source, name=args.name)
    if args.json:
        _print(entry)
    else:
        write(f"{entry['id']}\n")
        remark(f"try it: omni-r1 ask IMAGE QUESTION --checkpoint {entry['id']}")
    return EXIT_OK


def activate(args: Namespace) -> int:
    """Activates a checkpoint for new traces."""
    with Client(args.url) as client:
        before = next((one["id"] for one in client.checkpoints() if one.get("active")), None)
        entry = client.activate(args.id, drain=args.drain)
    if args.json:
        _print(entry)
    else:
        write(f"{entry['id']} is active, version {entry['weight_version']}\n")
        if before not in (None, entry["id"]):
            remark(f"to switch back: omni-r1 checkpoints activate {before}")
    return EXIT_OK


def delete(args: Namespace) -> int:
    """Deletes an unused checkpoint."""
    with Client(args.url) as client:
        client.delete_checkpoint(args.id, unload=args.unload)
    remark(f"{args.id} deleted")
    return EXIT_OK


def _print(value: Any) -> None:
    write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _row(entry: dict[str, Any]) -> list[str]:
    size = f"{entry['size_bytes'] / 1e6:.1f} MB" if entry.get("size_bytes") else ""
    return [entry["id"], _state(entry), size, entry.get("licence") or "", entry.get("base") or ""]


def _state(entry: dict[str, Any]) -> str:
    if entry.get("problem"):
        return f"unusable: {entry['problem']}"
    words = [word for word in ("active", "loaded") if entry.get(word)]
    return ", ".join(words) or "-"
