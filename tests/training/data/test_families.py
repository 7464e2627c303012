"""Task families of your own: the example, what calibration refuses, and the three methods that take them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples.own_tasks import Dots
from tests.tiny import make_tiny_checkpoint
from tests.training.contexts import events_of, job
from tests.training.packages import write_package
from training.benchmark import job as benchmark
from training.benchmark.items import Item, read_items
from training.data.families import FamilyError, OwnStep, OwnTask, calibrate, load_family, make_own, own_tasks
from training.data.samples import trace_samples
from training.data.traces import TraceSample
from training.jobs.context import JobError
from training.perpo import job as perpo
from training.pesft import job as pesft
from training.spec.spec import TasksData, parse_spec
from training.world.checkers import judge_drawings
from training.world.task import MarkTarget

DATA = {"source": "tasks", "family": "dots", "num_samples": 12}
WHITE = Image.new("RGB", (64, 64), "white")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **families: str) -> None:
    """Install a package with these task families."""
    monkeypatch.syspath_prepend(str(write_package(folder, tasks=families)))


@pytest.fixture
def dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, dots="examples.own_tasks:Dots")


def test_example_passes_its_calibration() -> None:
    calibrate("dots", Dots(), range(1_000_000_000, 1_000_000_300))


def test_example_has_tasks_of_every_size() -> None:
    tasks = [make_own("dots", Dots(), seed) for seed in range(60)]
    assert {task.answer for task in tasks} == {"2", "3", "4", "5"}
    assert {(task.slice, task.family) for task in tasks} == {("dots", "dots")}
    assert len({task.task_id for task in tasks}) == 60


def test_drawings_are_judged_by_the_family() -> None:
    task = make_own("dots", Dots(), 3)
    right = [step.image for step in task.steps]
    assert judge_drawings(task, task.image, right) == (len(right), len(right))
    assert judge_drawings(task, task.image, [task.image, *right[1:]]) == (len(right) - 1, len(right))


RETURNED = {"forgets": None, "talks": "no", "counts": 2, "points": float("nan"), "maps": np.ones((2, 2), dtype=bool)}


class Changed(Dots):
    """The example with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong, self.calls = wrong, 0

    def make(self, seed: int) -> OwnTask:
        self.calls += 1
        if self.wrong == "raises" and seed == 7:
            raise RuntimeError("no task")
        if self.wrong == "nothing":
            return None  # type: ignore[return-value]
        if self.wrong == "empty":
            return OwnTask(" ", WHITE, "3")
        if self.wrong == "random":
            return super().make(self.calls)
        return super().make(seed)

    def check(self, task: OwnTask, step: int, before: Image.Image, drawn: Image.Image) -> bool:
        if self.wrong == "fails":
            raise ZeroDivisionError
        if self.wrong in RETURNED:
            return RETURNED[self.wrong]  # type: ignore[return-value]
        if self.wrong == "strict":
            return task.answer != "4" and super().check(task, step, before, drawn)
        return self.wrong == "lax" or super().check(task, step, before, drawn)


def first_four() -> int:
    return next(seed for seed in range(100) if Dots().make(seed).answer == "4")


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("strict", f"rejects its own reference at seed {first_four()}, step 1"),
        ("lax", "accepts a blank image at seed 0, step 1"),
        ("fails", "fails at seed 0, step 1: ZeroDivisionError"),
        *((wrong, "checker of the task family dots fails at seed 0, step 1: ") for wrong in RETURNED),
        ("random", "makes two different tasks of seed 0"),
        ("raises", "fails at seed 7: RuntimeError: no task"),
        ("nothing", "fails at seed 0: AttributeError"),
        ("empty", "must not be empty"),
    ],
)
def test_family_that_contradicts_itself_is_refused(wrong: str, problem: str) -> None:
    with pytest.raises(FamilyError, match=problem):
        calibrate("dots", Changed(wrong), range(32))


def test_verdicts_may_be_numbers() -> None:
    class Numbers(Dots):
        def check(self, task: OwnTask, step: int, before: Image.Image, drawn: Image.Image) -> bool:
            return (int, np.bool_)[step % 2](super().check(task, step, before, drawn))  # type: ignore[return-value]

    calibrate("dots", Numbers(), range(8))


def test_target_that_is_none_is_refused() -> None:
    class Targeted(Dots):
        def make(self, seed: int) -> OwnTask:
            task = super().make(seed)
            return replace(task, steps=tuple(replace(step, target="a mark") for step in task.steps))

    with pytest.raises(FamilyError, match="fails at seed 5: TypeError: a step's target is a str"):
        make_own("dots", Targeted(), 5)


def test_targets_of_the_world_judge_too() -> None:
    class Marked:
        description = "a mark in the middle"

        def make(self, seed: int) -> OwnTask:
            from training.skills import apply
            from training.world.canvas import mark

            step = OwnStep("I mark it.", apply(mark(32, 32), WHITE), target=MarkTarget((32.0, 32.0)))
            return OwnTask("Where?", WHITE, "here", (step,))

        def check(self, task: OwnTask, step: int, before: Image.Image, drawn: Image.Image) -> bool:
            raise AssertionError("the step has a target of its own")

    calibrate("marked", Marked(), range(1))


def test_unknown_family_names_the_known(dots: None) -> None:
    with pytest.raises(FamilyError, match="has the task family lines; installed: dots"):
        load_family("lines")


@pytest.mark.parametrize(
    "target", ["no_such_module:Dots", "examples.own_tasks:Nothing", "examples.own_tasks:marked_cells"]
)
def test_broken_entry_point_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    install(tmp_path, monkeypatch, broken=target)
    with pytest.raises(FamilyError, match="cannot be loaded"):
        load_family("broken")


def test_training_never_reaches_evaluation_seeds() -> None:
    for method in ("pesft", "perpo"):
        with pytest.raises(ValueError, match="for evaluation only"):
            parse_spec({"method": method, "base_checkpoint": "x", "data": {**DATA, "first_seed": 999_999_990}})


def test_samples_are_the_references(dots: None) -> None:
    data = TasksData(family="dots", num_samples=5)
    samples = [sample for sample in trace_samples(data, 0) if isinstance(sample, TraceSample)]
    tasks = list(own_tasks(data, 20_000_000))
    assert [sample.answer for sample in samples] == [task.answer for task in tasks]
    assert [len(sample.steps) for sample in samples] == [len(task.steps) for task in tasks]


def test_benchmark_items_are_held_out(dots: None) -> None:
    items = [item for item in read_items(TasksData(family="dots", num_samples=4)) if isinstance(item, Item)]
    assert [item.item_id for item in items] == [f"dots-{1_000_000_000 + k}" for k in range(4)]
    assert all(item.task is not None and item.exact for item in items)


SMALL = {"steps": 2, "warmup": 0}
SPECS: list[dict[str, Any]] = [
    {"method": "pesft", "hyperparameters": {**SMALL, "batch_tokens": 256, "log_every": 1, "sample_every": 2}},
    {
        "method": "perpo",
        "hyperparameters": {
            **SMALL,
            "prompts_per_step": 2,
            "rollouts_per_prompt": 2,
            "oversampling": 1.0,
            "mini_batch_prompts": 1,
            "filter_metric": "none",
            "max_new_tokens": 48,
        },
    },
    {"method": "benchmark", "hyperparameters": {"max_new_tokens": 48, "interventions": ["reference", "other"]}},
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["method"])
def test_every_method_takes_the_example(base: Path, tmp_path: Path, dots: None, spec: dict[str, Any]) -> None:
    ctx = job(tmp_path / "job", {**spec, "data": DATA, "seed": 1}, base, checkpoints={"tiny": base})
    run = {"pesft": pesft.run, "perpo": perpo.run, "benchmark": benchmark.run}[spec["method"]]
    result = run(ctx)
    assert result["metrics"]
    assert {sample["slice"] for sample in events_of(ctx, "sample")} == {"dots"}
    if spec["method"] == "benchmark":
        assert {"all", "dots"} <= set(result["checkpoints"]["tiny"]["summary"])
        assert result["metrics"]["drawings/right"] >= 0.0


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec["method"])
def test_wrong_family_ends_the_job_at_its_start(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any]
) -> None:
    (tmp_path / "strict.py").write_text(
        "from examples.own_tasks import Dots\n"
        "class Strict(Dots):\n"
        "    def check(self, task, step, before, drawn):\n"
        "        return step == 1 and super().check(task, step, before, drawn)\n"
    )
    install(tmp_path, monkeypatch, strict="strict:Strict")
    data = {**DATA, "family": "strict", "first_seed": 500}
    ctx = job(tmp_path / "job", {**spec, "data": data}, base, checkpoints={"tiny": base})
    run = {"pesft": pesft.run, "perpo": perpo.run, "benchmark": benchmark.run}[spec["method"]]
    with pytest.raises(JobError, match="rejects its own reference at seed 500, step 2") as failed:
        run(ctx)
    assert failed.value.code == "bad_data"
    assert not list(ctx.folder.glob("checkpoints/*"))


def test_family_without_steps_is_no_data_for_pesft(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare.py").write_text(
        "from dataclasses import replace\n"
        "from examples.own_tasks import Dots\n"
        "class Bare(Dots):\n"
        "    def make(self, seed):\n"
        "        return replace(super().make(seed), steps=())\n"
    )
    install(tmp_path, monkeypatch, bare="bare:Bare")
    data = {**DATA, "family": "bare"}
    with pytest.raises(JobError, match="has no reference steps"):
        pesft.run(job(tmp_path / "pesft", {**SPECS[0], "data": data}, base))
    ctx = job(tmp_path / "benchmark", {**SPECS[2], "data": data}, base, checkpoints={"tiny": base})
    assert "drawings/right" not in benchmark.run(ctx)["metrics"]
