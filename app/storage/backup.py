"""One archive of a whole home, made while its server runs, and a home made of it. Blocking.

The archive is a tar of plain files: `backup.json` (what made it, and the schema of its database), `home/...`, and
`end.json` (files with several names, the number of files and a digest of all), without which it is incomplete. The
database is a copy of one moment, taken before the files: later files do no harm. A home appears only once it is whole.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from app.common.build import build_version
from app.storage.database import DATABASE_ID, MIGRATIONS, STORE_OF, now

FORMAT = 1
FIRST, LAST, ROOT, DATABASE = "backup.json", "end.json", "home", "omni-r1.db"
MAX_NOTE_BYTES = 100_000_000  # of `backup.json` and `end.json`
CHUNK = 1 << 20
_NOT_COPIED = frozenset({"lock", "tmp", "reserve", "cache", DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm"})
_COMPRESSED = (".gz", ".tgz")


class BackupError(RuntimeError):
    """The backup or the restored home cannot be made; the message is one line."""


@dataclass
class Report:
    """What was copied; `links` are symbolic links, which are left out."""

    files: int = 0
    bytes: int = 0
    links: int = 0


@dataclass
class _Copied:
    """The files so far, in an archive or from one."""

    report: Report = field(default_factory=Report)
    digest: Any = field(default_factory=hashlib.sha256)
    names: dict[str, str] = field(default_factory=dict)  # a further name of a file -> its first name

    def end(self) -> dict[str, Any]:
        """The content of `end.json`."""
        counted = {"files": self.report.files, "bytes": self.report.bytes, "sha256": self.digest.hexdigest()}
        return {**counted, "names": self.names}


def back_up(home: Path, database: Path | None, file: Path) -> Report:
    """Write the archive `file`, complete or not at all; `database` is the SQLite file, None for files only.

    Raises BackupError, OSError.
    """
    if not home.is_dir():
        raise BackupError(f"{home} is not a home")
    if file.resolve().is_relative_to(home.resolve()):
        raise BackupError(f"{file} is in the home itself; choose another place")
    if file.exists():
        raise BackupError(f"{file} exists; choose another name")
    if not file.parent.is_dir():
        raise BackupError(f"{file.parent} is no folder: make it first, or choose another place for {file.name}")
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    copied = _Copied()
    try:
        with _create(part, compressed=file.suffix in _COMPRESSED) as tar, _snapshot(database, file.parent) as snapshot:
            schema = None if snapshot is None else _schema(snapshot)
            note = {"format": FORMAT, "version": build_version(), "schema": schema, "created_at": now()}
            _add_note(tar, FIRST, note)
            if snapshot is not None:
                _add(tar, snapshot, DATABASE, copied)
            _add_files(tar, home, copied)
            _add_note(tar, LAST, copied.end())
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
    return copied.report


@contextlib.contextmanager
def _create(part: Path, *, compressed: bool) -> Iterator[tarfile.TarFile]:
    try:
        opened = part.open("xb")
    except OSError as error:
        raise BackupError(f"{part.parent} takes no new file: {error.strerror}; choose another place") from None
    with opened as raw:
        part.chmod(0o600)  # it holds what callers asked
        mode = "w:gz" if compressed else "w"
        with tarfile.open(fileobj=raw, mode=mode, format=tarfile.PAX_FORMAT, **_level(compressed)) as tar:  # type: ignore[call-overload]
            yield tar


def _level(compressed: bool) -> dict[str, int]:
    return {"compresslevel": 1} if compressed else {}  # weights and PNGs hardly shrink


@contextlib.contextmanager
def _snapshot(database: Path | None, folder: Path) -> Iterator[Path | None]:
    """A copy of the database as of one moment, while others write."""
    if database is None:
        yield None
        return
    if not database.is_file():
        raise BackupError(f"{database} is missing: no server has used this home")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".backup-") as temporary:
        copy = Path(temporary) / DATABASE
        with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(copy)) as to:
            try:
                source.backup(to)
                to.execute("PRAGMA journal_mode=DELETE")  # one file
            except sqlite3.Error as error:
                raise BackupError(f"{database} cannot be copied: {error}") from None
        yield copy


def _schema(database: Path) -> str | None:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.Error:
            return None
    return None if row is None else str(row[0])


def _add_files(tar: tarfile.TarFile, home: Path, copied: _Copied) -> None:
    first_names: dict[tuple[int, int], str] = {}
    for folder, folders, files in os.walk(home):
        inside = Path(folder).relative_to(home)
        if inside == Path():
            folders[:] = [name for name in folders if name not in _NOT_COPIED]
            files = [name for name in files if name not in _NOT_COPIED]
        folders.sort()
        for name in sorted([*files, *(name for name in folders if (Path(folder) / name).is_symlink())]):
            path, arcname = Path(folder) / name, (inside / name).as_posix()
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                status = path.lstat()
                if stat.S_ISLNK(status.st_mode):
                    copied.report.links += 1
                elif not stat.S_ISREG(status.st_mode) or (name.startswith(".") and name.endswith(".tmp")):
                    continue
                elif (first := first_names.get((status.st_dev, status.st_ino))) is not None:
                    copied.names[arcname] = first
                else:
                    _add(tar, path, arcname, copied)
                    if status.st_nlink > 1:
                        first_names[status.st_dev, status.st_ino] = arcname
        for name in folders:
            if not (Path(folder) / name).is_symlink():
                info = tarfile.TarInfo(f"{ROOT}/{(inside / name).as_posix()}")
                info.type, info.mode = tarfile.DIRTYPE, 0o700
                tar.addfile(info)


def _add(tar: tarfile.TarFile, path: Path, name: str, copied: _Copied) -> None:
    """Add a file as long as it is now; it may grow meanwhile."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        info = tarfile.TarInfo(f"{ROOT}/{name}")
        info.size, info.mtime, info.mode = status.st_size, status.st_mtime, stat.S_IMODE(status.st_mode)
        reading = _Hashing(file, copied.digest)
        copied.digest.update(f"{name}\0{info.size}\0".encode("utf-8", "surrogateescape"))
        try:
            tar.addfile(info, reading)
        except OSError as error:
            if "unexpected end of data" not in str(error):
                raise
            raise BackupError(f"{path} became shorter while it was copied; try again") from None
    copied.report.files += 1
    copied.report.bytes += info.size


class _Hashing:
    """Reads a file and hashes what is read."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file, self._digest = file, digest

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        data = self._file.read(size)
        self._digest.update(data)
        return data


def _add_note(tar: tarfile.TarFile, name: str, note: dict[str, Any]) -> None:
    data = json.dumps(note).encode()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, BytesIO(data))


# ---- restore


def restore(file: Path, home: Path) -> Report:
    """Make the folder `home`, which must not exist or be empty, of an archive; raises BackupError, OSError.

    Its database has an id of its own: it owns no object store.

    Refused are archives of other programs and newer versions, incomplete and damaged ones, and any with a name outside
    the home, a link or a device.
    """
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise BackupError(f"{home} is not empty; choose a new folder")
    home.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=home.parent, prefix=f".{home.name}-"))  # mode 0700
    try:
        try:
            with _open(file) as tar:
                report = _unpack(tar, part, str(file))
            _become_another(part / DATABASE)
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
            raise BackupError(f"{file} is no backup, or damaged: {str(error) or type(error).__name__}") from None
        if home.exists():
            home.rmdir()
        part.rename(home)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return report


def _open(file: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(file, "r:*")
    except tarfile.ReadError:  # its message has a line for each compression
        what = "is empty" if file.stat().st_size == 0 else "is no backup, or damaged"
        raise BackupError(f"{file} {what}") from None


def _become_another(database: Path) -> None:
    """Forget the id of the database and its object store: those files are the original's, which may still run."""
    if not database.is_file():
        return
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'").fetchone():
                forgotten = "DELETE FROM facts WHERE name = ? OR substr(name, 1, ?) = ?"
                connection.execute(forgotten, (DATABASE_ID, len(STORE_OF), STORE_OF))
    except sqlite3.Error as error:
        raise BackupError(f"the database in the archive cannot be used: {error}") from None


def _unpack(tar: tarfile.TarFile, part: Path, file: str) -> Report:
    first = tar.next()
    if first is None or first.name != FIRST:
        raise BackupError(f"{file} is not a backup of a studio: it does not begin with {FIRST}")
    _check(_note(tar, first), file)
    copied = _Copied()
    end: dict[str, Any] | None = None
    while (member := tar.next()) is not None:
        if end is not None:
            raise BackupError(f"{file} goes on after its end")
        if member.name == LAST:
            end = _note(tar, member)
        else:
            _take(tar, member, part, copied)
    names = {} if end is None else end.get("names")
    if end is None or not isinstance(names, dict):
        raise BackupError(f"{file} is incomplete")
    copied.names = names
    if copied.end() != end:
        raise BackupError(f"{file} is damaged: its files are not those that were copied")
    for name, first_name in names.items():
        path, first_path = _inside(part, str(name)), _inside(part, str(first_name))
        if path.exists() or not first_path.is_file():
            raise BackupError(f"{file} is damaged: {name!r} is no second name of a file")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.link(first_path, path)
    return copied.report


def _check(note: dict[str, Any], file: str) -> None:
    if note.get("format") != FORMAT:
        raise BackupError(f"{file} was written by a newer version of this program; update the program")
    schema = note.get("schema")
    known = {path.name.split("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}
    if schema is not None and schema not in known:
        raise BackupError(
            f"{file} was written by a newer version of this program (schema {schema}, known: {max(known)}); "
            "update the program"
        )


def _note(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    content = tar.extractfile(member) if member.isreg() and member.size <= MAX_NOTE_BYTES else None
    found = json.loads(content.read()) if content is not None else None
    if not isinstance(found, dict):
        raise ValueError(f"{member.name} is not a JSON object")
    return found


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, part: Path, copied: _Copied) -> None:
    root, _, name = member.name.partition("/")
    if root != ROOT or member.issparse() or not (member.isreg() or member.isdir()):
        raise BackupError(f"the archive holds {member.name!r}, which is no file of a home")
    path = _inside(part, name)
    if member.isdir():
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None  # a regular file
    copied.digest.update(f"{name}\0{member.size}\0".encode("utf-8", "surrogateescape"))
    if path.exists():
        raise BackupError(f"the archive holds {name!r} twice")
    with path.open("xb") as out:
        while data := content.read(CHUNK):
            copied.digest.update(data)
            out.write(data)
        os.fchmod(out.fileno(), (member.mode & 0o770) | 0o600)
    os.utime(path, (member.mtime, member.mtime))
    copied.report.files += 1
    copied.report.bytes += member.size


def _inside(part: Path, name: str) -> Path:
    """The path of a name in the home; refuses any other place."""
    pure = PurePosixPath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts or pure.as_posix() != name:
        raise BackupError(f"the archive holds {name!r}, which is no file of a home")
    return part / pure
