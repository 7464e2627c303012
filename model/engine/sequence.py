"""One sequence in the engine: its tokens, phase and random numbers. Knows no tensors."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol

from model.engine.phases import Legal, PhaseRules, PhaseState
from model.seeds import mixed_seed

if TYPE_CHECKING:
    from torch import Tensor

    from model.nets.slot_cache import Held

DRAWS_PER_TOKEN = 3  # two rejection tries and the exact sample after them (see sampling.py)
MAX_CANDIDATES = 8

FinishedBy = Literal["stop", "length", "aborted", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling settings. `temperature` 0 is greedy. None: as much as fits.

    `candidates` are drawn for each image, and a verifier chooses one (`model/engine/candidates.py`).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_new_tokens: int | None = None
    max_images: int | None = None
    candidates: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise ValueError(f"temperature must be between 0 and 100, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be between 0 and 2**63 - 1, got {self.seed}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.max_images is not None and self.max_images < 0:
            raise ValueError(f"max_images must be at least 0, got {self.max_images}")
        if not 1 <= self.candidates <= MAX_CANDIDATES:
            raise ValueError(f"candidates must be between 1 and {MAX_CANDIDATES}, got {self.candidates}")


class Draws:
    """A sequence's private random numbers: one seed gives the same numbers on every machine and device."""

    __slots__ = ("_ahead", "_random", "count")

    def __init__(self, seed: int, count: int = 0) -> None:
        """Skip `count` numbers, which restores a saved generator."""
        self._random = random.Random(seed)
        self._ahead: deque[tuple[float, float, float]] = deque()
        self.count = count
        for _ in range(count):
            self._random.random()

    def peek(self, ahead: int = 0) -> tuple[float, float, float]:
        """The uniform numbers, each in [0, 1), of the token that is `ahead` tokens after the next one."""
        draw = self._random.random
        while len(self._ahead) <= ahead:
            self._ahead.append((draw(), draw(), draw()))
        return self._ahead[ahead]

    def take(self) -> tuple[float, float, float]:
        """Consume the uniform numbers of the next token."""
        numbers = self.peek()
        self._ahead.popleft()
        self.count += DRAWS_PER_TOKEN
        return numbers


def first_phase(rules: PhaseRules, room: int, params: SamplingParams) -> PhaseState:
    """The phase at the beginning of a response that has `room` tokens."""
    limit = room if params.max_new_tokens is None else min(room, params.max_new_tokens)
    fits = rules.images_that_fit(limit)
    return PhaseState(
        rules, max_tokens=limit, max_images=fits if params.max_images is None else min(fits, params.max_images)
    )


def sample_seed(seed: int, index: int) -> int:
    """The seed of sample `index` of a group; sample 0 keeps the request's own."""
    return seed if index == 0 else mixed_seed(seed, index)


@dataclass(frozen=True, slots=True)
class Completion:
    """A complete response. `mask_bytes[i]` encodes the legal set of token i (see `Legal`)."""

    token_ids: list[int]
    logprobs: list[float]
    mask_bytes: bytes
    finish_reason: FinishedBy


class Status(Enum):
    """Where a sequence is between arrival and its end."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


class PrefixRows:
    """The cached rows that the sequences of a group start from: the first one to be prefilled leaves them here."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: Held | None = None


Judge = Callable[[Seq[Seq[int]]], Seq[float]]  # code tokens of each candidate -> scores, the higher the better


class Verifier(Protocol):
    """Judges candidates of an image."""

    def about(self, prompt: Seq[int], response: Seq[int]) -> Judge | None:
        """A judge of the image that begins where the response ends; None if there is nothing to judge it by."""
        ...


@dataclass(frozen=True, slots=True)
class Chosen:
    """The candidates of one image: each one's code tokens and score, and the index of the one that went on."""

    candidates: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]
    index: int


@dataclass(frozen=True, slots=True)
class SequenceOutput:
    """One sampled token. `finished_by` is set on a sequence's last one; "error" carries no token (-1).

    `chosen` is set on the last code of an image with several candidates. A forward pass can give several codes:
    `ends_pass` is set on the last token of each pass, and the last code has the `passes` of its image; those of
    candidates are the most that one of them took.
    """

    request_id: str
    index: int
    token: int
    logprob: float
    legal: Legal
    finished_by: FinishedBy | None
    chosen: Chosen | None = None
    ends_pass: bool = True
    passes: int = 0


@dataclass(slots=True)
class Draft:
    """Guesses at the N codes of the image that a sequence draws now, as token ids; and its next window."""

    ids: list[int]
    window: int


@dataclass(eq=False, slots=True)
class Sequence:
    """One sample of one request. `response` starts with the resumed tokens, if any."""

    request_id: str
    index: int
    prompt: list[int]
    params: SamplingParams
    state: PhaseState
    draws: Draws
    response: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    legal: bytearray = field(default_factory=bytearray)
    status: Status = Status.WAITING
    slot: int = -1
    admission: int = 0  # counts all sequences that ever got a slot
    num_resumed: int = 0
    last_token: int = -1
    position: int = 0  # of last_token
    kv: Held | None = None  # cached rows to start from, if available
    shared: PrefixRows | None = None  # with the other sequences of its group
    group: str | None = None
    verifier: Verifier | None = None  # chooses among candidates
    fork: Fork | None = None  # while an image has several candidates
    draft: Draft | None = None  # of the image in progress
    passes: int = 0  # forward passes of the image in progress, or of the last one

    @classmethod
    def create(
        cls,
        request_id: str,
        index: int,
        prompt: list[int],
        params: SamplingParams,
        *,
        rules: PhaseRules,
        context_len: int,
        resumed: list[int],
        num_draws: int = 0,
    ) -> Sequence:
        """Create a waiting sequence.

        Raises:
            ValueError: prompt and resumed tokens leave no room, or the resumed tokens have ended already.
        """
        room = context_len - len(prompt)
        if not prompt or room < 1:
            raise ValueError(f"the prompt has {len(prompt)} tokens; {context_len} fit, one of them for the response")
        state = first_phase(rules, room, params)
        legal = bytearray()
        for token in resumed:
            if state.finish_reason is not None:
                raise ValueError("the resumed tokens continue after their end")
            legal.append(state.legal)
            state.push(token)
        if state.finish_reason is not None:
            raise ValueError("the resumed tokens have ended already")
        sequence = cls(
            request_id=request_id,
            index=index,
            prompt=prompt,
            params=params,
            state=state,
            draws=Draws(sample_seed(params.seed, index), num_draws),
            response=list(resumed),
            logprobs=[0.0] * len(resumed),
            legal=legal,
            num_resumed=len(resumed),
        )
        sequence.last_token = sequence.response[-1] if resumed else prompt[-1]
        sequence.position = len(prompt) + len(resumed) - 1
        return sequence

    def push(self, token: int, logprob: float, *, ends_pass: bool = True) -> None:
        """Append the sampled token, the last one of its forward pass or not."""
        if self.state.legal is not Legal.FORCED:
            self.draws.take()
        if self.state.legal is Legal.CODE:
            self.passes = (self.passes if self.state.codes_done else 0) + ends_pass
        self.response.append(token)
        self.logprobs.append(logprob)
        self.legal.append(self.state.legal)
        self.state.push(token)
        self.last_token = token
        self.position += 1

    @property
    def num_shared(self) -> int:
        """Positions for which it needs no room, since they lie in pages that are held."""
        return self.kv.start if self.kv is not None and self.kv.pages else 0

    @property
    def prefix(self) -> list[int]:
        """The tokens whose keys and values must be cached before the next step: all but the last."""
        return (self.prompt + self.response)[:-1]


@dataclass(eq=False, slots=True)
class Fork:
    """One image with several candidates. `members[0]` is the sequence itself."""

    judge: Judge
    prefix: Held  # the cached rows before the image
    members: list[Sequence]
    rows: dict[int, Tensor] = field(default_factory=dict)  # by `id` of the complete members: those of the image
