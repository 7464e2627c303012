"""The family's recipe end to end, in seconds: every stage runs and writes a loadable checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint.checkpoint import VQ_FILE, load_checkpoint, validate_checkpoint
from training.benchmark.evaluate import evaluate, evaluation_tasks, summarize, table, wilson
from training.nano.stages import run


def test_every_stage_writes_checkpoint_with_lineage(family: Path) -> None:
    for name in ("nano-base", "nano-omni-r1"):
        manifest = validate_checkpoint(family / name)
        assert manifest.name == name
        assert manifest.lineage["recipe"]["seed"] == 0
        assert manifest.perception is not None
    assert validate_checkpoint(family / "nano-omni-r1").base == "nano-base"


def test_vq_shard_is_identical_in_all_folders(family: Path) -> None:
    shards = [(family / name / VQ_FILE).read_bytes() for name in ("vq", "nano-base", "nano-omni-r1")]
    assert shards[0] == shards[1] == shards[2]


def test_transformers_loads_the_family(family: Path) -> None:
    transformers = pytest.importorskip("transformers")
    _, info = transformers.ChameleonForConditionalGeneration.from_pretrained(
        family / "nano-omni-r1", output_loading_info=True
    )
    assert not info["missing_keys"]


def test_learned_projection_is_saved(family: Path) -> None:
    control = run("pesft", preset="smoke", out=family, threads=1, perception_weight=0.0)
    assert control.name == "nano-lambda0"
    assert "perception.weight" not in load_file(control / "model-lm.safetensors")
    assert "perception.weight" in load_file(family / "nano-omni-r1" / "model-lm.safetensors")


@pytest.mark.parametrize("variant", ["text", "state"])
def test_controls_use_same_traces_and_steps(family: Path, variant: str) -> None:
    folder = run("pesft", preset="smoke", out=family, threads=1, variant=variant)
    spec = json.loads((family / "runs" / folder.name / "spec.json").read_text())["spec"]
    main = json.loads((family / "runs" / "nano-omni-r1" / "spec.json").read_text())["spec"]
    assert spec["steps"] == main["steps"]
    assert spec["max_tokens"] < main["max_tokens"]
    assert spec["perception_weight"] == 0.0


def test_short_run_has_own_name_and_traces(family: Path) -> None:
    main = json.loads((run("pesft", preset="smoke", out=family, threads=1, steps=1) / "manifest.json").read_text())
    assert main["name"] == "nano-omni-r1-1"
    assert main["lineage"]["data"]["sequences"] == 16
    control = run("pesft", preset="smoke", out=family, threads=1, steps=1, variant="text")
    assert control.name == "nano-text-only-1"
    spec = json.loads((family / "runs" / control.name / "spec.json").read_text())["spec"]
    assert spec["max_tokens"] < 1_024  # as many traces as the interleaved batch, in fewer tokens


def test_stage_names_missing_inputs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the vq stage first"):
        run("base", preset="smoke", out=tmp_path)
    with pytest.raises(ValueError, match="run the base stage first"):
        run("pesft", preset="smoke", out=tmp_path)
    with pytest.raises(ValueError, match="unknown preset"):
        run("vq", preset="huge", out=tmp_path)


def test_evaluation_judges_answers_and_drawings(family: Path) -> None:
    loaded = load_checkpoint(family / "nano-omni-r1")
    tasks = evaluation_tasks(4)
    predictions = evaluate(loaded, tasks, num_slots=4)
    assert [p.task_id for p in predictions] == [t.task_id for t in tasks]
    assert all(p.drawings_total >= len(t.steps) for p, t in zip(predictions, tasks, strict=True))
    summary = summarize(predictions)
    assert summary["all"]["tasks"] == 4
    assert {"natural", "structured", "diagrammatic", "operational"} <= set(summary)
    assert "| all | 4 |" in table(summary)


def test_text_only_control_draws_nothing(family: Path) -> None:
    predictions = evaluate(load_checkpoint(family / "nano-omni-r1"), evaluation_tasks(4), num_slots=4, max_images=0)
    assert sum(p.pictures for p in predictions) == 0


def test_wilson_interval_by_hand() -> None:
    # 8 of 10: centre (.8 + .19208) / 1.38416 = .71673; half 1.96 / 1.38416 * sqrt(.016 + .009604) = .22658
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4901, abs=1e-3)
    assert high == pytest.approx(0.9433, abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)


def test_stages_are_bit_reproducible(family: Path, tmp_path: Path) -> None:
    run("vq", preset="smoke", out=tmp_path, threads=1)
    first, second = load_file(family / "vq" / VQ_FILE), load_file(tmp_path / "vq" / VQ_FILE)
    assert all(torch.equal(first[name], second[name]) for name in first)
