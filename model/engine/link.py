"""A child process and the socket pair over which it exchanges pickled messages with its parent.

The child is started with a plain command line, so nothing of the parent's `__main__` runs in it. When it dies, `read`
ends; when the parent dies, the socket closes and the child exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

HEADER = struct.Struct("!I")
KILL_S = 5.0  # for a killed process to exit


class ChildLink:
    """The parent's side; a child that has ended can be spawned again."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        take_line: Callable[[str], object] | None = None,
    ) -> None:
        """The socket's number is appended to `command`; `environment` is added to ours.

        `take_line` gets each line that the child prints, in a thread; without it, they go where ours go.
        """
        self._command, self._environment, self._take_line = list(command), dict(environment), take_line
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return None if self._process is None else self._process.pid

    def spawn(self) -> None:
        """Start the child, from any thread and without an event loop."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        is_taken = self._take_line is not None
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if is_taken else None,
                stderr=subprocess.STDOUT if is_taken else None,
                env=os.environ | {"PYTHONPATH": path} | self._environment,
            )
        if self._take_line is not None and self._process.stdout is not None:
            arguments = (self._process.stdout, self._take_line)
            threading.Thread(target=_read_lines, args=arguments, name="lines", daemon=True).start()
        self._socket = ours

    async def read(self, begin: Callable[[], None], take: Callable[[Any], None]) -> int:
        """Call `begin` once messages can be sent, then `take` for each message; returns the child's exit code."""
        assert self._socket is not None
        reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=1 << 22)
        begin()
        try:
            while True:
                (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                take(pickle.loads(await reader.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return await self.end(patience=1.0)

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._writer is not None

    def send(self, message: object) -> None:
        """Send a message; a child that has just died does not get it."""
        assert self._writer is not None
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(ConnectionError):
            self._writer.write(HEADER.pack(len(data)) + data)

    async def end(self, *, patience: float) -> int:
        """Close the socket, which makes the child exit, and wait; kill the child after `patience`."""
        process = self._process
        if self._writer is not None:
            self._writer.transport.abort()  # `close` would wait for a child that does not read
        elif self._socket is not None:
            self._socket.close()
        self._writer = self._socket = None
        if process is None:
            return 0
        try:
            return await _ended(process, patience)
        except TimeoutError:
            process.kill()
            return await _ended(process, KILL_S)
        except asyncio.CancelledError:
            process.kill()
            raise
        finally:
            self._process = None

    def kill(self) -> None:
        """Kill the child immediately; used when the parent exits."""
        if self._process is not None:
            self._process.kill()


class ParentLink:
    """The child's side. The parent handles Ctrl-C and SIGTERM."""

    def __init__(self, fd: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        self._socket = socket.socket(fileno=fd)
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Send a message, from any thread; raises OSError if the parent has exited."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._socket.sendall(HEADER.pack(len(data)) + data)

    def receive(self, take: Callable[[Any], object], at_end: Callable[[], object]) -> None:
        """Call `take` for each message and then `at_end`, in a thread; the parent has closed the socket, or exited."""
        stream = self._socket.makefile("rb")

        def read() -> None:
            with contextlib.suppress(ConnectionError):  # killed with messages that it had not read
                while len(header := stream.read(HEADER.size)) == HEADER.size:
                    (size,) = HEADER.unpack(header)
                    if len(message := stream.read(size)) < size:
                        break
                    take(pickle.loads(message))
            at_end()

        threading.Thread(target=read, name="reader", daemon=True).start()


def _read_lines(printed: IO[bytes], take: Callable[[str], object]) -> None:
    """Until all processes that inherited the pipe have ended."""
    with printed:
        for line in printed:
            if text := line.decode(errors="replace").strip():
                take(text)


async def _ended(process: subprocess.Popen[bytes], patience: float) -> int:
    """Wait for the exit code; raise TimeoutError when the process is still running."""
    async with asyncio.timeout(patience):
        while (code := process.poll()) is None:
            await asyncio.sleep(0.01)
    return code
