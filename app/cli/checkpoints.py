"""`omni-r1 checkpoints`: the checkpoints of a running server, over HTTP only."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.cli.terminal import EXIT_OK, remark, table, write
from app.client import Client, OmniError

LOOK_EVERY_S = 2.0


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
        entry = _watched(lambda: client.activate(args.id, drain=args.drain), args.url)
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


def _watched(activate: Callable[[], dict[str, Any]], url: str | None) -> dict[str, Any]:
    """Activate in a thread and meanwhile print what the server says of it, bytes included."""
    outcome: queue.SimpleQueue[dict[str, Any] | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(activate())
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()  # Ctrl-C does not wait for it
    shown = ""
    with Client(url) as watcher:
        while True:
            try:
                found = outcome.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                with contextlib.suppress(OmniError):
                    detail = str(watcher.readiness().get("detail") or "")
                    if detail not in ("", shown):
                        remark(shown := detail)
                continue
            if isinstance(found, Exception):
                raise found
            return found


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
