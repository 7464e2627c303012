"""Messages between the server and the engine: plain picklable values, and the `Generation` protocol.

Knows nothing of tensors, processes or HTTP. `model/engine/client.py` implements the protocol with a child process,
`model/cluster/replicas.py` with several engines, `tests/fakes.py` with a script.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from model.engine.sequence import SamplingParams


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event of a trace as the API defines it; the server only adds image_id, url and skill to `data`."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image of the question: an RGB PNG, and how it is fitted to the model's square."""

    png: bytes
    fit: Literal["crop", "pad"] = "crop"


@dataclass(frozen=True, slots=True)
class KeptStep:
    """A step that a response begins with instead of generating it.

    Its exact `tokens`, else its text with the `codes` of an image, else with the `image`, which goes through the
    encoder. Tokens and codes only count for checkpoints with the prefix's codec.
    """

    text: str = ""
    tokens: tuple[int, ...] | None = None
    codes: tuple[int, ...] | None = None
    image: ImageInput | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """The given beginning of a response: complete steps, then the beginning of the next one.

    Attributes:
        steps: reported as one `step.kept` each.
        codec: the tokenizer and VQ of the tokens and codes (`Started.codec`).
        num_draws: random numbers that the original response had consumed after these steps.
        then_tokens: exact tokens after the last step, or
        then_text: literal text with which the next step begins, or
        then_answer: whether the answer mark follows. Their tokens are reported like generated ones.
    """

    steps: tuple[KeptStep, ...] = ()
    codec: str = ""
    num_draws: int = 0
    then_tokens: tuple[int, ...] = ()
    then_text: str | None = None
    then_answer: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One trace to run, or to continue (`resume`: the bytes of its last `Paused`).

    Requests of one `group` have the same checkpoint, question and images; those with the same prefix share one prefill.
    At most two slots fewer than there are run at once.
    """

    request_id: str
    checkpoint: str
    question: str
    images: tuple[ImageInput, ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    mode: Literal["auto", "step"] = "auto"
    partial_images: int = 0  # evenly spaced partial images per image, 0-64
    resume: bytes | None = None
    prefix: Prefix = Prefix()
    group: str | None = None
    verifier: str = ""  # the loaded checkpoint that chooses among `sampling.candidates`


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """The request waits for a slot; 0 = next. Sent again on every change."""

    position: int


@dataclass(frozen=True, slots=True)
class Started:
    """The request has a slot.

    `room_images` is the number of images that still fit. `codec` identifies the tokenizer and VQ: equal codecs give the
    same meaning to the same tokens.
    """

    prompt_tokens: int
    context_len: int
    max_new_tokens: int
    room_images: int
    temperature: float
    top_p: float
    weight_version: int
    codec: str = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a response with their log-probabilities; NaN for tokens that were given."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    @property
    def num_generated(self) -> int:
        """How many of them were not given."""
        return sum(not math.isnan(logprob) for logprob in self.logprobs)


@dataclass(frozen=True, slots=True)
class Emitted:
    """One event of the trace, in token order.

    `image.partial` carries `png` (None: the decoder was busy), `image.completed` carries `png`, and its `data["stats"]`
    is {codes, flatness, tv, perception_reward, copied?, passes?}. `step.kept` carries the `png` of an image that was
    encoded. Both `step.kept` and `step.completed` carry the step's `tokens`. `image.candidates` carries its PNGs as
    `images`; with candidates there is no `image.partial`.
    """

    event: TraceEvent
    png: bytes | None = None
    tokens: Tokens | None = None
    images: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Paused:
    """Step mode: `step` is complete, the slot is free. `resume` goes into the next request of this trace."""

    step: int
    resume: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """The trace is complete.

    `usage` is {prompt_tokens, kept_tokens, completion_tokens, images} over all its requests; the last two count what
    was generated. `tokens` are those after the last complete step.
    """

    reason: Literal["stop", "length"]
    answer: str | None
    usage: dict[str, int]
    unmarked: bool = False  # the answer had no mark: it is the text after the last image
    tokens: Tokens = Tokens()


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The request was aborted and holds no resources."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended in an error.

    Codes: engine_died, engine_error, unknown_checkpoint, prompt_too_long, bad_image, bad_resume, weights_gone,
    not_ready, no_verifier.
    """

    code: str
    detail: str


Output = QueuePosition | Started | Emitted | Paused | Finished | Cancelled | Failed
Terminal = Paused | Finished | Cancelled | Failed


@dataclass(frozen=True, slots=True)
class Mark:
    """What another worker needs to go on after the outputs so far, if this one dies. Only where `Configure.marks` asks.

    Attributes:
        state: in a request's first mark: as `Paused.resume`, without tokens.
        tokens: of the response, since the mark before.
        num_draws: random numbers that all tokens so far consumed.
        num_parsed: parse events whose outputs have been sent.
        passes: forward passes of each image so far.
    """

    state: bytes = b""
    tokens: Tokens = Tokens()
    num_draws: int = 0
    num_parsed: int = 0
    passes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes of a checkpoint's tensors that have been read, and all of them."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """`loaded` maps a checkpoint's name to its weight version."""

    phase: Literal["starting", "ready", "stopping", "failed"]
    detail: str = ""
    loaded: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    waiting: int = 0
    reading: Reading | None = None


@dataclass(frozen=True, slots=True)
class Footprint:
    """Device memory of a checkpoint in bytes: `resident` while serving, `loading` at its peak before that.

    `context_len`: tokens of a trace when it is served there; None: as its folder or the settings say.
    """

    resident: int
    loading: int
    context_len: int | None = None


@dataclass(frozen=True, slots=True)
class AlternativesQuery:
    """Which tokens could have followed `tokens` in a response?"""

    checkpoint: str
    weight_version: int
    question: str
    images: tuple[ImageInput, ...]
    tokens: tuple[int, ...]
    sampling: SamplingParams
    count: int = 5


@dataclass(frozen=True, slots=True)
class WholeResponse:
    """A response with an answer: the tokens of each complete step, and those after the last one."""

    checkpoint: str
    weight_version: int
    question: str
    images: tuple[ImageInput, ...]
    steps: tuple[tuple[int, ...], ...]
    last: tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class ImageReliance:
    """How much a response relies on one image: the loss of log-probability, in nats, when later tokens cannot see it.

    `step` is 0 for an image of the question. `per_step` has one value for each step's text and codes, `answer` is that
    of the answer's tokens.
    """

    step: int
    answer: float
    per_step: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reliance:
    """`answer_logprob` is the log-probability of the answer's tokens with every image."""

    answer_logprob: float
    images: tuple[ImageReliance, ...]


@dataclass(frozen=True, slots=True)
class ImageAttention:
    """The share of attention that an image gets: weights of its codes, in rows [h][w]. `step` 0: of the question."""

    step: int
    grid: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Alternative:
    """A legal token and its log-probability at that position."""

    id: int
    logprob: float


class EngineError(Exception):
    """A command failed. `code` is stable, `detail` says what to do."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Generation(Protocol):
    """The engine's interface to the server."""

    async def start(self) -> None:
        """Start the engine; return before it is ready (see `status`)."""

    async def close(self) -> None:
        """Stop the engine and wait for its exit; live requests end with Failed(code="interrupted")."""

    def status(self) -> EngineStatus:
        """The latest known state; returns at once."""
        ...

    async def load(self, name: str, folder: str, weight_version: int) -> None:
        """Load a checkpoint next to the others; a loaded one of the same name is only replaced for new requests.

        Raises:
            EngineError: the folder is no valid checkpoint, or memory cannot hold it; nothing has changed.
        """

    async def unload(self, name: str) -> None:
        """Free a checkpoint once its running requests have ended."""

    async def check(self, folder: str) -> Footprint:
        """Validate a checkpoint folder completely and return its footprint; nothing stays in memory.

        Raises:
            EngineError: it is no valid checkpoint; the codes are those of docs/checkpoints.md.
        """

    def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        """Yield outputs in order; the last is Paused, Finished, Cancelled or Failed. Closing the iterator aborts."""

    async def pause(self, request_id: str) -> None:
        """Switch to step mode: the request pauses at the end of its running step."""

    async def abort(self, request_id: str) -> None:
        """Abort a request; returns once it holds no slot. Its iterator ends with Cancelled."""

    async def seen(self, request_id: str) -> bytes:
        """The last image of a live request's question as the model sees it: the decode of its codes, a PNG.

        Raises:
            EngineError: the request is not live, or its question has no image.
        """

    async def alternatives(self, query: AlternativesQuery) -> list[Alternative]:
        """The likeliest legal tokens after a beginning of a response, in one forward pass.

        Raises:
            EngineError: `weights_gone`, or the tokens do not fit this checkpoint.
        """

    async def reliance(self, response: WholeResponse) -> Reliance:
        """How much an answer relies on each image before it: one forward pass for each, and one with all of them.

        Raises:
            EngineError: `weights_gone`, `no_answer`, or the tokens do not fit this checkpoint.
        """

    async def attention(self, response: WholeResponse, step: int | None) -> tuple[ImageAttention, ...]:
        """How much the tokens of a step, or of the answer (None), attend to each image up to them.

        Raises:
            EngineError: as `reliance`.
        """

    async def memory(self) -> dict[str, Any]:
        """Bytes held by the engine, `free` and `total` of its device, and the device's name.

        Held are {rss, weights, kv_cache, stash, models {name: bytes}, retired}.
        """
