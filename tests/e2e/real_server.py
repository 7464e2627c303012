"""A real server as a separate process on a free port with its own home, for tests and benchmarks.

It serves the shipped checkpoint, or a tiny generated one if that is missing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from app.client import Client, OmniError
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "model" / "nano" / "nano-omni-r1"
SERVE = ("app.cli", "serve")
EVERYWHERE: dict[str, str] = {}  # settings of all servers
# Makes every file system read-only except the folder $1, in a mount namespace of its own, and runs the rest of "$@".
READ_ONLY = """
folder=$1; shift
mount --make-rprivate / && mount --bind "$folder" "$folder" || exit 1
while read -r _ _ _ _ place _; do
  case $place in
    "$folder"|/dev|/dev/*|/proc|/proc/*|/sys|/sys/*) ;;
    *) mount -o remount,bind,ro "$place" || exit 1 ;;
  esac
done </proc/self/mountinfo
exec "$@"
"""


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Polls a condition that sends no event (another process)."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain for: {what}")
        time.sleep(0.02)


def on_read_only_root(writable: Path, command: list[str]) -> list[str]:
    """The command where only `writable`, /dev and /proc are not read-only."""
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", str(writable), *command]


@functools.cache
def has_read_only_root() -> bool:
    """Whether this system lets us make one: it needs Linux with user namespaces."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            tried = on_read_only_root(Path(folder), ["sh", "-c", f"touch {folder}/here && ! touch {ROOT}/README.md"])
            return subprocess.run(tried, capture_output=True, timeout=PATIENCE_S, check=False).returncode == 0
        except FileNotFoundError:
            return False


@dataclass
class Server:
    """One `omni-r1 serve` on `home`; can be started, stopped, killed and restarted.

    On a `read_only` root it can write only to the folder that holds its home, which then also has its `TMPDIR`.
    """

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[str] | None = None
    url: str = ""
    read_only: bool = False

    @property
    def log(self) -> Path:
        return self.home.parent / f"{self.home.name}.log"

    def command(self) -> list[str]:
        return [sys.executable, "-m", *SERVE, "--port", str(self.port)]

    def start(self, *, ready: bool = True) -> Server:
        with self.log.open("a") as log:
            command = self.command()
            self.process = subprocess.Popen(
                on_read_only_root(self.home.parent, command) if self.read_only else command,
                cwd=ROOT,
                env=self.env(),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                stdin=subprocess.DEVNULL,
            )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert "http://" in first, f"no address: {first!r}\n{self.tail()}"
        self.url = next(word for word in first.split() if word.startswith("http://"))
        if ready:
            self.wait_ready()
        return self

    def env(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_R1_")}
        more = {"TMPDIR": str(self.home.parent)} if self.read_only else {}
        return plain | {"OMNI_R1_HOME": str(self.home)} | more | EVERYWHERE | self.environment

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the server ended\n{self.tail()}"
            try:
                return client.readiness()["phase"] == "ready"
            except OmniError:
                return False

        with self.client() as client:
            wait_until(ready, f"a ready server\n{self.tail()}")

    def client(self) -> Client:
        return Client(self.url, api_key=self.environment.get("OMNI_R1_API_KEY", ""))

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, sig: signal.Signals = signal.SIGTERM, timeout_s: float = PATIENCE_S) -> int:
        """Sends the signal; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(sig)
        code = self.process.wait(timeout_s)
        self._close()
        return code

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._close()

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:]) if self.log.exists() else ""

    def _close(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()


def new_server(folder: Path) -> Server:
    """A server that is not started yet, with a checkpoint to serve."""
    home = folder / "home"
    if (SHIPPED / "config.json").exists():
        return Server(home)
    from tests.tiny import make_tiny_checkpoint

    (home / "checkpoints").mkdir(parents=True)
    make_tiny_checkpoint(home / "checkpoints" / "tiny")
    return Server(home, {"OMNI_R1_CHECKPOINT": "tiny"})


@contextlib.contextmanager
def temporary_server() -> Iterator[Server]:
    """A started server with a home that is gone afterwards; it is stopped, or killed after an error."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder) / "home")
        try:
            yield server.start()
            server.stop()
        finally:
            server.kill()


def runs(process: psutil.Process, program: str) -> bool:
    """Whether the process runs that program or module; one that has just ended runs none."""
    try:
        return program in " ".join(process.cmdline())
    except psutil.Error:
        return False
