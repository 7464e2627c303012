"""The scale of the perception score, measured for any checkpoint; PeRPO needs one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.cli.main import main
from model.checkpoint.checkpoint import load_checkpoint, validate_checkpoint
from model.checkpoint.manifest import Manifest, Perception
from model.checkpoint.shards import SHIPPED
from model.images.codes import encode_images, image_energies, image_stats
from tests.training.job_helpers import make_context
from training.jobs.context import JobError
from training.perpo import job as perpo
from training.scoring.calibrate import LEAST_IMAGES, calibrate
from training.world.world import make_task

COUNT = 24


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint whose manifest has no scale."""
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    replace(Manifest.read(copy), perception=Perception(tau=3.0)).write(copy)
    return copy


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Noise in two folders, beside files of another kind."""
    place, rng = tmp_path / "images", np.random.default_rng(0)
    (place / "more").mkdir(parents=True)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / ("more" if number % 2 else ".") / f"{number:02}.png")
    (place / "notes.txt").write_text("no image")
    return place


def test_scale_is_that_of_the_images(folder: Path, images: Path) -> None:
    before = Manifest.read(folder)
    perception, count = calibrate(folder, images)
    vq = load_checkpoint(folder).vq
    assert vq is not None
    codes = [encode_images(vq, [path.read_bytes()])[0] for path in sorted(images.rglob("*.png"))]
    energies = sorted(image_energies(vq, codes))
    assert count == COUNT
    assert perception.tau == pytest.approx(energies[(COUNT - 1) // 2], abs=1e-3)
    assert perception.energy_p95 == pytest.approx(np.quantile(energies, 0.05), abs=1e-3)
    after = validate_checkpoint(folder)
    assert after.perception == perception
    assert after == replace(before, perception=perception, files=after.files)
    assert {name: one for name, one in after.files.items() if name.endswith("tensors")} == {
        name: one for name, one in before.files.items() if name.endswith("tensors")
    }


def test_a_plain_canvas_earns_nothing_afterwards(tmp_path: Path) -> None:
    """With the shipped VQ and drawings of the world: a grey canvas has four codes, and earned .95 without a scale."""
    folder = Path(shutil.copytree(SHIPPED / "nano-omni-r1", tmp_path / "nano"))
    vq = load_checkpoint(folder).vq
    assert vq is not None
    (tmp_path / "drawings").mkdir()
    steps = [step for seed in range(12) for step in make_task("natural", 1_000_000 + seed).steps]
    for number, step in enumerate(steps):
        step.image.save(tmp_path / "drawings" / f"{number}.png")
    calibrate(folder, tmp_path / "drawings")
    (grey,) = encode_images(vq, [Image.new("RGB", (64, 64), "grey")])
    assert image_stats(vq, grey, Perception(tau=3.0)).perception_reward > 0.9
    assert image_stats(vq, grey, Manifest.read(folder).perception).perception_reward == 0


def test_folder_without_a_manifest_gets_one(folder: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "manifest.json").unlink()
    assert main(["calibrate", str(folder), "--images", str(images), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == COUNT
    assert printed["perception"] == json.loads((folder / "manifest.json").read_text())["perception"]
    assert not validate_checkpoint(folder).derived


def few(folder: Path, images: Path) -> None:
    for path in sorted(images.rglob("*.png"))[LEAST_IMAGES - 1 :]:
        path.unlink()


def broken(folder: Path, images: Path) -> None:
    (images / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def blank(folder: Path, images: Path) -> None:
    for path in images.rglob("*.png"):
        Image.new("RGB", (16, 16)).save(path)


def changed(folder: Path, images: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(few, "at least 20"), (broken, "00.png"), (blank, "1 different images"), (changed, "differs from the file")],
)
def test_unusable_images_or_files_change_nothing(
    folder: Path, images: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path, Path], None], words: str
) -> None:
    spoil(folder, images)
    before = (folder / "manifest.json").read_bytes()
    assert main(["calibrate", str(folder), "--images", str(images)]) == 2
    assert words in capsys.readouterr().err
    assert (folder / "manifest.json").read_bytes() == before


def test_perpo_needs_a_scale_unless_the_reward_is_off(
    folder: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(Exception):
        """The job got as far as its prompts."""

    def reached(*_: Any) -> None:
        raise Reached

    monkeypatch.setattr(perpo, "load_prompts", reached)

    def spec(gamma: float) -> dict[str, Any]:
        hyper = {"steps": 1, "precision": "fp32", "reward": {"gamma": gamma}}
        return {"method": "perpo", "data": {"source": "unitasks", "num_samples": 8}, "hyperparameters": hyper}

    with pytest.raises(JobError) as error:
        perpo.run(make_context(tmp_path / "refused", spec(0.05), folder))
    assert error.value.code == "uncalibrated"
    assert "omni-r1 calibrate" in error.value.detail
    with pytest.raises(Reached):
        perpo.run(make_context(tmp_path / "off", spec(0.0), folder))
    calibrate(folder, images)
    with pytest.raises(Reached):
        perpo.run(make_context(tmp_path / "calibrated", spec(0.05), folder))
