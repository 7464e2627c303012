"""The state folder (`OMNI_R1_HOME`): private, owned by one server at a time.

The owner holds an `flock` on the file `lock`, which the kernel releases when the process exits, even after kill -9. The
file's content identifies the owner for error messages. Foreign files in the folder are left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import threading
import uuid
from pathlib import Path

from training.home_paths import recorded
from training.jobs.disk import MARGIN_BYTES

RESERVED_BYTES = MARGIN_BYTES * 3 // 4


class HomeError(RuntimeError):
    """The home cannot be used; the message is one line."""


class HomeBusy(HomeError):
    """Another server owns this home; the message names its port and pid."""


class Reserve:
    """Disk space in the home, so that jobs can end and files be deleted on a full disk. Blocking.

    Cancellations, job ends and deletions write rows, too; they use the reserve when the disk is full. It is smaller
    than the free space a waiting job needs, so that no job takes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.disk: dict[str, int] = {}  # bytes of the home's disk, `total` and `free`, as of the last `take`

    def take(self) -> None:
        """Measure the disk, and reserve the space unless it is nearly full."""
        disk = shutil.disk_usage(self._path.parent)
        self.disk = {"total": disk.total, "free": disk.free}
        if self._path.exists() or disk.free < 8 * RESERVED_BYTES:
            return
        try:
            self._path.write_bytes(os.urandom(RESERVED_BYTES))  # incompressible
        except OSError:
            self.release()

    def release(self) -> bool:
        """Free the space; returns whether there was any."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            return True
        return False


class Home:
    """One state folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = path / "images"
        self.partials = path / "partials"
        self.checkpoints = path / "checkpoints"
        self.jobs = path / "jobs"
        self.tmp = path / "tmp"
        self.reserve = Reserve(path / "reserve")
        self._fd: int | None = None
        self._server_id: str | None = None

    @property
    def locked(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd is not None

    def open(self) -> None:
        """Create the folder (private), lock it and empty `tmp`.

        Raises:
            HomeBusy: another server owns it.
            HomeError: it cannot be created or written.
        """
        try:
            self._open()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            place = getattr(error, "filename", None) or self.path
            raise HomeError(f"cannot write {place} ({reason}); set OMNI_R1_HOME to a folder you own") from None

    def _open(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._close_to_others()
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 1000, 0)
            os.close(fd)
            raise HomeBusy(_owner(self.path, owner)) from None
        self._fd = fd
        self._write({"pid": os.getpid()})
        shutil.rmtree(self.tmp, ignore_errors=True)
        for folder in (self.images, self.partials, self.checkpoints, self.jobs, self.tmp):
            folder.mkdir(exist_ok=True)

    def _close_to_others(self) -> None:
        """Mode 0700; keeps the rights of a writable group 0: containers run as any user of that group."""
        found = self.path.stat()
        shared = found.st_gid == 0 and found.st_mode & stat.S_IWGRP
        with contextlib.suppress(PermissionError):  # owned by another user of that group
            self.path.chmod(0o770 if shared else 0o700)

    def resolve(self, given: str) -> Path:
        """The absolute path that a client means: relative to the home, with `~`, links and `..` resolved."""
        return (self.path / os.path.expanduser(given)).resolve()  # Path.expanduser raises for unknown users

    def recorded(self, path: Path) -> str:
        """The path as stored: relative if it is in the home, which may be moved."""
        return recorded(path, self.path)

    def note(self, host: str, port: int) -> None:
        """Record this server's address for error messages of other servers."""
        self._write({"pid": os.getpid(), "host": host, "port": port})

    def close(self) -> None:
        """Release the home."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None

    @property
    def server_id(self) -> str:
        """The id of this installation, stored in the folder."""
        if self._server_id is None:
            path = self.path / "server-id"
            if not path.is_file():
                path.write_text(uuid.uuid4().hex + "\n")
            self._server_id = path.read_text().strip()
        return self._server_id

    def _write(self, owner: dict[str, object]) -> None:
        assert self._fd is not None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(owner).encode() + b"\n", 0)


def write_durably(path: Path, data: bytes) -> None:
    """Write under a temporary name, sync, rename, sync the folder: the file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        temporary.write_bytes(data)
        move_durably(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_durably(file: Path, path: Path) -> None:
    """Sync, rename, sync the folder; both paths are on one file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    file.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _owner(path: Path, content: bytes) -> str:
    try:
        owner = json.loads(content)
    except ValueError:
        owner = {}
    where = f" on port {owner['port']}" if "port" in owner else ""
    return (
        f"{path} is in use by a server{where} with pid {owner.get('pid', 'unknown')}: use that one, stop it, "
        "or choose another OMNI_R1_HOME"
    )
