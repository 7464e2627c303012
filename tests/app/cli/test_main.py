"""The command line: exit codes, errors of one line, checkpoints, doctor, help."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from app.cli import doctor
from app.cli.main import main
from app.cli.terminal import clean, table
from tests.app.canned import Canned


@pytest.mark.parametrize(
    "argv",
    [
        ["ask", "missing.png", "Why?"],
        ["ask", ".", "Why?"],
        ["ask", "picture.png"],
        ["ask", "picture.png", "Why?", "--temperature", "nan"],
        ["ask", "picture.png", "Why?", "--seed", "x"],
        ["ask", "picture.png", "Why?", "--unknown"],
        ["ask", "picture.png", "Why?", "--url", "nonsense"],
        ["task", "natural"],
        ["task", "--slice", "other"],
        ["checkpoints", "show"],
        ["checkpoints", "show", "unknown"],
        ["nothing"],
        [],
    ],
)
def test_bad_input_exits_with_2(canned: Canned, capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("omni-r1: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "no-such-checkpoint"],
        ["evaluate", "empty"],
        ["evaluate", "--tasks", "0"],
        ["evaluate", "--level", "9"],
        ["evaluate", "--quant", "int4"],
        ["evaluate", "--first-seed", "-1"],
        ["evaluate", "--first-seed", str(2**53)],
        ["evaluate", "--first-seed", str(2**53 - 1), "--tasks", "2"],
        ["train", "nano", "--stage", "base", "--out", "empty"],
        ["train", "nano", "--stage", "vq", "--preset", "no-such-preset"],
        ["train", "nano", "--stage", "rl"],
        ["train", "nano", "--stage", "pesft", "--perception-weight", "inf"],
        ["train"],
        ["convert", "empty", "out"],
        ["convert", "empty", "out", "--base", "nano-base"],
        ["serve", "--port", "70000"],
        ["serve", "--host", "0.0.0.0"],
    ],
)
def test_bad_input_without_a_server_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNI_R1_HOME", str(tmp_path / "home"))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("omni-r1: ")
    assert err.count("\n") == 1


def test_doctor_reports_an_impossible_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("OMNI_R1_HOME", str(tmp_path / "file" / "home"))
    assert main(["doctor", "--json", "--port", "0"]) == 1
    found = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert set(found) >= {"python", "packages", "device", "memory", "threads", "checkpoint", "home", "disk", "port"}
    assert found["home"]["state"] == "bad"
    assert "OMNI_R1_HOME" in found["home"]["detail"]
    assert found["python"]["state"] == found["packages"]["state"] == found["port"]["state"] == "ok"


def test_doctor_names_an_invalid_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMNI_R1_PORT", "http")
    assert main(["doctor"]) == 1
    assert "OMNI_R1_PORT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("is_installed", "address", "state", "words"),
    [
        (False, "", "bad", "omni-r1-studio[ray]"),
        (True, "", "ok", "starts a cluster"),
        (True, "ray://127.0.0.1:9", "bad", "host:port"),
        (True, "127.0.0.1:9", "bad", "refused"),
    ],
)
def test_doctor_examines_ray(
    monkeypatch: pytest.MonkeyPatch, is_installed: bool, address: str, state: str, words: str
) -> None:
    def found(name: str) -> str:
        if name == "ray" and not is_installed:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", found)
    monkeypatch.setenv("OMNI_R1_ENGINE", "ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    finding = next(finding for finding in doctor.examine(0) if finding.check == "ray")
    assert finding.state == state
    assert words in finding.detail


@pytest.mark.parametrize("argv", [["task"], ["checkpoints"]])
def test_missing_server_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    monkeypatch.setenv("OMNI_R1_URL", "http://127.0.0.1:1")
    assert main(argv) == 3
    err = capsys.readouterr().err
    assert "omni-r1 serve" in err
    assert "OMNI_R1_URL" in err
    assert err.count("\n") == 1


def test_other_program_on_the_port_exits_with_3(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers["GET /v1/tasks"] = (200, b"<html>")
    assert main(["task"]) == 3
    assert "Another program" in capsys.readouterr().err


def test_404_of_another_program_names_the_setting(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    canned.answers["GET /v1/tasks"] = (404, b"<html>")
    assert main(["task"]) == 2
    assert "set OMNI_R1_URL" in capsys.readouterr().err


def test_checkpoints_are_listed_and_shown(canned: Canned, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["nano-omni-r1", "active,", "loaded", "12.3", "MB", "MIT", "nano-base"]
    assert "unusable: no tokenizer" in lines[2]
    assert main(["checkpoints", "show", "nano-omni-r1"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "nano-omni-r1"}


def test_checkpoint_is_registered_activated_and_deleted(
    canned: Canned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert main(["checkpoints", "register", "folder", "--name", "mine"]) == 0
    assert capsys.readouterr().out == "mine\n"
    assert canned.body_of("POST /v1/checkpoints") == {"source": str(tmp_path / "folder"), "name": "mine"}
    assert main(["checkpoints", "activate", "mine", "--drain", "wait"]) == 0
    out, err = capsys.readouterr()
    assert out == "mine is active, version 7\n"
    assert "checkpoints activate nano-omni-r1" in err, "the way back"
    assert canned.body_of("POST /v1/checkpoints/mine/activate") == {"drain": "wait"}
    assert main(["checkpoints", "delete", "mine", "--unload"]) == 0
    assert canned.calls[-1][1].endswith("/v1/checkpoints/mine?unload=true")
    assert main(["checkpoints", "register", "owner/name"]) == 0
    assert json.loads(canned.calls[-1][2]) == {"source": "owner/name"}


def test_slow_activation_shows_its_progress(
    canned: Canned, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.cli.checkpoints.LOOK_EVERY_S", 0.01)
    canned.slow.add("POST /v1/checkpoints/mine/activate")
    canned.answers["GET /readyz"] = (200, {"detail": "checkpoint mine is being loaded: 3.2 of 14.3 GB read"})
    assert main(["checkpoints", "activate", "mine"]) == 0
    out, err = capsys.readouterr()
    assert out == "mine is active, version 7\n"
    assert err.count("3.2 of 14.3 GB read") == 1
    canned.answers["POST /v1/checkpoints/mine/activate"] = (
        507,
        {"code": "insufficient_memory", "detail": "no room", "status": 507, "title": "Not enough memory"},
    )
    assert main(["checkpoints", "activate", "mine"]) == 1
    assert "no room" in capsys.readouterr().err


def test_help_and_version_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for command in ("serve", "ask", "task", "checkpoints", "evaluate", "train", "convert", "doctor"):
        assert command in out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("omni-r1 ")


def test_help_imports_only_the_parser() -> None:
    script = (
        "import sys; from app.cli.main import main; main(['--help'])\n"
        "sys.exit([m for m in ('torch', 'gradio', 'httpx', 'pydantic', 'rich') if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_terminal_output_has_no_control_characters() -> None:
    assert clean("a\x1b[2J\x07b\x9bc\rd\n\te\ud800é🎨") == "a[2Jbcd\n\teé🎨"


def test_table_columns_fit_their_cells() -> None:
    assert table(["a", "b"], [["long", "x"], ["s", "y\nz"]]) == "a     b\nlong  x\ns     y z\n"
