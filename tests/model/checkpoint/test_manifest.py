"""The manifest keeps its fields, hashes the files that define the model, and is derived if missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from model.checkpoint.manifest import (
    Capabilities,
    GenerationDefaults,
    ImageCount,
    Manifest,
    Perception,
    nearest_verifier,
)
from model.checkpoint.shards import CheckpointError


def test_manifest_round_trip(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("x")
    manifest = Manifest(
        name="a",
        template="tagged",
        base="b",
        licence="MIT",
        capabilities=Capabilities(images_in_answer=False),
        images=ImageCount(1, 1),
        perception=Perception(0.4, 0.1, 0.3),
        lineage={"seed": 5},
        extra={"later": [1, 2]},
    )
    written = manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    data = json.loads((tmp_path / "manifest.json").read_text())
    assert (data["format"], data["later"], data["perception"]["tau"]) == (1, [1, 2], 0.4)
    assert data["files"] == {"weights": {"sha256": written.files["weights"]["sha256"], "bytes": 1}}


def test_card_may_change_but_weights_must_not(tmp_path: Path) -> None:
    for name in ("README.md", "weights"):
        (tmp_path / name).write_text("x")
    manifest = Manifest(name="a").write(tmp_path)
    (tmp_path / "README.md").write_text("y")
    manifest.verify_hashes(tmp_path)
    (tmp_path / "weights").write_text("y")
    with pytest.raises(CheckpointError, match="hash_mismatch"):
        manifest.verify_hashes(tmp_path)
    (tmp_path / "weights").unlink()
    with pytest.raises(CheckpointError, match="missing_file"):
        manifest.verify_hashes(tmp_path)


@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}, {"images": {"most": 3}}, {"perception": {"t": 1}}])
def test_manifest_of_another_kind_is_rejected(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(Manifest(name="a").to_json() | change))
    with pytest.raises(CheckpointError, match="broken_file"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("path", "name", "template"),
    [
        ("Omni-R1", "Omni-R1", "plain"),
        ("models--ModalityDance--Omni-R1-Zero/snapshots/0123abcd", "Omni-R1-Zero", "tagged"),
    ],
)
def test_a_released_folder_gets_a_derived_manifest(
    tiny_checkpoint: Path, tmp_path: Path, path: str, name: str, template: str
) -> None:
    folder = tmp_path / path
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "manifest.json").unlink()
    manifest = Manifest.read(folder)
    assert (manifest.name, manifest.template, manifest.derived) == (name, template, True)
    assert manifest.capabilities == Capabilities(images_in_answer=True, images_in_question=True)
    assert "non-commercial" in manifest.licence
    manifest.verify_hashes(folder)  # derived manifests have no hashes


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "bos_token_id": 1, "repetition_penalty": 1.2},
            (0.7, 0.9),
        ),
        ({"do_sample": True}, (1.0, 1.0)),
        ({"do_sample": False, "temperature": 0.7}, (0.0, 1.0)),
        ({}, (0.0, 1.0)),
        (None, (0.0, 1.0)),
    ],
)
def test_sampling_defaults_come_from_the_generation_config(
    tmp_path: Path, stored: dict[str, object] | None, expected: tuple[float, float]
) -> None:
    if stored is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    defaults = GenerationDefaults.read(tmp_path)
    assert (defaults.temperature, defaults.top_p) == expected
    (tmp_path / "generation_config.json").write_text(json.dumps(defaults.to_json()))
    assert GenerationDefaults.read(tmp_path) == defaults


@pytest.mark.parametrize(
    ("name", "judge"),
    [
        ("base", "base"),
        ("pesft", "base"),
        ("perpo", "base"),
        ("better", "better"),
        ("on better", "better"),
        ("orphan", None),
        ("ring", None),
        ("nobody", None),
    ],
)
def test_nearest_verifier_is_the_checkpoint_or_a_base(name: str, judge: str | None) -> None:
    known = {
        "base": Manifest("base", verifier="What was done?"),
        "pesft": Manifest("pesft", base="base"),
        "perpo": Manifest("perpo", base="pesft"),
        "better": Manifest("better", base="base", verifier="And now?"),
        "on better": Manifest("on better", base="better"),
        "orphan": Manifest("orphan", base="deleted"),
        "ring": Manifest("ring", base="ring"),
    }
    assert nearest_verifier(name, known.get) == judge
