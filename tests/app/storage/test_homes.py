"""Unusable homes: one line on stderr and exit code 2, from the server and the command line."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.common.settings import SettingsError, read_settings
from app.storage.home import Home, HomeError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
# As in a container running as an arbitrary user that the system does not know.
NOBODY = "import pwd\ndef unknown(*_): raise KeyError('no such user')\npwd.getpwuid = pwd.getpwnam = unknown\n"
SERVE = NOBODY + "import sys; from app.cli.main import main; sys.exit(main(['serve', '--port', '0']))"
SERVE_MODULE = NOBODY + "import runpy; runpy.run_module('app.main', run_name='__main__')"
EVALUATE = NOBODY + "import sys; from app.cli.main import main; sys.exit(main(['evaluate', 'mine', '--tasks', '1']))"
REGISTER = NOBODY + "import sys; from app.cli.main import main; sys.exit(main(['checkpoints', 'register', '~/x']))"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_R1_") and name != "HOME"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=plain | environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.mark.parametrize(
    ("code", "home"),
    [
        (SERVE, None),
        (SERVE, "~/studio"),
        (SERVE, "~nobody-here/x"),
        (SERVE, ""),
        (SERVE_MODULE, None),
        (EVALUATE, None),
    ],
)
def test_unresolvable_home_is_one_line(code: str, home: str | None) -> None:
    done = run(code, **({} if home is None else {"OMNI_R1_HOME": home}))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "OMNI_R1_HOME" in done.stderr


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "locked"])
def test_unwritable_home_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "locked" / "lock").mkdir(parents=True)
    done = run(SERVE, OMNI_R1_HOME=str(tmp_path / place))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "set OMNI_R1_HOME" in done.stderr


def test_client_needs_no_home() -> None:
    done = run(REGISTER, OMNI_R1_URL="http://127.0.0.1:9")
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("home", ["a\0b", "", "~nobody-here/x"])
def test_impossible_home_path_is_rejected(home: str) -> None:
    with pytest.raises(SettingsError, match="OMNI_R1_HOME"):
        read_settings(home=home)


@pytest.mark.parametrize("name", ["images", "jobs", "tmp", "lock"])
def test_file_in_place_of_a_folder_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir() if name == "lock" else path.write_text("x")
    with pytest.raises(HomeError, match=name):
        Home(tmp_path).open()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
@pytest.mark.parametrize(("before", "after"), [(0o770, 0o770), (0o775, 0o770), (0o755, 0o700), (0o700, 0o700)])
def test_group_0_keeps_its_write_access(tmp_path: Path, before: int, after: int) -> None:
    path = tmp_path / "data"
    path.mkdir()
    os.chown(path, 10001, 0)
    path.chmod(before)
    home = Home(path)
    home.open()
    home.close()
    assert stat.S_IMODE(path.stat().st_mode) == after
