"""Prompts that the start weights answer always or never are left out, the same ones after a restart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.tiny import make_tiny_checkpoint
from tests.training.perpo.test_job import HYPER, FakePrompts, FakeSampler, FakeScorer, StopAfter, context, events
from training.jobs.context import JobContext, JobError, JobStopped
from training.perpo import job as perpo
from training.perpo.prompts import FilePrompts
from training.perpo.screening import screened
from training.scoring.rewards import RewardBreakdown, Scorer
from training.spec.spec import parse_spec


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


class Pairs(FakeSampler):
    group_size = 2


def kept(ctx: JobContext, sampler: Any, folder: Path, base: str = "one", count: int = 5) -> list[int]:
    prompts = FakePrompts().take(range(count))
    return screened(ctx, prompts, sampler, FakeScorer(), {"base": base}, folder)  # type: ignore[arg-type]


def test_only_prompts_of_mixed_answers_stay(base: Path, tmp_path: Path) -> None:
    ctx = context(base, tmp_path)
    sampler = Pairs([(1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (1.0, 0.0), (1.0, 1.0)])
    assert kept(ctx, sampler, tmp_path) == [1, 3]
    assert "2 of 5 prompts are answered right by some of 2 samples, 2 by all and 1 by none" in "".join(
        row["line"] for row in events(tmp_path, "log")
    )
    with pytest.raises(JobError, match="by all or by none") as error:
        kept(ctx, Pairs([(1.0, 1.0)] * 5), tmp_path)
    assert error.value.code == "no_samples"


def test_resumed_run_reads_its_counts(base: Path, tmp_path: Path) -> None:
    mixed = [(0.0, 1.0)] * 5
    assert kept(context(base, tmp_path), Pairs(mixed), tmp_path) == [0, 1, 2, 3, 4]
    resumed = context(base, tmp_path, resume=True)
    assert kept(resumed, Pairs([]), tmp_path) == [0, 1, 2, 3, 4]
    for change in ({"base": "two"}, {"count": 4}):
        sampler = Pairs(mixed)
        kept(resumed, sampler, tmp_path, **change)  # type: ignore[arg-type]
        assert sampler.used  # other weights or prompts are screened again


def test_job_screens_its_file(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"Question": "Where is the star?", "Text Reasoning Trace": "THOUGHT 1: I look."}
    rows = [json.dumps({**row, "Final Answer": str(i)}) for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))

    def score(self: Scorer, response: list[int], reference: str, **_: Any) -> RewardBreakdown:
        right = float(int(reference) % 2 == 0 and response[0] % 2 == 0)  # sometimes, for even references
        return RewardBreakdown(right, right, 1.0, 0.0)

    monkeypatch.setattr(Scorer, "score", score)
    used: list[str] = []
    take = FilePrompts.take
    monkeypatch.setattr(
        FilePrompts, "take", lambda self, n: used.extend(p.reference for p in take(self, n)) or take(self, n)
    )

    def run(*, resume: bool, stop: Any = None) -> dict[str, Any]:
        ctx = context(base, tmp_path / "job", resume=resume, stop=stop)
        data = {"source": "jsonl", "path": str(tmp_path / "rows.jsonl"), "screen": 16}
        hyper = {**HYPER, "steps": 2, "max_new_tokens": 8}
        return perpo.run(replace(ctx, spec=parse_spec({**ctx.spec.resolved(), "data": data, "hyperparameters": hyper})))

    with pytest.raises(JobStopped):
        run(resume=False, stop=StopAfter(100))  # of 128 samples
    with pytest.raises(JobStopped):
        run(resume=True, stop=StopAfter(130))
    used.clear()
    run(resume=True)
    assert set(used[8:]) <= {"0", "2", "4", "6"}
    assert {row["stage"] for row in events(tmp_path / "job", "progress")} == {"screening", "perpo"}


def test_screening_is_for_perpo() -> None:
    data = {"source": "jsonl", "path": "data", "screen": 4}
    assert parse_spec({"method": "perpo", "base_checkpoint": "nano", "data": data}).resolved()["data"]["screen"] == 4
    with pytest.raises(ValidationError, match="screen is for PeRPO"):
        parse_spec({"method": "pesft", "base_checkpoint": "nano", "data": data})
