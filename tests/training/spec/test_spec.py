"""Specifications are strict, complete and survive a round trip."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import model.config
import training.spec.hyperparameters
from app.contract.words import Level as ContractLevel
from app.contract.words import Slice as ContractSlice
from model.checkpoint.memory import TRAINED_TOKENS, JobFigures, training_needs
from tests.model.sparse import chameleon_config
from training.jobs.memory import figures_of
from training.spec.hyperparameters import PeRPOHyperparameters, PeSFTHyperparameters
from training.spec.spec import EVAL_SEEDS as SPEC_EVAL_SEEDS
from training.spec.spec import (
    HIGHEST_TRAINED,
    METHODS,
    PRESETS,
    PeSFTSpec,
    PipelineSpec,
    Slice,
    UniTasksData,
    parse_spec,
)
from training.world.world import EVAL_SEED_MIN, LEVELS, SLICES, TRAINED_GRADES

WORLD: dict[str, Any] = {"source": "unitasks", "num_samples": 64}
PESFT: dict[str, Any] = {"method": "pesft", "base_checkpoint": "nano-base", "data": WORLD}


def minimal(method: str) -> dict[str, Any]:
    data = {"pesft": WORLD, "perpo": WORLD, "benchmark": WORLD} if method == "pipeline" else WORLD
    return {"method": method, "base_checkpoint": "nano-base", "data": data}


@pytest.mark.parametrize("method", METHODS)
def test_resolved_specifications_round_trip(method: str) -> None:
    spec = parse_spec(minimal(method))
    resolved = json.loads(json.dumps(spec.resolved()))
    assert resolved["hyperparameters"]
    assert resolved["gpu"] == "shared"
    assert parse_spec(resolved) == spec


def test_api_example_is_accepted() -> None:
    spec = parse_spec({**PESFT, "hyperparameters": {"steps": 4}, "seed": 1, "activate": True})
    assert isinstance(spec, PeSFTSpec)
    assert (spec.hyperparameters.steps, spec.seed, spec.activate) == (4, 1, True)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_complete_specification(name: str) -> None:
    preset = PRESETS[name]
    assert parse_spec(preset.spec).resolved()
    assert preset.title
    assert preset.what


def test_three_presets_are_cards() -> None:
    assert [p.name for p in PRESETS.values() if p.card] == ["nano-pesft", "nano-perpo", "nano-zero"]


def test_upstream_preset_matches_authors_code() -> None:
    spec = parse_spec(PRESETS["upstream"].spec)
    assert isinstance(spec, PeSFTSpec)
    h = spec.hyperparameters
    assert (h.lr, h.epochs, h.schedule, h.weight_decay, h.max_len) == (1e-5, 1.0, "linear", 0.0, 5_100)
    assert (h.batch_samples, h.micro_batches, h.normalisation) == (8, 8, "micro_batch")
    assert (h.perception_reduction, h.perception_projection, h.perception_state) == ("mean", "frozen", "token")


@pytest.mark.parametrize(("name", "gib"), [("upstream-lora", 24), ("paper-lora", 48)])
def test_lora_presets_of_a_7b_fit_their_card(name: str, gib: int) -> None:
    hyper = parse_spec(PRESETS[name].spec).hyperparameters
    assert isinstance(hyper, PeSFTHyperparameters | PeRPOHyperparameters)
    # Behind the response, PeRPO has a question with an image.
    tokens = hyper.max_len if isinstance(hyper, PeSFTHyperparameters) else hyper.max_new_tokens + 1_200
    assert tokens is not None
    figures = figures_of(hyper, tokens)
    needed = training_needs(chameleon_config(), {}, width=2, device="cuda", figures=figures)
    kind = "pesft" if isinstance(hyper, PeSFTHyperparameters) else "perpo"
    vq = 400_000_000  # in fp32; the headers that say so are not here
    assert needed[f"lora_{kind}"] + vq < gib << 30 < needed[f"full_{kind}"]


def test_full_presets_of_a_7b_are_those_that_doctor_counts() -> None:
    for name in ("upstream", "paper"):
        hyper = parse_spec(PRESETS[name].spec).hyperparameters
        assert isinstance(hyper, PeSFTHyperparameters | PeRPOHyperparameters)
        assert figures_of(hyper, TRAINED_TOKENS) == JobFigures()


def test_longest_context_is_the_models() -> None:
    assert model.config.LONGEST_CONTEXT == training.spec.hyperparameters.LONGEST_CONTEXT


SPREAD = {"gpu": "exclusive", "num_gpus": 2}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"method": "sft"}, "method"),
        ({"hyperparameter": {}}, "hyperparameter"),
        ({"hyperparameters": {"learning_rate": 1e-3}}, "learning_rate"),
        ({"hyperparameters": {"lr": "1e-3"}}, "lr"),
        ({"hyperparameters": {"lr": 0.0}}, "lr"),
        ({"hyperparameters": {"lr": float("nan")}}, "lr"),
        ({"hyperparameters": {"steps": 1.5}}, "steps"),
        ({"hyperparameters": {"batch_samples": 2, "micro_batches": 3}}, "micro_batches"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
        ({"gpu": "all"}, "gpu"),
        ({"num_gpus": 0}, "num_gpus"),
        ({"num_gpus": 2}, "needs gpu: exclusive"),
        ({**SPREAD, "hyperparameters": {"lora": {"rank": 4}}}, "lora trains on one device"),
        ({**SPREAD, "hyperparameters": {"normalisation": "micro_batch", "micro_batches": 3}}, "a multiple of num_gpus"),
        ({"output_name": "../x"}, "output_name"),
        ({"data": {"source": "web"}}, "source"),
        ({"data": {"source": "m3cot", "path": "x"}}, "source"),
        ({"data": {"source": "jsonl"}}, "path"),
        ({"data": {"source": "traces"}}, "trace_ids"),
        ({"data": {**WORLD, "num_samples": 0}}, "num_samples"),
        ({"data": {**WORLD, "slices": ["natural", "other"]}}, "slices"),
        ({"data": {**WORLD, "first_seed": SPEC_EVAL_SEEDS - 10}}, "evaluation"),
        ({"data": {**WORLD, "level": 7}}, "kept for measuring"),
        ({"data": {**WORLD, "level": 9}}, "level"),
        ({"data": {**WORLD, "level": "5"}}, "level"),
    ],
)
def test_errors_are_rejected_and_named(change: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_spec({**PESFT, **change})
    assert place in str(caught.value)


def test_benchmark_allows_evaluation_seeds() -> None:
    job = {**PESFT, "method": "benchmark", "data": {**WORLD, "first_seed": SPEC_EVAL_SEEDS}}
    assert parse_spec(job).resolved()["data"]["first_seed"] == SPEC_EVAL_SEEDS
    with pytest.raises(ValidationError, match="activated"):
        parse_spec({**job, "activate": True})


@pytest.mark.parametrize("method", ["pesft", "perpo", "zero"])
def test_highest_levels_only_measure(method: str) -> None:
    for level in ("normal", "hard", 1, 6):
        job = {**PESFT, "method": method, "data": {**WORLD, "level": level}}
        assert parse_spec(job).resolved()["data"]["level"] == level
    for level in (7, 8):
        job = {**PESFT, "method": method, "data": {**WORLD, "level": level}}
        with pytest.raises(ValidationError, match=f"level {level} is kept for measuring: train on 6 at most"):
            parse_spec(job)
        assert parse_spec({**job, "method": "benchmark"}).resolved()["data"]["level"] == level
        with pytest.raises(ValidationError, match="kept for measuring"):
            parse_spec({**minimal("pipeline"), "data": {"pesft": WORLD, "perpo": job["data"], "benchmark": WORLD}})


def test_pipeline_needs_data_for_each_stage() -> None:
    spec = parse_spec(minimal("pipeline"))
    assert isinstance(spec, PipelineSpec)
    assert spec.stages == ["pesft", "perpo", "benchmark"]
    with pytest.raises(ValidationError, match=r"data\.perpo"):
        parse_spec({**minimal("pipeline"), "data": {"pesft": WORLD, "benchmark": WORLD}})
    zero = {"zero": WORLD, "perpo": WORLD, "benchmark": WORLD}
    after_zero = {**minimal("pipeline"), "data": zero, "hyperparameters": {"zero": {"pesft": None}}}
    spec = parse_spec(after_zero)
    assert isinstance(spec, PipelineSpec)
    assert spec.stages == ["zero", "pesft", "perpo", "benchmark"]
    with pytest.raises(ValidationError, match=r"leave data\.pesft out"):
        parse_spec({**after_zero, "data": {**zero, "pesft": WORLD}})


def _accepts(level: object) -> bool:
    try:
        UniTasksData.model_validate({"level": level})
    except ValidationError:
        return False
    return True


def test_seeds_and_slices_match_the_world() -> None:
    assert SPEC_EVAL_SEEDS == EVAL_SEED_MIN
    assert get_args(Slice) == get_args(ContractSlice) == SLICES
    accepted = [level for level in (*LEVELS, 0, 9, "easy") if _accepts(level)]
    assert accepted == list(LEVELS)
    assert get_args(ContractLevel) == tuple(map(str, LEVELS))
    assert TRAINED_GRADES[-1] == HIGHEST_TRAINED


def test_specifications_parse_without_torch() -> None:
    script = (
        "import sys, training.spec.spec, training.jobs.log, training.jobs.context; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
