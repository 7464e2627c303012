"""The API's JSON as pydantic models: requests (unknown fields rejected) and responses.

Shapes only: no database, no service. OpenAPI is generated from them.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from app.contract.words import (
    MAX_CANDIDATES,
    MAX_DRAWN_IMAGES,
    MAX_SAMPLES,
    MAX_SEED,
    Drain,
    Fit,
    Mode,
    Status,
    VerdictWord,
)

MAX_QUESTION_CHARS = 8_000
MAX_IMAGES = 16  # per question
MAX_METADATA_BYTES = 16_384
CHECKPOINT_NAME_LENGTH = 200
CHECKPOINT_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Temperature = Annotated[float, Field(ge=0, le=5)]
TopP = Annotated[float, Field(gt=0, le=1)]
NewTokens = Annotated[int, Field(ge=1, le=1_000_000)]
Rating = Annotated[int, Field(ge=-1, le=1)]


def clean_text(value: str) -> str:
    """Validator: text that both databases can store."""
    if "\0" in value:
        raise ValueError("must not contain the NUL character")
    return value


CheckpointText = Annotated[str, AfterValidator(clean_text)]


def _some_text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return clean_text(value)


def plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """Validator: a bounded object that survives JSON."""
    try:
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, RecursionError):
        raise ValueError("must be plain JSON without NaN, infinity or lone surrogates") from None
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"must be at most {MAX_METADATA_BYTES} bytes as JSON")
    return value


Metadata = Annotated[dict[str, Any], AfterValidator(plain_json)]


class In(BaseModel):
    """Base of request models: rejects unknown fields, type coercion, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Out(BaseModel):
    """Base of response models."""

    model_config = ConfigDict(extra="forbid")


# ---- requests


class ImageIn(In):
    """An image of the question: the id of a stored image, or its bytes as a data URL."""

    image_id: str | None = Field(None, min_length=1, max_length=128)
    data_url: str | None = Field(None, min_length=1, description="`data:image/…;base64,…`; no other scheme is fetched")
    fit: Fit = Field("crop", description="crop to the model's square, or pad it")

    @model_validator(mode="after")
    def _exactly_one(self) -> ImageIn:
        if (self.image_id is None) == (self.data_url is None):
            raise ValueError("give exactly one of image_id and data_url")
        return self


class SamplingIn(In):
    """Sampling parameters; absent ones come from the checkpoint's generation config."""

    temperature: Temperature | None = Field(None, description="0 = greedy")
    top_p: TopP | None = None
    seed: Seed | None = Field(None, description="random when absent, always returned")
    max_new_tokens: NewTokens | None = Field(None, description="default: the remaining context")
    max_images: int | None = Field(None, ge=0, le=MAX_DRAWN_IMAGES, description="default: as many as fit")


class VerifyIn(In):
    """Several candidates for each image, of which a verifier chooses the one that goes on."""

    candidates: int = Field(ge=1, le=MAX_CANDIDATES, description="images drawn per step; 1: no choice")
    verifier: CheckpointText | None = Field(
        None,
        min_length=1,
        max_length=CHECKPOINT_NAME_LENGTH,
        description="the checkpoint that judges; default: the trace's own, or the nearest of its bases that can",
    )


class TraceCreate(In):
    """Body of `POST /v1/traces`."""

    question: Annotated[str, Field(max_length=MAX_QUESTION_CHARS), AfterValidator(_some_text)]
    images: list[ImageIn] = Field(default_factory=list, max_length=MAX_IMAGES)
    task_id: str | None = Field(None, min_length=1, max_length=64)
    checkpoint: CheckpointText | None = Field(None, min_length=1, max_length=200)
    mode: Mode = "auto"
    sampling: SamplingIn = Field(default_factory=SamplingIn)
    verify: VerifyIn | None = None
    partial_images: int = Field(0, ge=0, le=64, description="number of partial previews per image")
    background: bool | None = Field(
        None, description="false: cancel when the readers leave. Default: true for a JSON answer, false for a stream"
    )
    metadata: Metadata = Field(default_factory=dict)
    n: int = Field(1, ge=1, le=MAX_SAMPLES, description="samples of the question; more than one make a group")


class ContinueIn(In):
    """Body of `POST …/continue`."""

    mode: Mode = "step"


class LimitsIn(In):
    """Body of `POST /v1/limits`."""

    question: Annotated[str, Field(max_length=MAX_QUESTION_CHARS), AfterValidator(clean_text)]
    images: int = Field(1, ge=0, le=MAX_IMAGES)
    checkpoint: CheckpointText | None = Field(None, min_length=1, max_length=200)


class CheckpointCreate(In):
    """Body of `POST /v1/checkpoints`."""

    source: Annotated[str, Field(max_length=4096), AfterValidator(_some_text)] = Field(
        description="a folder on the server's machine, or a hub id (`owner/name`)"
    )
    name: str | None = Field(None, pattern=f"^{CHECKPOINT_NAME}$", description="default: the manifest's name")


class ActivateIn(In):
    """Body of `POST /v1/checkpoints/{id}/activate`."""

    drain: Drain | None = Field(
        None, description="when memory cannot hold both: wait for running traces, or cancel them"
    )


# ---- responses


class ImageOut(Out):
    """A stored image; `url` is a path on this server."""

    image_id: str
    url: str
    width: int
    height: int


class StepImage(ImageOut):
    """The functional image that ends a step."""

    skill: str | None = None
    stats: dict[str, Any] = Field(default_factory=dict)
    right: bool | None = Field(None, description="the checkers' verdict, on a finished trace of a task")


class CandidatesOut(Out):
    """The images among which a verifier chose, in the order of drawing; the first is the one without a choice."""

    images: list[ImageOut]
    scores: list[float | None] = Field(
        description="log p(step's text | previous image, candidate) in nats; null: not finite"
    )
    chosen: int = Field(ge=0, description="index of the one that went on")


class StepOut(Out):
    """One step: text and, usually, a functional image. `index` starts at 1."""

    index: int
    text: str
    image: StepImage | None = None
    candidates: CandidatesOut | None = None
    edited: bool = Field(False, description="a person changed it")
    source_image_id: str | None = Field(None, description="the image that an edit gave; `image` is what became of it")


class SamplingOut(Out):
    """The sampling parameters in use: all defaults and the seed resolved."""

    temperature: float
    top_p: float
    seed: int
    max_new_tokens: int
    max_images: int


class VerifyOut(Out):
    """How many candidates each image has, and the checkpoint that chooses among them."""

    candidates: int
    verifier: str


class UsageOut(Out):
    """Tokens counted by the engine."""

    prompt_tokens: int
    kept_tokens: int = Field(0, description="given instead of generated")
    completion_tokens: int
    images: int


class TimingsOut(Out):
    """Milliseconds the trace has run, without pauses (`queued_ms`: until it started)."""

    queued_ms: int | None = None
    first_text_ms: int | None = None
    total_ms: int | None = None


class VerdictOut(Out):
    """The result of the task's checkers."""

    answer: VerdictWord
    drawings_right: int
    drawings_total: int
    edited_steps: list[int] = Field(default_factory=list, description="steps that are not the model's own")


class ParentOut(Out):
    """Where a branch parts from its parent."""

    trace_id: str
    after_step: int | None = Field(description="null: a follow-up question, not a branch")
    edited_steps: list[int]
    group_id: str | None = Field(None, description="the parent's group")


class ErrorOut(Out):
    """Why a trace failed."""

    code: str
    detail: str


class TraceEntry(Out):
    """A trace in a list: without steps, with its first and last image."""

    id: str
    status: Status
    question: str
    images: list[ImageOut]
    mode: Mode
    answer: str | None
    finish_reason: Literal["stop", "length"] | None
    checkpoint: str
    weight_version: int = Field(ge=1)
    sampling: SamplingOut
    verify: VerifyOut | None = None
    usage: UsageOut | None
    timings: TimingsOut
    task_id: str | None = None
    verdict: VerdictOut | None = None
    error: ErrorOut | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    rating: Rating | None = Field(None, description="1 good, -1 bad")
    tags: list[str] = Field(default_factory=list)
    note: str | None = None
    parent: ParentOut | None = None
    group_id: str | None = None
    created_at: str
    started_at: str | None
    finished_at: str | None
    first_image: ImageOut | None = Field(None, description="the question's first image")
    last_image: ImageOut | None = Field(None, description="the last functional image")


class Trace(Out):
    """One reasoning run: question, steps, answer."""

    id: str
    status: Status
    question: str
    images: list[ImageOut]
    mode: Mode
    steps: list[StepOut]
    answer: str | None = Field(description="the text after the answer mark, stripped; null without one")
    finish_reason: Literal["stop", "length"] | None
    checkpoint: str
    weight_version: int = Field(ge=1, description="version of the weights in use")
    sampling: SamplingOut
    verify: VerifyOut | None = None
    usage: UsageOut | None
    timings: TimingsOut
    task_id: str | None = None
    verdict: VerdictOut | None = None
    error: ErrorOut | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    rating: Rating | None = Field(None, description="1 good, -1 bad")
    tags: list[str] = Field(default_factory=list)
    note: str | None = None
    parent: ParentOut | None = None
    group_id: str | None = None
    created_at: str
    started_at: str | None
    finished_at: str | None


class TraceList(Out):
    """A page of traces, newest first."""

    data: list[TraceEntry]
    has_more: bool


class CheckpointOut(Out):
    """A servable set of weights; its id is its name."""

    id: str
    name: str
    active: bool
    loaded: bool
    weight_version: int | None
    quant: Literal["int8", "fp8"] | None = Field(None, description="form of its matrices, if loaded and quantised")
    template: str
    base: str | None
    licence: str | None
    description: str
    size_bytes: int
    created_at: str | None
    capabilities: dict[str, Any]
    images: dict[str, int]
    context_len: int
    tokens_per_image: int
    resolution: int
    lineage: dict[str, Any]
    metrics: dict[str, Any]
    card_notes: dict[str, Any] | list[Any] | str | None
    source: Literal["package", "home", "setting", "job", "local", "hub"]
    folder: str
    benchmarks: list[dict[str, Any]] = Field([], description="its results, as in `GET /v1/leaderboard`")
    problem: str | None = Field(None, description="why the checkpoint is unusable, if it is")
    in_store: bool = Field(False, description="its files are in the object store only; using it fetches them")


class CheckpointList(Out):
    """All known checkpoints."""

    data: list[CheckpointOut]
    has_more: bool = False


class FieldError(BaseModel):
    """One invalid field."""

    path: str
    message: str


class ProblemOut(BaseModel):
    """RFC 9457 problem document with a stable `code`."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[FieldError] | None = None
