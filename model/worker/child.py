"""The engine process: `python -m model.worker.child SOCKET_FD`, started by `model/engine/client.py`.

A reader thread fills the worker's inbox from an inherited socket. The child exits when its socket closes, which also
happens when the parent is killed.
"""

from __future__ import annotations

import gc
import os
import sys

from model import log_lines
from model.engine.link import ParentLink


def main(fd: int) -> None:
    """Serve the parent over an inherited socket until it closes."""
    log_lines.configure_from_environment()
    parent = ParentLink(fd)
    from model.worker.worker import Worker

    gc.freeze()  # everything is imported: later collections, which stop every stream, skip it (3 ms instead of 80)
    worker = Worker(parent.send)
    parent.receive(worker.post, lambda: os._exit(0))
    try:
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
