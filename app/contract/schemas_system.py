"""Shapes of health checks, limits, tasks and the list of models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.contract.examples import example
from app.contract.schemas import ImageOut, In, Out
from app.contract.words import Slice


class ImageLimits(Out):
    """The number of images a question takes."""

    min: int
    max: int


class QueueOut(Out):
    """Running and queued traces."""

    running: int
    waiting: int
    max: int


class LimitsOut(Out):
    """The limits of a request."""

    context_len: int
    tokens_per_image: int
    images: ImageLimits
    max_question_chars: int
    max_upload_bytes: int
    queue: QueueOut


class RoomOut(Out):
    """The context that remains after a prompt, and whether the checkpoint knows such questions."""

    prompt_tokens: int
    room_tokens: int
    room_images: int
    familiar: bool | None = Field(
        None, description="the question is like those of the checkpoint's training; null if its card does not say"
    )
    verifier: str | None = Field(
        None, description="the checkpoint that would choose among `verify.candidates`; null: none can"
    )


class KnownReward(Out):
    """A reward of your own that a job may name in `reward.custom`, by `name` or by `file`."""

    name: str | None = Field(None, description="an entry point of the group `omni_r1.rewards`")
    file: str | None = Field(None, description="a function of a file in `OMNI_R1_REWARDS_DIR`, as `file.py:function`")
    package: str | None = Field(None, description="name and version of the package that has the entry point")
    description: str | None = Field(None, description="first line of the function's docstring")


class KnownFamily(Out):
    """A task family of your own: data for jobs as `{"source": "tasks", "family": name}`."""

    name: str = Field(description="an entry point of the group `omni_r1.tasks`")
    package: str = Field(description="name and version of the package that has it")


class ExtensionsOut(Out):
    """The rewards and task families of your own that this server knows."""

    rewards: list[KnownReward]
    families: list[KnownFamily]
    files_allowed: bool = Field(description="whether `OMNI_R1_REWARDS_DIR` is set")


class PruneIn(In):
    """What to delete; limits in place of the server's settings."""

    model_config = example(dry_run=True, keep_days=30)

    dry_run: bool = Field(False, description="only report what would be deleted")
    keep_days: int | None = Field(None, ge=1, le=36_500, description="(`OMNI_R1_KEEP_DAYS`)")
    max_gb: float | None = Field(None, gt=0, le=1e9, description="(`OMNI_R1_HOME_MAX_GB`)")


class PrunedOut(Out):
    """What was deleted, or would be."""

    model_config = example(dry_run=True, traces=12, images=31, bytes=8_112_340, over_bytes=0)

    dry_run: bool
    traces: int
    images: int = Field(description="images that no other trace shows; they go a day after their last use")
    bytes: int = Field(description="of the traces in the database, about, and of these images")
    over_bytes: int = Field(description="above the limit, and not held by traces that may go")


class SizesOut(Out):
    """Bytes by kind."""

    images: int
    checkpoints: int
    jobs: int = Field(description="logs, samples and training state")
    datasets: int = Field(description="uploaded files")
    other: int
    database: int


_STORE: dict[str, Any] = {
    "url": "s3://studio/lab",
    "waiting": 2,
    "waiting_since": "2026-11-29T17:03:12.000Z",
    "uploaded": 412,
    "deleted": 31,
    "failed": 1,
    "last_error": {"detail": "s3://studio/lab does not answer: connection refused", "at": "2026-11-29T17:03:14.000Z"},
}


class StoreErrorOut(Out):
    """Why something was not uploaded or deleted at that time."""

    detail: str
    at: str


class StoreOut(Out):
    """The object store that gets the home's files."""

    model_config = example(**_STORE)

    url: str
    waiting: int = Field(description="uploads and deletions of this server that the store has not confirmed")
    waiting_since: str | None = Field(description="when the oldest of them was due")
    uploaded: int = Field(description="files and folders, since the server started")
    deleted: int
    failed: int = Field(description="tries; what failed is tried again")
    last_error: StoreErrorOut | None


class StorageOut(Out):
    """What the home holds and may hold."""

    model_config = example(
        sizes={
            "images": 41_200_000,
            "checkpoints": 15_480_000,
            "jobs": 2_100_000,
            "datasets": 0,
            "other": 10_000_000,
            "database": 9_300_000,
        },
        total_bytes=78_080_000,
        keep_days=30,
        max_bytes=50_000_000_000,
        last_prune={"dry_run": False, "traces": 12, "images": 31, "bytes": 8_112_340, "over_bytes": 0},
        store=_STORE,
    )

    sizes: SizesOut
    total_bytes: int
    keep_days: int | None
    max_bytes: int | None
    last_prune: PrunedOut | None = Field(description="since the server started")
    store: StoreOut | None = Field(description="null without `OMNI_R1_STORE`")


class LoadingOut(Out):
    """How far a checkpoint has been read: while it is checked, and again while it is loaded."""

    bytes_read: int
    bytes_total: int


class Ready(Out):
    """The server's state."""

    phase: Literal["starting", "ready", "stopping", "failed"]
    checkpoint: str | None
    weight_version: int | None
    detail: str
    quant: Literal["int8", "fp8"] | None = Field(
        None, description="form of the served matrices in memory; null: not quantised"
    )
    loading: LoadingOut | None = Field(description="of the checkpoint that is being read; null if none is")
    version: str


class Live(Out):
    """The process is up."""

    status: Literal["ok"] = "ok"
    version: str = Field(description="of the package")
    commit: str = Field(description="that it was built from; `unknown` without git")


class TaskStep(Out):
    """One step of a task's reference trace."""

    index: int
    text: str
    skill: str
    action: str
    image: ImageOut


class TaskOut(Out):
    """A task of the procedural world; `answer` and `steps` only with `reveal=true`."""

    task_id: str
    slice: Slice
    family: str
    seed: int
    question: str
    image_id: str
    image: ImageOut
    answer: str | None = None
    steps: list[TaskStep] | None = None


class ModelOut(Out):
    """A model in the OpenAI list format."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Out):
    """The available models in the OpenAI list format."""

    object: Literal["list"] = "list"
    data: list[ModelOut]
