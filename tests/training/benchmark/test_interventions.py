"""Replaced images in a benchmark: by hand, and as a job on the shipped checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.engine.engine import Engine
from tests.training.benchmark.test_job import answer, predictions
from tests.training.contexts import StopAfter, events_of, job
from training.benchmark import job as benchmark_job
from training.benchmark.evaluate import ask, evaluation_tasks
from training.benchmark.interventions import Effect, blank_codes, intervene, summarize_effects
from training.benchmark.interventions import Response as Answered
from training.benchmark.report import Answer, flat_metrics, summarize_answers
from training.benchmark.stats import rank_correlation
from training.jobs.context import JobStopped

KINDS = ["previous", "blank", "reference", "other", "question"]


def effect(kind: str, changed: bool, step: int = 1) -> Effect:
    return Effect(step, kind, "a", not changed, changed)


def test_causal_share_counts_replacements_by_other_images() -> None:
    effects = [
        [effect("blank", True), effect("previous", False), effect("reference", True)],
        [effect("blank", True), effect("previous", True)],
    ]
    row = summarize_effects(effects, [True, False], [True, True])
    assert row["replacements"] == 5
    assert row["causal_share"][0] == 0.75
    assert row["by_replacement"]["blank"][0] == 1.0
    assert row["by_replacement"]["previous"][0] == 0.5
    assert (row["oracle_gain"][0], row["accuracy_with_reference"]) == (0.5, 1.0)
    for value, low, high in (row["causal_share"], row["oracle_gain"]):
        assert low <= value <= high


def test_a_slice_without_images_has_no_causal_share() -> None:
    row = summarize_effects([[], []], [True, False], [None, None])
    assert row == {"replacements": 0, "causal_share": None, "by_replacement": {}}


def test_metrics_are_by_slice_and_survive_the_file() -> None:
    given = [
        answer("1", "natural", True, effects=(effect("blank", True),), right_with_reference=True),
        answer("2", "operational", False, effects=(effect("blank", False),), right_with_reference=True),
    ]
    metrics = flat_metrics(summarize_answers(given))
    assert metrics["images/causal_share"] == 0.5
    assert metrics["images/causal_share/natural"] == 1.0
    assert metrics["images/causal_share/operational"] == 0.0
    assert metrics["images/oracle_gain"] == 0.5
    assert Answer.from_json(json.loads(json.dumps(given[0].to_json()))) == given[0]
    assert "images" not in summarize_answers([answer("1", "s", True)])["all"]


def test_rank_correlation_follows_the_order() -> None:
    rising = [[(1.0, 0.0), (2.0, 0.0)], [(3.0, 1.0)], [(9.0, 1.0)]]
    value, low, high = rank_correlation(rising)  # type: ignore[misc]
    # ranks 1 2 3 4 against 1.5 1.5 3.5 3.5: 4 / sqrt(5 * 4)
    assert value == pytest.approx(4 / 20**0.5)
    assert low <= value <= high
    assert rank_correlation([[(1.0, 1.0), (2.0, 1.0)]]) is None
    assert rank_correlation([]) is None


@pytest.fixture(scope="module")
def shipped() -> Path:
    return SHIPPED / "nano-omni-r1"


def bench(folder: Path, base: Path, **more: Any) -> Any:
    hyper = {"batch_size": 1, "interventions": KINDS, "show_samples": 0, **more.pop("hyperparameters", {})}
    spec = {"method": "benchmark", "data": {"source": "unitasks", "num_samples": 8}, "hyperparameters": hyper}
    return job(folder, spec, base, checkpoints={"tiny": base}, **more)


def test_job_replaces_every_image_in_every_way(tmp_path: Path, shipped: Path) -> None:
    ctx = bench(tmp_path / "job", shipped)
    result = benchmark_job.run(ctx)
    rows = predictions(ctx, "tiny")
    for row in rows:
        assert len(row["effects"]) == row["pictures"] * len(KINDS)
        assert row["right_with_reference"] is not None
    images = result["checkpoints"]["tiny"]["summary"]["all"]["images"]
    assert 0.0 < images["by_replacement"]["previous"][0] <= 1.0
    assert images["by_replacement"]["blank"][0] > images["by_replacement"]["reference"][0]
    assert result["metrics"]["images/causal_share"] == images["causal_share"][0]
    assert result["metrics"]["images/oracle_gain"] == images["oracle_gain"][0]
    logged = events_of(ctx, "metrics")[-1]["values"]
    assert logged["images/causal_share/operational"] == result["metrics"]["images/causal_share/operational"]


def test_resumed_job_gives_the_same_effects(tmp_path: Path, shipped: Path) -> None:
    whole = bench(tmp_path / "whole", shipped)
    benchmark_job.run(whole)
    with pytest.raises(JobStopped):
        benchmark_job.run(bench(tmp_path / "cut", shipped, stop=StopAfter(9)))
    resumed = bench(tmp_path / "cut", shipped, resume=True)
    benchmark_job.run(resumed)
    assert predictions(resumed, "tiny") == predictions(whole, "tiny")


def test_without_a_task_others_come_from_the_next_response(shipped: Path) -> None:
    loaded = load_checkpoint(shipped)

    tasks = evaluation_tasks(3)
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=4)
    responses = [
        Answered(loaded.template.prompt_ids(task.question, [seen]), done.token_ids, seen, None)
        for task, (seen, done) in zip(tasks, ask(loaded, tasks), strict=True)
    ]
    found = intervene(loaded, engine, responses, ["other", "reference", "blank"])
    assert {one.kind for one in found} == {"other", "blank"}
    for one in found:
        start = one.image.end - loaded.vocab.codes_per_image - 1
        codes = tuple(loaded.vocab.id_to_code(token) for token in one.tokens[start : one.image.end - 1])
        if one.kind == "blank":
            assert codes == blank_codes(loaded)
        else:
            assert codes != one.image.codes
            assert one.replaced > 0.0
