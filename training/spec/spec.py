"""Specifications of training jobs: a strict union on ``method``, every default with its source.

Unknown keys fail, numbers have bounds, and :meth:`resolved` returns the complete specification with all defaults, as
written next to the results. Nothing is loaded or opened here: the job's starter checks paths and names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from training.spec.hyperparameters import (
    BenchmarkHyperparameters,
    JudgeHyperparameters,
    PeRPOHyperparameters,
    PeSFTHyperparameters,
    PipelineHyperparameters,
    Positive,
    RewardHyperparameters,
    Strict,
    ZeroHyperparameters,
)
from training.spec.presets import PRESETS, Preset

__all__ = [
    "METHODS",
    "PRESETS",
    "AnySpec",
    "BenchmarkHyperparameters",
    "BenchmarkSpec",
    "JobSpec",
    "JsonlData",
    "JudgeHyperparameters",
    "M3CoTData",
    "OmniBenchData",
    "PeRPOHyperparameters",
    "PeRPOSpec",
    "PeSFTHyperparameters",
    "PeSFTSpec",
    "PipelineData",
    "PipelineHyperparameters",
    "PipelineSpec",
    "Preset",
    "RewardHyperparameters",
    "TasksData",
    "TracesData",
    "UniTasksData",
    "ZebraCoTData",
    "ZeroHyperparameters",
    "ZeroSpec",
    "parse_spec",
]

Slice = Literal["natural", "structured", "diagrammatic", "operational"]
Level = Literal["normal", "hard"] | Annotated[int, Field(ge=1, le=8)]

EVAL_SEEDS = 1_000_000_000  # must equal training.world.world's value
HIGHEST_TRAINED = 6  # the last graded level that may train; must equal training.world.world's value
MOST_TASKS = 10_000_000
MOST_TRACES = 10_000


class UniTasksData(Strict):
    """Tasks of the procedural world: images, answers and traces generated from seeds."""

    source: Literal["unitasks"] = "unitasks"
    num_samples: Annotated[int, Field(ge=1, le=MOST_TASKS)] = 1_000
    slices: list[Slice] | None = Field(None, min_length=1, description="all four when absent")
    first_seed: int | None = Field(
        None, ge=0, le=2**53 - MOST_TASKS, description="the method's own range of seeds when absent"
    )
    level: Level = Field("normal", description="1 … 8: graded, easy to beyond hard; 7 and 8 only measure")
    difficulty: Literal["fixed", "adaptive"] = Field(
        "fixed", description="adaptive: PeRPO chooses among the levels 1 to 6, by each family's pass rate"
    )

    @model_validator(mode="after")
    def _one_choice_of_levels(self) -> UniTasksData:
        if self.difficulty == "adaptive" and self.level != "normal":
            raise ValueError("difficulty: adaptive chooses the levels: leave level out")
        return self


class TasksData(Strict):
    """Tasks of a family of your own, found by its entry point (docs/own-rewards-and-tasks.md)."""

    source: Literal["tasks"] = "tasks"
    family: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,15}$", description="an entry point of the group omni_r1.tasks"
    )
    num_samples: Annotated[int, Field(ge=1, le=MOST_TASKS)] = 1_000
    first_seed: int | None = Field(
        None, ge=0, le=2**53 - MOST_TASKS, description="the method's own range of seeds when absent"
    )


class _FileData(Strict):
    difficulty: Literal["fixed", "adaptive"] = Field("fixed", description="adaptive: the world's tasks only")
    screen: Annotated[int, Field(ge=2, le=64)] | None = Field(
        None, description="PeRPO: samples per question before the first step; those all right or all wrong are left out"
    )

    @model_validator(mode="after")
    def _has_no_levels(self) -> _FileData:
        if self.difficulty == "adaptive":
            raise ValueError("difficulty: adaptive needs levels, which only the world's tasks have; use screen instead")
        return self


class _PathData(_FileData):
    path: str = Field(
        min_length=1, description="a file, a folder of such files, or hf://datasets/OWNER/NAME[@REVISION][/PATH]"
    )
    columns: dict[str, Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(
        None, min_length=1, max_length=40, description="the data's own names of fields, by ours: {question: query}"
    )
    num_samples: Positive | None = Field(None, description="the first so many; all when absent")


class JsonlData(_PathData):
    """The authors' jsonl: Question, Text Reasoning Trace, Final Answer and the images that those texts name."""

    source: Literal["jsonl"] = "jsonl"


class TracesData(_FileData):
    """Saved traces: a folder of exports, or traces that the server exports into the job's folder.

    The server replaces `rating`, `tag` and `verdict` by the ids of the traces that match when the job is created.
    """

    source: Literal["traces"] = "traces"
    path: str | None = Field(None, min_length=1)
    trace_ids: list[Annotated[str, Field(max_length=64)]] | None = Field(None, min_length=1, max_length=MOST_TRACES)
    rating: Annotated[int, Field(ge=-1, le=1)] | None = Field(None, description="all traces with this rating")
    tag: str | None = Field(None, min_length=1, max_length=32, description="all traces with this tag")
    verdict: Literal["right", "wrong"] | None = Field(None, description="all traces with this verdict")
    num_samples: Positive | None = None

    @property
    def columns(self) -> None:
        """An export has our own names of fields."""

    @property
    def filters(self) -> dict[str, Any]:
        """The given ones of rating, tag and verdict."""
        return self.model_dump(include={"rating", "tag", "verdict"}, exclude_none=True)

    @model_validator(mode="after")
    def _something(self) -> TracesData:
        if self.path is None and self.trace_ids is None and not self.filters:
            raise ValueError("give path, trace_ids, or a filter: rating, tag, verdict")
        return self


class ZebraCoTData(_PathData):
    """Zebra-CoT as parquet, jsonl or a folder written by `datasets`."""

    source: Literal["zebra_cot"] = "zebra_cot"


class M3CoTData(_PathData):
    """M3CoT as parquet, jsonl or a folder written by `datasets`."""

    source: Literal["m3cot"] = "m3cot"
    split: Literal["train", "validation", "test"] | None = None


class OmniBenchData(_PathData):
    """Omni-Bench's parquet files."""

    source: Literal["omni_bench"] = "omni_bench"


TraceData = Annotated[UniTasksData | TasksData | JsonlData | TracesData | ZebraCoTData, Field(discriminator="source")]
PromptData = Annotated[
    UniTasksData | TasksData | JsonlData | TracesData | ZebraCoTData | M3CoTData | OmniBenchData,
    Field(discriminator="source"),
]
ChainData = Annotated[UniTasksData | JsonlData | ZebraCoTData | M3CoTData, Field(discriminator="source")]
QuestionData = Annotated[
    UniTasksData | TasksData | OmniBenchData | M3CoTData | JsonlData, Field(discriminator="source")
]


class PipelineData(Strict):
    """Data of each stage. After `zero`, PeSFT trains on its traces."""

    zero: ChainData | None = None
    pesft: TraceData | None = None
    perpo: PromptData | None = None
    benchmark: QuestionData | None = None


TrackerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _label(value: str) -> str:
    value = value.strip()
    if not value or not value.isprintable():
        raise ValueError("must be printable and not empty")
    return value


class _Job(Strict):
    # The first three are for people: `exclude` keeps them out of resolved(), so no run depends on them.
    name: Annotated[str, Field(max_length=100), AfterValidator(_label)] | None = Field(
        None, exclude=True, description="for people; several jobs may have the same"
    )
    tags: list[Annotated[str, Field(max_length=32), AfterValidator(_label)]] = Field([], max_length=32, exclude=True)
    note: Annotated[str, Field(max_length=2_000, pattern=r"^[^\x00]*$")] | None = Field(None, exclude=True)
    base_checkpoint: str = Field(min_length=1, max_length=200, description="name of the checkpoint to start from")
    seed: int = Field(0, ge=0, lt=2**31)
    activate: bool = Field(False, description="load the result into the running server")
    gpu: Literal["shared", "exclusive"] = Field("shared", description="exclusive: no other job runs at the same time")
    output_name: str | None = Field(
        None,
        max_length=100,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="checkpoints: <this>-step-N",
    )
    report_to: Annotated[list[TrackerName], Field(max_length=8)] = Field(
        ["tensorboard"],
        description="trackers of its metrics: tensorboard, wandb, or entry points of omni_r1.trackers",
    )
    threads: Annotated[int, Field(ge=1, le=256)] = Field(1, description="CPU threads; the same number, the same bits")

    @model_validator(mode="after")
    def _only_perpo_adapts(self) -> _Job:
        data = getattr(self, "data", None)
        others = (data.zero, data.pesft, data.benchmark) if isinstance(data, PipelineData) else (data,)
        adapts = any(isinstance(one, UniTasksData) and one.difficulty == "adaptive" for one in others)
        if adapts and not isinstance(self, PeRPOSpec):
            raise ValueError("difficulty: adaptive is for PeRPO, which measures pass rates")
        if not isinstance(self, PeRPOSpec) and any(getattr(one, "screen", None) for one in others):
            raise ValueError("screen is for PeRPO, which measures pass rates")
        return self

    def resolved(self) -> dict[str, Any]:
        """The complete specification with all defaults, as JSON."""
        return self.model_dump(mode="json")


class PeSFTSpec(_Job):
    """Perception-enhanced supervised fine-tuning."""

    method: Literal["pesft"] = "pesft"
    data: TraceData
    hyperparameters: PeSFTHyperparameters = Field(default_factory=PeSFTHyperparameters)
    num_gpus: Annotated[int, Field(ge=1, le=64)] = Field(
        1, description="devices that share the weights and every batch; more than one needs gpu: exclusive"
    )

    @model_validator(mode="after")
    def _trains_on_training_seeds(self) -> PeSFTSpec:
        _may_train(self.data)
        return self

    @model_validator(mode="after")
    def _spreads(self) -> PeSFTSpec:
        if self.num_gpus == 1:
            return self
        hyper = self.hyperparameters
        if self.gpu != "exclusive":
            raise ValueError("num_gpus above 1 needs gpu: exclusive, since the job takes all of these devices")
        if hyper.lora is not None:
            raise ValueError("lora trains on one device: its frozen weights leave nothing to spread; set num_gpus to 1")
        if hyper.normalisation == "micro_batch" and hyper.micro_batches % self.num_gpus:
            raise ValueError(
                "normalisation: micro_batch gives each micro-batch the same weight: micro_batches must be a multiple "
                "of num_gpus"
            )
        return self


class PeRPOSpec(_Job):
    """Perception-calibrated relative policy optimisation."""

    method: Literal["perpo"] = "perpo"
    data: PromptData
    hyperparameters: PeRPOHyperparameters = Field(default_factory=PeRPOHyperparameters)

    @model_validator(mode="after")
    def _trains_on_training_seeds(self) -> PeRPOSpec:
        _may_train(self.data)
        _has_checkers(self.data, self.hyperparameters)
        return self


class ZeroSpec(_Job):
    """Bootstrapping of step-wise images, then PeSFT on them."""

    method: Literal["zero"] = "zero"
    data: ChainData
    hyperparameters: ZeroHyperparameters = Field(default_factory=ZeroHyperparameters)

    @model_validator(mode="after")
    def _trains_on_training_seeds(self) -> ZeroSpec:
        _may_train(self.data)
        return self


class BenchmarkSpec(_Job):
    """Measures a checkpoint; changes nothing."""

    method: Literal["benchmark"] = "benchmark"
    data: QuestionData
    hyperparameters: BenchmarkHyperparameters = Field(default_factory=BenchmarkHyperparameters)

    @model_validator(mode="after")
    def _nothing_to_activate(self) -> BenchmarkSpec:
        if self.activate:
            raise ValueError("a benchmark makes no checkpoint that could be activated")
        return self


class PipelineSpec(_Job):
    """zero? -> pesft -> perpo -> benchmark as one job."""

    method: Literal["pipeline"] = "pipeline"
    data: PipelineData
    hyperparameters: PipelineHyperparameters = Field(default_factory=PipelineHyperparameters)

    @property
    def stages(self) -> list[str]:
        """Names of the stages that run, in order."""
        return [name for name in ("zero", "pesft", "perpo", "benchmark") if getattr(self.hyperparameters, name)]

    @model_validator(mode="after")
    def _every_stage_has_data(self) -> PipelineSpec:
        if not self.stages:
            raise ValueError("every stage is left out: nothing to do")
        for data in (self.data.zero, self.data.pesft, self.data.perpo):
            _may_train(data)
        if self.data.perpo is not None and self.hyperparameters.perpo is not None:
            _has_checkers(self.data.perpo, self.hyperparameters.perpo)
        for name in self.stages:
            given = getattr(self.data, name) is not None
            if name == "pesft" and self.hyperparameters.zero is not None:
                if given:
                    raise ValueError("after zero, PeSFT trains on what zero drew: leave data.pesft out")
            elif not given:
                raise ValueError(
                    f"the stage {name} has no data: give data.{name}, or set hyperparameters.{name} to null"
                )
        return self


def _may_train(data: Any) -> None:
    if isinstance(data, UniTasksData | TasksData) and (data.first_seed or 0) + data.num_samples > EVAL_SEEDS:
        raise ValueError(f"seeds from {EVAL_SEEDS:,} up are for evaluation only: use a smaller first_seed")
    if isinstance(data, UniTasksData) and isinstance(data.level, int) and data.level > HIGHEST_TRAINED:
        raise ValueError(f"level {data.level} is kept for measuring: train on {HIGHEST_TRAINED} at most")


def _has_checkers(data: Any, hyperparameters: PeRPOHyperparameters) -> None:
    if hyperparameters.reward.functional and not isinstance(data, UniTasksData | TasksData):
        raise ValueError(
            f"reward.functional needs checkers of drawings, as unitasks and tasks have them; {data.source} has none"
        )


JobSpec = Annotated[
    PeSFTSpec | PeRPOSpec | ZeroSpec | BenchmarkSpec | PipelineSpec,
    Field(discriminator="method"),
]
AnySpec = PeSFTSpec | PeRPOSpec | ZeroSpec | BenchmarkSpec | PipelineSpec
METHODS = ("pesft", "perpo", "zero", "benchmark", "pipeline")

_ADAPTER: TypeAdapter[AnySpec] = TypeAdapter(JobSpec)


def parse_spec(data: Any) -> AnySpec:
    """A specification from a JSON object.

    Raises:
        pydantic.ValidationError: an unknown method or key, a value of the wrong kind or out of bounds.
    """
    return _ADAPTER.validate_python(data)
