"""Shapes of health checks and limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.contract.schemas import Out


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


class Ready(Out):
    """The server's state."""

    phase: Literal["starting", "ready", "stopping", "failed"]
    checkpoint: str | None
    weight_version: int | None
    detail: str
    version: str


class Live(Out):
    """The process is up."""

    status: Literal["ok"] = "ok"
    version: str = Field(description="of the package")
    commit: str = Field(description="that it was built from; `unknown` without git")
