"""Typed dictionaries of the API's responses, as returned by `app.client`.

The client guarantees no more than these; the server's models are in `app.contract.schemas`.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from app.client.types_why import Effect, Skipped
from app.contract.words import Fit, GroupKind, GroupStatus, JobStatus, Mode, Slice, Status


class ImageRef(TypedDict):
    """An image of a question, by `image_id` or as `data_url`, and how it becomes a square."""

    image_id: NotRequired[str]
    data_url: NotRequired[str]
    fit: NotRequired[Fit]


class Sampling(TypedDict, total=False):
    """How tokens are drawn; the checkpoint has defaults for missing keys."""

    temperature: float
    top_p: float
    seed: int
    max_new_tokens: int
    max_images: int


class Verify(TypedDict):
    """How many candidates an image has, and the checkpoint that chooses among them."""

    candidates: int
    verifier: NotRequired[str]


class StoredImage(TypedDict):
    """An image on the server: `url` is a path there, width and height are in pixels."""

    image_id: str
    url: str
    width: int
    height: int


class StepImage(StoredImage):
    """An image that a step drew, its skill and the statistics of its codes."""

    skill: NotRequired[str | None]
    stats: dict[str, Any]
    right: NotRequired[bool | None]


class Candidates(TypedDict):
    """The images among which a verifier chose; `chosen` is the index of the one that went on."""

    images: list[StoredImage]
    scores: list[float | None]
    chosen: int


class Step(TypedDict):
    """A step of a trace: its text, and the image that ends it; `edited` if a person changed it in a branch."""

    index: int
    text: str
    image: NotRequired[StepImage | None]
    candidates: NotRequired[Candidates | None]
    edited: NotRequired[bool]
    source_image_id: NotRequired[str | None]


class Verdict(TypedDict):
    """The checkers' judgement of a trace that answers a task of the world."""

    answer: Literal["right", "wrong"]
    drawings_right: int
    drawings_total: int
    edited_steps: NotRequired[list[int]]


class Parent(TypedDict):
    """Where a branch parts from its parent, and the parent's group; `after_step` is None for a follow-up."""

    trace_id: str
    after_step: int | None
    edited_steps: list[int]
    group_id: str | None


class Trace(TypedDict):
    """A trace of `GET /v1/traces/{id}`; list entries have first_image and last_image instead of `steps`."""

    id: str
    status: Status
    question: str
    images: list[StoredImage]
    mode: Mode
    steps: list[Step]
    answer: str | None
    finish_reason: str | None
    checkpoint: str
    weight_version: int
    sampling: Sampling
    verify: NotRequired[Verify | None]
    usage: dict[str, int] | None
    timings: dict[str, float | None]
    task_id: NotRequired[str | None]
    verdict: NotRequired[Verdict | None]
    error: NotRequired[dict[str, Any] | None]
    rating: NotRequired[Literal[-1, 0, 1] | None]
    tags: NotRequired[list[str]]
    note: NotRequired[str | None]
    parent: NotRequired[Parent | None]
    group_id: NotRequired[str | None]
    created_at: str
    started_at: str | None
    finished_at: str | None
    first_image: NotRequired[StoredImage | None]
    last_image: NotRequired[StoredImage | None]


class TaskStep(TypedDict):
    """A step of a reference solution; `action` is the call that draws its image."""

    index: int
    text: str
    skill: str
    action: str
    image: StoredImage


class Task(TypedDict):
    """A task of the procedural world; `answer` and `steps` only if revealed."""

    task_id: str
    slice: Slice
    family: str
    seed: int
    question: str
    image_id: str
    image: StoredImage
    answer: NotRequired[str | None]
    steps: NotRequired[list[TaskStep] | None]


class Page(TypedDict):
    """A page of traces; `has_more` if older ones follow."""

    data: list[Trace]
    has_more: bool


class TraceFilter(TypedDict, total=False):
    """Which traces: all given values must hold."""

    status: Status
    checkpoint: str
    slice: Slice
    verdict: Literal["right", "wrong"]
    rating: Literal[-1, 0, 1]
    tag: str
    parent: str
    group: str
    q: str


class Picture(TypedDict, total=False):
    """An image for a step: a stored one, its bytes, or `use`; `other` is the image of `step` in `trace_id`."""

    image_id: str
    data_url: str
    use: Literal["previous", "blank", "question", "reference", "other"]
    trace_id: str
    step: int


class Edit(TypedDict):
    """Another text or image for a step that a branch keeps."""

    step: int
    text: NotRequired[str]
    image: NotRequired[Picture]


class ThenToken(TypedDict):
    """A token of `alternatives` to go on with; the tokens before it are kept."""

    step: int | Literal["answer"]
    token: int
    id: int


class TreeNode(TypedDict):
    """A trace in its tree; of a deleted one only the id is known."""

    id: str
    parent_id: str | None
    after_step: int | None
    edited_steps: list[int]
    status: Status | Literal["deleted"]
    answer: str | None
    verdict: Literal["right", "wrong"] | None
    checkpoint: str | None
    seed: int | None
    intervention: bool


class Tree(TypedDict):
    """A trace with its ancestors and branches, oldest first."""

    root: str
    nodes: list[TreeNode]


class Token(TypedDict):
    """A token of a trace; `logprob` is None if it was given instead of drawn."""

    text: str
    logprob: float | None


class StepTokens(TypedDict):
    """The tokens of a step before its image, and the log-probabilities of the image's codes in rows."""

    index: int
    tokens: list[Token]
    image: NotRequired[list[list[float | None]] | None]


class TraceTokens(TypedDict):
    """Every token of a trace; `answer` are those after the last complete step."""

    steps: list[StepTokens]
    answer: list[Token]


class Alternative(TypedDict):
    """A token that could have stood at a position."""

    id: int
    text: str
    logprob: float


class Tally(TypedDict):
    """How many members of a group gave an answer."""

    answer: str | None
    count: int
    share: float
    mean_logprob: float | None
    verdict: NotRequired[Literal["right", "wrong"] | None]


class Group(TypedDict):
    """Traces that were created together, and their answers so far, the most frequent first."""

    id: str
    kind: GroupKind
    trace_ids: list[str]
    status: GroupStatus
    tally: list[Tally]
    agreement: float | None
    trace_id: NotRequired[str]  # of an intervention: the trace that it changes,
    effects: NotRequired[list[Effect]]  # what each member changed,
    skipped: NotRequired[list[Skipped]]  # and what was not possible
    created_at: str
    finished_at: str | None


class GroupPage(TypedDict):
    """A page of groups; `has_more` if older ones follow."""

    data: list[Group]
    has_more: bool


class Limits(TypedDict):
    """Limits of a request, in tokens, images, characters and bytes, and the state of the queue."""

    context_len: int
    tokens_per_image: int
    images: dict[str, int]
    max_question_chars: int
    max_upload_bytes: int
    queue: dict[str, int]


class Budget(TypedDict):
    """Tokens of a question, and the room left after it in tokens and in whole images."""

    prompt_tokens: int
    room_tokens: int
    room_images: int
    verifier: str | None  # that would choose among candidates; None: no checkpoint can
    familiar: bool | None  # like the questions of the checkpoint's training; None: unknown


class BytesRead(TypedDict):
    """How far a checkpoint has been read."""

    bytes_read: int
    bytes_total: int


class Readiness(TypedDict):
    """State of the server; `detail` says what it waits for or what failed, `loading` how far a checkpoint is read."""

    phase: Literal["starting", "ready", "stopping", "failed"]
    checkpoint: str | None
    weight_version: int | None
    quant: Literal["int8", "fp8"] | None  # form of its matrices, if loaded and quantised
    detail: str
    loading: BytesRead | None
    version: str


class Progress(TypedDict):
    """Position in a job's stage; `eta_s` is the estimate of the remaining seconds."""

    stage: str | None
    step: int | None
    total: int | None
    eta_s: float | None
    waiting: NotRequired[dict[str, Any] | None]  # {for, needed_bytes, free_bytes} or {for, detail}


class JobError(TypedDict):
    """Why a job failed; `log_tail` has the last lines of its worker."""

    code: str
    detail: str
    log_tail: NotRequired[list[str]]


class JobCheckpoint(TypedDict):
    """A checkpoint that a job wrote, with the metrics of its step."""

    name: str
    stage: str | None
    step: int | None
    metrics: dict[str, Any]
    created_at: str


class Continues(TypedDict):
    """The finished job from which a job goes on; `differs` is empty if one longer run gives the same result."""

    job_id: str
    steps: int
    differs: list[str]


class SweepOfJob(TypedDict):
    """The sweep of a job, and its own values there, by path in the spec."""

    id: str
    values: dict[str, Any]


class Job(TypedDict):
    """A job of `GET /v1/jobs/{id}`."""

    id: str
    status: JobStatus
    method: str
    name: str | None
    tags: list[str]
    note: str | None
    continues: Continues | None
    sweep: SweepOfJob | None
    progress: Progress | None
    metrics: dict[str, float | None]
    spec: dict[str, Any]
    result: dict[str, Any] | None
    error: JobError | None
    checkpoints: list[JobCheckpoint]
    attempt: int
    cancel_requested: bool
    created_at: str
    started_at: str | None
    finished_at: str | None
    running_s: float
    resumable: bool
    heartbeat_at: str | None
    last_event: int


class JobPage(TypedDict):
    """A page of jobs; `has_more` if older ones follow."""

    data: list[Job]
    has_more: bool
