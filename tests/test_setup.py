"""setup.sh: which index torch comes from, and which installer runs. A fake Python records the calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the choice of an index is made on Linux")


def script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def installs(
    folder: Path, *, answers: bool, gpu: bool = False, uv: bool = False, index: str = ""
) -> tuple[str, list[str]]:
    """What setup.sh says, and its calls of an installer."""
    for name in ("setup.sh", "setup.py", "pyproject.toml", "constraints.txt"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    log, bin_ = folder / "log", folder / "bin"
    probe = f'case "$*" in *urllib*) exit {int(not answers)};; *install*) echo "pip $*" >>{log};; esac'
    script(folder / "venv" / "bin" / "python", probe)
    script(bin_ / "nvidia-smi", f"exit {int(not gpu)}")
    if uv:
        script(bin_ / "uv", f'echo "uv $*" >>{log}')
    done = subprocess.run(
        ["sh", "setup.sh", "venv", "app"],
        cwd=folder,
        env={"PATH": f"{bin_}:/usr/bin:/bin", "TORCH_INDEX": index, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout, log.read_text().splitlines()


def torch_index(calls: list[str]) -> str | None:
    """The index that a step of its own takes torch from, if there is one; the other step installs the rest."""
    assert calls[-1].endswith("-e .[dev]")
    if len(calls) == 1:
        return None
    (step, _) = calls
    assert step.endswith(" torch")
    assert "--no-deps" in step
    return step.split("--index-url ")[1].split()[0]


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has an NVIDIA GPU")
def test_machine_without_gpu_takes_the_cpu_index(tmp_path: Path) -> None:
    said, calls = installs(tmp_path, answers=True)
    assert torch_index(calls) == CPU_INDEX
    assert CPU_INDEX in said
    assert "0.5 GB" in said


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has an NVIDIA GPU")
def test_unreachable_index_falls_back_to_the_default(tmp_path: Path) -> None:
    said, calls = installs(tmp_path, answers=False)
    assert torch_index(calls) is None
    assert "is unreachable" in said


def test_machine_with_gpu_takes_the_default_index(tmp_path: Path) -> None:
    assert torch_index(installs(tmp_path, answers=True, gpu=True)[1]) is None


@pytest.mark.parametrize("gpu", [False, True])
def test_torch_index_overrides(tmp_path: Path, gpu: bool) -> None:
    said, calls = installs(tmp_path, answers=False, gpu=gpu, index="https://mirror.example/simple")
    assert torch_index(calls) == "https://mirror.example/simple"
    assert "https://mirror.example/simple" in said


def test_uv_is_used_where_it_is_installed(tmp_path: Path) -> None:
    _, calls = installs(tmp_path, answers=True, gpu=True, uv=True)
    assert [call.split()[0] for call in calls] == ["uv"]
    assert "-c constraints.txt" in calls[0]


def test_second_run_installs_nothing(tmp_path: Path) -> None:
    installs(tmp_path, answers=True, gpu=True)
    script(tmp_path / "venv" / "bin" / "omni-r1", "")
    (tmp_path / "log").write_text("")
    assert installs(tmp_path, answers=True, gpu=True)[1] == []
