"""Prompts from the world and from files, and their rejections."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.images.codes import encode_images
from tests.tiny import make_tiny_checkpoint
from training.perpo.prompts import FilePrompts, WorldPrompts
from training.scoring.grading import grade
from training.spec.spec import JsonlData, M3CoTData, OmniBenchData, UniTasksData
from training.world.task import StateTarget, Step, Task, identity_steps
from training.world.world import RL_SEEDS, make_task


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedCheckpoint:
    return load_checkpoint(make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny"))


def png(colour: str = "red") -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def from_rows(tiny: LoadedCheckpoint, path: Path, rows: list[dict[str, Any]], data: Any, **more: Any) -> FilePrompts:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tiny.vq is not None
    return FilePrompts(data, tiny.template, tiny.vq, context_len=512, **more)


def test_world_prompts_use_rl_seeds(tiny: LoadedCheckpoint) -> None:
    assert tiny.vq is not None
    prompts = WorldPrompts(UniTasksData(num_samples=200), 3, tiny.template, tiny.vq)
    first, second = prompts.take([0, 5])
    task = make_task("natural", RL_SEEDS.start + 300_000)
    assert (first.question, first.reference, first.slice) == (task.question, task.answer, "natural")
    assert first.images == (encode_images(tiny.vq, [task.image])[0],)
    assert list(first.ids) == tiny.template.prompt_ids(task.question, first.images)
    assert second.slice == "structured"
    assert len(prompts) == 200
    assert all(len(p.ids) <= prompts.longest for p in prompts.take(range(200)))


def test_world_prompts_avoid_evaluation_seeds(tiny: LoadedCheckpoint) -> None:
    assert tiny.vq is not None
    with pytest.raises(ValueError, match="evaluation"):
        WorldPrompts(UniTasksData(first_seed=999_999_990, num_samples=11), 0, tiny.template, tiny.vq)


def test_steps_without_change_are_known() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    steps = tuple(Step("I wait.", "predict", "PRED(stay)", image, "", StateTarget(())) for image in (red, blue, blue))
    task = Task("operational", "walker", 0, "?", red, steps, "red")
    assert identity_steps(task) == {1, 3}


def test_jsonl_prompts_have_images_and_answer(tiny: LoadedCheckpoint, tmp_path: Path) -> None:
    row = {
        "Question": "<image_start>[problem_image_1]<image_end>Which colour?",
        "Text Reasoning Trace": "THOUGHT 1: I look.",
        "Final Answer": "red",
        "problem_image_1": png(),
    }
    broken = {**row, "problem_image_1": None}
    ids = {**row, "problem_image_1": tiny.vocab.image_ids([1, 2, 3, 4])}
    prompts = from_rows(tiny, tmp_path / "a.jsonl", [row, broken, ids], JsonlData(path=str(tmp_path)))
    assert [p.images for p in prompts.take([1])] == [((1, 2, 3, 4),)]
    prompt = prompts.take([0])[0]
    assert (prompt.question, prompt.reference) == ("Which colour?", "red")
    assert tiny.vocab.boi_id in prompt.ids
    assert [(r.where, r.code) for r in prompts.intake.rejected] == [("a.jsonl:2", "missing_picture")]
    assert prompts.longest == max(len(p.ids) for p in prompts.take([0, 1]))


def test_foreign_images_and_long_prompts_are_rejected(tiny: LoadedCheckpoint, tmp_path: Path) -> None:
    row = {"Question": "Which?", "Text Reasoning Trace": "I look.", "Final Answer": "red"}
    alien = {**row, "Question": "<image_start>[a]<image_end> Which?", "a": [8200, 8201, 8202, 8203]}
    rows = [row, alien, {**row, "Question": "x" * 2_000}]
    prompts = from_rows(tiny, tmp_path / "a.jsonl", rows, JsonlData(path=str(tmp_path)))
    assert len(prompts) == 1
    assert [r.code for r in prompts.intake.rejected] == ["broken_picture", "too_long"]


def test_m3cot_prompts_know_their_options(tiny: LoadedCheckpoint, tmp_path: Path) -> None:
    row = {
        "id": "1",
        "question": "Which?",
        "choices": ["a star", "a moon"],
        "answer": "B",
        "rationale": "",
        "image": png(),
        "split": "train",
        "domain": "natural",
    }
    rows = [row, {**row, "split": "test"}, {**row, "answer": "F"}]
    prompts = from_rows(tiny, tmp_path / "m.jsonl", rows, M3CoTData(path=str(tmp_path), split="train"))
    prompt = prompts.take([0])[0]
    assert prompt.question == "Which?\n(A) a star\n(B) a moon"
    assert prompt.choices == ("a star", "a moon")
    for answer in ("B", "(B)", "a moon", "(B) a moon"):
        assert grade(answer, prompt.reference, prompt.choices).score == 1.0
    assert grade("A", prompt.reference, prompt.choices).score == 0.0
    assert [(r.where, r.code) for r in prompts.intake.rejected] == [("m.jsonl:3", "broken_row")]


def test_omni_bench_prompts_may_lack_images(tiny: LoadedCheckpoint, tmp_path: Path) -> None:
    rows = [
        {"image": "<TLTS>", "question": "1 + 1?", "answer": "2"},
        {"image": [png()], "question": "?", "answer": "x"},
    ]
    prompts = from_rows(tiny, tmp_path / "chartqa.jsonl", rows, OmniBenchData(path=str(tmp_path)))
    assert [len(p.images) for p in prompts.take([0, 1])] == [0, 1]
    assert prompts.take([0])[0].slice == "structured"
