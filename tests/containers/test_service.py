"""containers/omni-r1.service: systemd understands it, and it fits the server."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from app.cli.main import build_parser
from app.common.settings import PREFIX, Settings
from app.server import BAD_START, DRAIN_S, GRACEFUL_S
from tests.patience import PATIENCE_S
from tests.test_containers import ROOT

UNIT = ROOT / "containers" / "omni-r1.service"


def option(name: str) -> str:
    (value,) = options(name)
    return value


def options(name: str) -> list[str]:
    """The values of an option, which some units give several times."""
    lines = [line for line in UNIT.read_text("utf-8").splitlines() if line and line[0] not in "#["]
    return [value for key, _, value in (line.partition("=") for line in lines) if key == name]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """With a program that exists here: systemd looks for it."""
    for name, text in (("omni-r1", UNIT.read_text("utf-8")), ("wrong", "[Service]\nExecStart=/bin/true\nKillMod=x\n")):
        unit = tmp_path / f"{name}.service"
        unit.write_text(text.replace(option("ExecStart").split()[0], "/bin/true"))
        verify = ["systemd-analyze", "verify", "--man=no", str(unit)]
        said = subprocess.run(verify, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        about = [line for line in said.stderr.splitlines() if unit.name in line]
        assert bool(about) is (name == "wrong"), said.stderr


def test_it_starts_the_server_in_its_own_folder() -> None:
    program, *arguments = option("ExecStart").split()
    assert program == f"{option('WorkingDirectory')}/.venv/bin/omni-r1"
    assert build_parser().parse_args(arguments).port is None  # the environment decides
    environment = dict(pair.split("=", 1) for pair in options("Environment"))
    known = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    assert set(environment) - known == {"HOME"}
    state = f"/var/lib/{option('StateDirectory')}"
    assert environment == {"HOME": state, "OMNI_R1_HOME": state}
    assert option("EnvironmentFile").startswith("-/etc/")  # the key does not stand in the unit
    assert not [line for line in options("Environment") if "KEY" in line]


def test_only_its_state_and_its_tmp_are_writable() -> None:
    assert option("ProtectSystem") == "strict"
    assert (option("ProtectHome"), option("PrivateTmp"), option("NoNewPrivileges")) == ("yes", "yes", "yes")
    assert option("CapabilityBoundingSet") == ""
    assert option("User") not in ("", "root")
    assert not options("ReadWritePaths")


def test_it_restarts_after_a_crash_and_gives_time_to_stop() -> None:
    assert option("Restart") == "on-failure"
    assert option("RestartPreventExitStatus") == str(BAD_START)
    assert option("KillSignal") == "SIGTERM"
    assert option("KillMode") == "process"  # a worker that gets two signals does not save
    assert float(option("TimeoutStopSec")) > DRAIN_S + GRACEFUL_S
