"""`omni-r1 checkpoints`: what a running server can serve, over HTTP only."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from app.cli.terminal import EXIT_OK, remark, table, write
from app.client import Client


def list_all(args: Namespace) -> int:
    """Lists the checkpoints that the server knows."""
    with Client(args.url) as client:
        found = client.checkpoints()
    if args.json:
        _print(found)
    else:
        write(table(["checkpoint", "state", "size", "licence", "base"], [_row(entry) for entry in found]))
    return EXIT_OK


def show(args: Namespace) -> int:
    """Shows one as JSON."""
    with Client(args.url) as client:
        _print(client.checkpoint(args.id))
    return EXIT_OK


def register(args: Namespace) -> int:
    """Makes a folder or a hub id known; a folder of this machine may be given relative to where one stands."""
    local = Path(os.path.expanduser(args.source))
    source = str(local.absolute()) if local.is_dir() else args.source
    with Client(args.url) as client:
        entry = client.register_checkpoint(source, name=args.name)
    if args.json:
        _print(entry)
    else:
        write(f"{entry['id']}\n")
        remark(f"try it: omni-r1 ask PICTURE QUESTION --checkpoint {entry['id']}")
    return EXIT_OK


def activate(args: Namespace) -> int:
    """Lets new traces run on it."""
    with Client(args.url) as client:
        before = next((one["id"] for one in client.checkpoints() if one.get("active")), None)
        entry = client.activate(args.id, drain=args.drain)
    if args.json:
        _print(entry)
    else:
        write(f"{entry['id']} answers, version {entry['weight_version']}\n")
        if before not in (None, entry["id"]):
            remark(f"back again: omni-r1 checkpoints activate {before}")
    return EXIT_OK


def delete(args: Namespace) -> int:
    """Removes one that nobody uses."""
    with Client(args.url) as client:
        client.delete_checkpoint(args.id, unload=args.unload)
    remark(f"{args.id} is gone")
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
