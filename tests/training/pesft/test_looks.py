"""Looks at a model in training: questions, logs, and that they never end a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import training.pesft.looks
from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.sequence import Completion
from model.text.template import StepPart
from tests.training.job_helpers import events, losses, make_context, pesft_spec
from training.data.samples import world_samples
from training.jobs.context import JobContext
from training.pesft.job import run
from training.pesft.looks import Looks
from training.spec.spec import UniTasksData

BLANK, FULL = (7, 7, 7, 7), (1, 2, 3, 4)


class ScriptedEngine:
    """Answers every question with one step, one image and the given answer."""

    image: tuple[int, ...] = BLANK
    answer = "left"

    def __init__(self, transformer: Any, vocab: Any, template: Any, *, num_slots: int) -> None:
        self.template = template

    def generate(self, prompts: Sequence[Sequence[int]], params: Any) -> list[Completion]:
        response = self.template.response_ids([StepPart("I look.", self.image)], self.answer)
        return [Completion(response, [0.0] * len(response), bytes(len(response)), "stop") for _ in prompts]


@pytest.fixture
def base(tiny_checkpoint: Path) -> LoadedCheckpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    monkeypatch.setattr(training.pesft.looks, "Engine", ScriptedEngine)
    return make_context(tmp_path, pesft_spec(), tiny_checkpoint)


def test_look_questions_are_not_trained_on(job: JobContext, base: LoadedCheckpoint) -> None:
    looks = Looks.of(job, base, 4)
    assert looks is not None
    trained = {s.where for s in world_samples(UniTasksData(num_samples=12), job.spec.seed)}
    assert {q.where for q in looks.questions}.isdisjoint(trained)
    assert {q.slice for q in looks.questions} == {"natural", "structured", "diagrammatic", "operational"}


def test_look_logs_images_and_rewards(job: JobContext, base: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks.of(job, base, 1)
    assert looks is not None
    (question,) = looks.questions
    monkeypatch.setattr(ScriptedEngine, "image", FULL)
    monkeypatch.setattr(ScriptedEngine, "answer", question.answer)
    looks.show("pesft", 5)
    (sample,) = events(job.folder, "sample")
    assert (sample["step"], sample["question"], sample["slice"]) == (5, question.question, question.slice)
    assert sample["answer"] == sample["reference"] == question.answer
    assert [step["text"] for step in sample["steps"]] == ["I look."]
    assert (job.folder / sample["steps"][0]["image"]).is_file()
    assert sample["rewards"]["accuracy"] == sample["rewards"]["format"] == 1.0
    assert 0.0 < sample["rewards"]["perception"] < 1.0
    assert events(job.folder, "warning") == []


def test_blank_images_warn_once(job: JobContext, base: LoadedCheckpoint) -> None:
    looks = Looks.of(job, base, 2)
    assert looks is not None
    for step in (0, 10, 20):
        looks.show("pesft", step)
    (warning,) = events(job.folder, "warning")
    assert warning == {"code": "blank_pictures", "detail": "2 of 2 pictures drawn after step 10 are blank"}


def test_failing_look_does_not_end_the_run(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room for an engine")

    monkeypatch.setattr(training.pesft.looks, "Engine", refuse)
    run(make_context(tmp_path, pesft_spec(steps=2, sample_every=1), tiny_checkpoint))
    assert len(losses(tmp_path)) == 2
    logged = [e["line"] for e in events(tmp_path, "log") if "given up" in e["line"]]
    assert logged == ["looks at the model are given up: RuntimeError: no room for an engine"]


def test_large_model_has_no_looks(job: JobContext, base: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.pesft.looks, "MAX_WEIGHT_BYTES", 1000)
    assert Looks.of(job, base, 2) is None
    assert "too large" in events(job.folder, "log")[0]["line"]
