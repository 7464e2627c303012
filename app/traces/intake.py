"""Validation before a trace is created: images, task, tokens, sampling.

Blocking: call from a thread. Counts tokens with the checkpoint's own template, without torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from app.checkpoints.folder import CheckpointInfo
from app.checkpoints.registry import CheckpointRegistry
from app.common import pools
from app.contract.problems import Problem, field_problem
from app.contract.schemas import SamplingIn, TraceCreate, VerifyIn
from app.contract.words import MAX_DRAWN_IMAGES, MAX_SEED
from app.storage.image_intake import ImageIntake
from app.storage.images import ImageStore, StoredImage, from_data_url
from app.traces.tasks import TaskWorld
from model.engine.messages import ImageInput, Prefix
from model.engine.phases import images_that_fit
from model.engine.sequence import SamplingParams
from model.text.places import PlaceError


@dataclass(frozen=True)
class Room:
    """The context left by a prompt."""

    prompt_tokens: int
    room_tokens: int
    room_images: int


@dataclass(frozen=True)
class Kept:
    """What the log says of a kept step, in addition to what the engine says."""

    text: str
    image: dict[str, Any] | None = None  # None: no image, or the engine decodes it
    edited: bool = False
    skill: str | None = None
    source_image_id: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A validated request: a question, or a branch with what it keeps."""

    inputs: tuple[ImageInput, ...]
    row: dict[str, Any]  # the columns of the trace that the request determines
    prefix: Prefix = field(default_factory=Prefix)
    kept: tuple[Kept, ...] = ()
    request: dict[str, Any] | None = None  # what a program sent to `/v1/responses`


class Intake:
    """Turns a request body into a `Prepared`, or raises :class:`Problem`."""

    def __init__(
        self, images: ImageStore, image_intake: ImageIntake, checkpoints: CheckpointRegistry, world: TaskWorld
    ) -> None:
        self._images = images
        self._image_intake = image_intake
        self.decoding = image_intake.run  # runs a function with images to decode in the image threads
        self._checkpoints = checkpoints
        self._world = world

    async def prepared(self, body: TraceCreate, info: CheckpointInfo) -> Prepared:
        """As `prepare`, in a thread; requests with images to decode wait in the image threads."""
        if any(image.data_url is not None for image in body.images):
            return await self._image_intake.run(self.prepare, body, info)
        return await pools.intake.run(self.prepare, body, info)

    def prepare(self, body: TraceCreate, info: CheckpointInfo) -> Prepared:
        """Validate the request and store its images."""
        self.check_count(len(body.images), info, "body.images")
        room = self.room(body.question, len(body.images), info)
        if room.room_tokens < 1:
            raise field_problem(
                "prompt_too_long",
                "body.question",
                f"question and images take {room.prompt_tokens} tokens; the model's limit is {info.context_len}; "
                "shorten the question",
            )
        images = tuple(
            self.store_image(image.image_id, image.data_url, f"body.images.{index}")
            for index, image in enumerate(body.images)
        )
        slice_ = None
        if body.task_id is not None:
            slice_ = self._world.of_request(body.task_id, body.question, images).slice
        inputs = tuple(
            ImageInput(self._images.read(image.image_id), given.fit)
            for image, given in zip(images, body.images, strict=True)
        )
        shown = (image.as_json() | {"fit": given.fit} for image, given in zip(images, body.images, strict=True))
        row = {
            "question": body.question,
            "images": list(shown),
            "mode": body.mode,
            "checkpoint": info.name,
            "sampling": sampling_row(resolve_sampling(body.sampling, info, room)),
            "verify": self.verify_row(body.verify, info),
            "partial_images": body.partial_images,
            "metadata": body.metadata,
            "task_id": body.task_id,
            "slice": slice_,
        }
        return Prepared(inputs, row)

    def inputs(self, images: Sequence[Mapping[str, Any]]) -> tuple[ImageInput, ...]:
        """The stored images of a question, as a trace's row names them."""
        return tuple(ImageInput(self._images.read(image["image_id"]), image["fit"]) for image in images)

    def room(self, question: str, images: int, info: CheckpointInfo) -> Room:
        """The context used and left by a prompt. Raises `Problem` ``bad_place`` for references to missing images."""
        try:
            prompt = self._checkpoints.template(info).prompt_len(question, images)
        except PlaceError as error:
            raise field_problem("bad_place", "body.question", str(error)) from None
        left = max(0, info.context_len - prompt)
        draws = info.manifest is None or info.manifest.capabilities.images_in_answer
        return Room(prompt, left, images_that_fit(left, info.tokens_per_image) if draws else 0)

    def verify_row(self, verify: VerifyIn | None, info: CheckpointInfo) -> dict[str, Any] | None:
        """How a trace chooses among candidates, for its row; raises `Problem` ``no_verifier`` if no one can judge."""
        if verify is None or verify.candidates == 1:
            return None
        judge = self._checkpoints.verifier(info, verify.verifier, path="body.verify")
        return {"candidates": verify.candidates, "verifier": judge.name}

    def check_count(self, have: int, info: CheckpointInfo, path: str) -> None:
        """422 unless the checkpoint takes that many images."""
        assert info.manifest is not None
        low, high = info.manifest.images.min, info.manifest.images.max
        if have < low:
            raise field_problem(
                "image_required", path, f"{info.name} needs {low} image{'s' * (low != 1)}; the request has {have}"
            )
        if have > high:
            raise field_problem("too_many_images", path, f"{info.name} takes at most {high}; the request has {have}")

    def store_image(self, image_id: str | None, data_url: str | None, path: str) -> StoredImage:
        """A stored image, or a new one of a data URL."""
        if image_id is not None:
            try:
                stored = self._images.get(image_id)
                self._images.read(image_id)
                return stored
            except Problem as problem:
                raise field_problem("unknown_image", f"{path}.image_id", problem.detail) from None
        assert data_url is not None
        try:
            return self._image_intake.store(from_data_url(data_url, f"{path}.data_url"))
        except Problem as problem:
            if problem.errors or problem.status not in (415, 422):
                raise
            raise field_problem(problem.code, f"{path}.data_url", problem.detail) from None


def resolve_sampling(requested: SamplingIn, info: CheckpointInfo, room: Room) -> SamplingParams:
    """The one place where requested parameters meet the checkpoint's defaults and the room that the prompt leaves."""
    if requested.max_new_tokens is not None and requested.max_new_tokens > info.context_len:
        raise field_problem(
            "invalid",
            "body.sampling.max_new_tokens",
            f"the context is {info.context_len} tokens, of which {room.room_tokens} are left",
        )
    defaults = info.generation
    max_new_tokens = min(requested.max_new_tokens or room.room_tokens, room.room_tokens)
    fit = min(room.room_images, images_that_fit(max_new_tokens, info.tokens_per_image), MAX_DRAWN_IMAGES)
    return SamplingParams(
        temperature=defaults.temperature if requested.temperature is None else requested.temperature,
        top_p=defaults.top_p if requested.top_p is None else requested.top_p,
        seed=secrets.randbelow(MAX_SEED + 1) if requested.seed is None else requested.seed,
        max_new_tokens=max_new_tokens,
        max_images=fit if requested.max_images is None else min(requested.max_images, fit),
    )


def sampling_row(sampling: SamplingParams) -> dict[str, Any]:
    """The sampling parameters of a trace's row: those of `SamplingOut`."""
    values = asdict(sampling)
    del values["candidates"]
    return values


def samples_of(prepared: Prepared, count: int) -> list[Prepared]:
    """The request of each sample: sample i has the seed (seed + i) mod 2^53."""
    sampling = prepared.row["sampling"]
    seeds = [(sampling["seed"] + i) % (MAX_SEED + 1) for i in range(count)]
    return [replace(prepared, row=prepared.row | {"sampling": {**sampling, "seed": seed}}) for seed in seeds]
