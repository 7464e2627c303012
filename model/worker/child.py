"""The engine process: `python -m model.worker.child SOCKET_FD`, started by `model/engine/client.py`.

A reader thread fills the worker's inbox from an inherited socket. The parent handles Ctrl-C and SIGTERM; the child
exits when its socket closes, which also happens when the parent is killed.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
import threading

from model import log_lines
from model.engine.client import HEADER
from model.engine.commands import Report


def main(fd: int) -> None:
    """Serve the parent over an inherited socket until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    given = os.environ.get
    log_lines.configure(given("OMNI_R1_LOG_FORMAT", "text").lower(), given("OMNI_R1_LOG_LEVEL", "info"))
    from model.worker.worker import Worker

    gc.freeze()  # everything is imported: later collections, which stop every stream, skip it (3 ms instead of 80)
    connection = socket.socket(fileno=fd)
    stream = connection.makefile("rb")

    def send(message: Report) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        connection.sendall(HEADER.pack(len(data)) + data)

    worker = Worker(send)

    def read() -> None:
        while True:
            header = stream.read(HEADER.size)
            if len(header) < HEADER.size:
                os._exit(0)  # the parent closed the socket or exited
            (size,) = HEADER.unpack(header)
            worker.post(pickle.loads(stream.read(size)))

    threading.Thread(target=read, name="reader", daemon=True).start()
    try:
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
