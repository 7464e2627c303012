"""What crosses the border between the server and the engine: plain picklable values, and the `Generation` protocol.

Knows nothing of tensors, processes or HTTP. `model/engine/client.py` implements the protocol with a child process,
`tests/fakes.py` with a script.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from model.engine.narrator import TraceEvent


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A picture of the question: an RGB PNG, and how it is brought to the model's square."""

    png: bytes
    fit: Literal["crop", "pad"] = "crop"


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """What the caller asked for; None means the checkpoint's default (or whatever fits, for the two maxima)."""

    temperature: float | None = None  # 0 = greedy
    top_p: float | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    max_images: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One trace to run, or to go on with (`resume`, the bytes of its last `Paused`)."""

    request_id: str
    checkpoint: str
    question: str
    images: tuple[ImageInput, ...] = ()
    sampling: SamplingRequest = SamplingRequest()
    mode: Literal["auto", "step"] = "auto"
    partial_images: int = 0  # evenly spaced partial pictures per image, 0-64
    show_seen: bool = False  # let the first drawing come with what it began from
    resume: bytes | None = None


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """The request waits for a slot; 0 = next. Sent again when it changes."""

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """The request has a slot. `room_images` is how many pictures may still be drawn."""

    prompt_tokens: int
    context_len: int
    max_new_tokens: int
    room_images: int
    temperature: float
    top_p: float
    weight_version: int


@dataclass(frozen=True, slots=True)
class Emitted:
    """One event of the trace, in token order.

    `image.partial` carries `png` (None: the decoder was busy), `image.completed` carries `png` and `codes`, and its
    `data["stats"]` is {codes, flatness, tv, perception_reward}. With `show_seen` the trace's first `image.completed`
    carries `seen`: the question's last picture as the model sees it, the decode of its codes.
    """

    event: TraceEvent
    png: bytes | None = None
    codes: tuple[int, ...] | None = None
    seen: bytes | None = None


@dataclass(frozen=True, slots=True)
class Paused:
    """Step mode: `step` is complete, the slot is free. `resume` goes into the next request of this trace."""

    step: int
    resume: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """The trace is complete. `usage` is {prompt_tokens, completion_tokens, images}, over all its requests."""

    reason: Literal["stop", "length"]
    answer: str | None
    usage: dict[str, int]
    unmarked: bool = False  # the answer had no mark: it is the text after the last image


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The request was aborted and holds nothing any more."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended in an error. Codes: engine_died, engine_error, unknown_checkpoint, prompt_too_long,
    bad_image, bad_resume, weights_gone, not_ready."""

    code: str
    detail: str


Output = QueuePosition | Started | Emitted | Paused | Finished | Cancelled | Failed
Terminal = Paused | Finished | Cancelled | Failed


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """`loaded` maps a checkpoint's name to its weight version."""

    phase: Literal["starting", "ready", "stopping", "failed"]
    detail: str = ""
    loaded: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of device memory that a checkpoint takes: `resident` while it answers, `loading` at most until then."""

    resident: int
    loading: int


class EngineError(Exception):
    """The engine refused a command. `code` is stable, `detail` says what to do."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Generation(Protocol):
    """What the server needs of an engine."""

    async def start(self) -> None:
        """Begin to start; returns before the engine is ready (see `status`)."""

    async def close(self) -> None:
        """Stop the engine and wait until it is gone; live requests end with Failed(code="interrupted")."""

    def status(self) -> EngineStatus: ...

    async def load(self, name: str, folder: str, weight_version: int) -> None:
        """Load a checkpoint beside the others; a name that is loaded already is replaced for new requests only.

        Raises:
            EngineError: the folder is no valid checkpoint, or memory cannot hold it; nothing has changed.
        """

    async def unload(self, name: str) -> None:
        """Free a checkpoint once its running requests have ended."""

    async def check(self, folder: str) -> Footprint:
        """Read a checkpoint folder from end to end and say what it will take; nothing is kept of it.

        Raises:
            EngineError: it is no valid checkpoint; the codes are those of docs/checkpoints.md.
        """

    def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        """Outputs in order; the last is Paused, Finished, Cancelled or Failed. Closing the iterator aborts."""

    async def pause(self, request_id: str) -> None:
        """Switch to step mode: the request pauses when its running step ends."""

    async def resume_auto(self, request_id: str) -> None:
        """Take a pause back that has not come into effect yet."""

    async def abort(self, request_id: str) -> None:
        """Returns when the request holds no slot any more; its iterator ends with Cancelled."""

    async def memory(self) -> dict[str, Any]:
        """Bytes held by the engine: {rss, weights, kv_cache, stash, models {name: bytes}, retired}, `free` and `total`
        of its device, and the device's name."""
