"""A PostgreSQL for the tests: a cluster in a temporary folder, reachable by its socket only, removed at the end.

Needs Debian's `postgresql` (or any `initdb` and `postgres` in PATH). As root it runs as the user `postgres`, as
PostgreSQL requires. Without it tests are skipped with the reason, or fail if OMNI_R1_REQUIRE_POSTGRES=1.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.patience import PATIENCE_S

# Throw-away data may be lost in a power cut.
CARELESS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "autovacuum=off", "shared_buffers=32MB")


def find(program: str) -> str | None:
    """The latest installed `program`; Debian keeps PostgreSQL's out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), key=lambda path: int(path.parts[-3]))
    return str(found[-1]) if found else shutil.which(program)


def why_not() -> str | None:
    """Why a cluster is impossible here, or None."""
    if find("initdb") is None or find("postgres") is None:
        return "PostgreSQL is not installed (Debian and Ubuntu: apt-get install postgresql)"
    if os.getuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user `postgres`"
    return None


def require_postgres() -> None:
    """Skip the test without PostgreSQL; fail if it is required."""
    reason = why_not()
    if reason is not None:
        if os.environ.get("OMNI_R1_REQUIRE_POSTGRES") == "1":
            pytest.fail(f"OMNI_R1_REQUIRE_POSTGRES=1, but {reason}")
        pytest.skip(reason)


def _user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


class Cluster:
    """One database server; `new()` returns the URL of a fresh database."""

    def __init__(self) -> None:
        # Not pytest's folder: other users cannot enter it, and a socket path has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="omni-pg-"))
        self._as: dict[str, Any] = {"cwd": self.folder, "stdin": subprocess.DEVNULL}
        user = _user() if os.getuid() == 0 else None
        self._name = user.pw_name if user else pwd.getpwuid(os.getuid()).pw_name
        if user is not None:
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._data = self.folder / "data"
        self._numbers = count(1)
        self._template: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Cluster:
        """Create the cluster if necessary, start it, wait until it answers."""
        if not self._data.exists():
            made = [find("initdb"), "-D", self._data, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
            subprocess.run(made, **self._as, check=True, capture_output=True, timeout=PATIENCE_S)
        settings = ("listen_addresses=", f"unix_socket_directories={self.folder}", "max_connections=200", *CARELESS)
        command = [find("postgres"), "-D", self._data, *(word for setting in settings for word in ("-c", setting))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, **self._as, stdout=log, stderr=log)
        self._wait()
        return self

    def _wait(self) -> None:
        import psycopg

        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError as error:
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.folder / "log").read_text()) from error
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop immediately, as after a crash; `start` restores everything committed."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    @property
    def pid(self) -> int:
        """The pid of the running server."""
        assert self._process is not None
        return self._process.pid

    def remove(self) -> None:
        """Stop, and delete all files."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """The URL in the spelling of the settings."""
        return f"postgresql://{self._name}@/{database}?host={quote(str(self.folder), safe='')}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as administrator."""
        import psycopg

        address = f"host={self.folder} dbname={database} user={self._name}"
        with psycopg.connect(address, autocommit=True, connect_timeout=int(PATIENCE_S)) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]  # our own words
            return cursor.fetchall() if cursor.description else []

    def new(self, *, migrated: bool = True) -> str:
        """The URL of a new database, with tables or empty."""
        name = f"omni_{next(self._numbers)}"
        if not migrated:
            self.execute(f"CREATE DATABASE {name}")
            return self.url(name)
        if self._template is None:
            from app.storage.database import Database

            self._template = self.url("migrated")
            self.execute("CREATE DATABASE migrated")
            database = Database(self._template)
            database.migrate()
            database.close()
        self.execute(f"CREATE DATABASE {name} TEMPLATE migrated")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database of `new`, closing its connections."""
        name = url.split("@/")[1].split("?")[0]
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
