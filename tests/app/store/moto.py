"""moto's S3 in a process of its own, behind a forwarder that a test can close; `make test-store` uses it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import urllib.request
from pathlib import Path

from app.store.bucket import Bucket
from tests.app.store.s3 import BUCKET
from tests.e2e.real_server import wait_until


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Moto:
    """As `tests.app.store.s3.S3`, as far as tests of real servers need it."""

    url = f"s3://{BUCKET}/lab"

    def __init__(self, program: str, log: Path) -> None:
        self._moto, self.port = free_port(), free_port()
        command = [program, "-H", "127.0.0.1", "-p", str(self._moto)]
        with log.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        wait_until(self._make_bucket, "moto's server")
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.up()

    def _make_bucket(self) -> bool:
        assert self._process.poll() is None, "moto's server ended"
        address = f"http://127.0.0.1:{self._moto}/{BUCKET}"
        with contextlib.suppress(OSError), urllib.request.urlopen(urllib.request.Request(address, method="PUT")):
            return True
        return False

    @property
    def environment(self) -> dict[str, str]:
        """What a server needs to find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "studio",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }

    def bucket(self) -> Bucket:
        os.environ.update(self.environment)
        return Bucket(self.url)

    def names(self) -> set[str]:
        return {key for keys in self.bucket().keys("") for key in keys}

    def read(self, key: str) -> bytes:
        return self.bucket().read(key)

    def up(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def down(self) -> None:
        """Refuse connections and end the open ones."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        while self._open:
            with self._open.pop() as one, contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self.down()
        self._process.kill()
        self._process.wait()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._moto))
                self._open += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=_copy, args=[source, target], daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
