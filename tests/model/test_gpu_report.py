"""The GPU report's own code, with tiny shapes on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import gpu


def test_the_engine_equals_whole_forwards(tmp_path: Path) -> None:
    assert gpu.main(["--dry", "--out", str(tmp_path), "--parts", "equality", "syncs"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["equality"]["equal"] == found["equality"]["tokens"] > 0
    assert "| syncs | syncs | 0 |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_every_part_runs_dry(tmp_path: Path) -> None:
    assert gpu.main(["--dry", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == ["machine", *gpu.PARTS]
    assert not [part for part, figures in found.items() if "error" in figures]
    assert found["swap"]["load_s"] > 0
    assert found["swap"]["steps"] > 0
    assert "not run" not in (tmp_path / "gpu.md").read_text()


def test_limits_add_up_to_eight_minutes() -> None:
    assert sum(seconds for _, seconds in gpu.PARTS.values()) <= 480


def test_a_part_that_fails_or_takes_too_long_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(rig: gpu.Rig) -> gpu.Result:
        while True:
            pass

    monkeypatch.setitem(gpu.PARTS, "bandwidth", (endless, 1))
    monkeypatch.setattr(gpu, "DRY_PATIENCE", 1)
    assert gpu.main(["--dry", "--out", str(tmp_path), "--parts", "bandwidth", "syncs"]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["bandwidth"] == {"error": "TimeoutError: took over 1 s"}
    assert found["syncs"]["steps"] > 0


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if gpu.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main(["--out", str(tmp_path)]) == 2
    assert "--dry" in capsys.readouterr().err
