"""One live request of the worker, and what a paused one leaves behind. Knows no thread and no transport."""

from __future__ import annotations

import json
import uuid
import zlib
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from model.engine.messages import GenerationRequest, SamplingRequest
from model.engine.narrator import Narrator
from model.engine.sequence import SamplingParams, Sequence

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = 2


class ResumeError(ValueError):
    """The bytes are not those of a paused trace."""


@dataclass(frozen=True, slots=True)
class ResumeState:
    """All that a paused trace needs to go on: its tokens, how far its random numbers and its events have got."""

    version: int  # of the weights it began with
    key: str  # of the cached rows, should they still be kept
    prompt: list[int]
    tokens: list[int]
    num_draws: int
    num_parsed: int
    previous: list[int] | None  # codes of the question's last picture
    params: dict[str, Any]

    @classmethod
    def of(cls, live: Live, sequence: Sequence, narrator: Narrator, key: str) -> ResumeState:
        """The state of a request whose narration has paused."""
        return cls(
            version=live.model.version,
            key=key,
            prompt=live.prompt,
            tokens=list(sequence.response),
            num_draws=sequence.draws.count,
            num_parsed=narrator.num_parsed,
            previous=None if live.previous is None else list(live.previous),
            params=asdict(sequence.params),
        )

    def to_bytes(self) -> bytes:
        return zlib.compress(json.dumps({"format": _FORMAT, **asdict(self)}).encode())

    @classmethod
    def from_bytes(cls, data: bytes) -> ResumeState:
        """
        Raises:
            ResumeError: the bytes are something else.
        """
        try:
            values = json.loads(zlib.decompress(data))
            if values.pop("format") != _FORMAT:
                raise ResumeError("the paused state has another format")
            return cls(**values)
        except (zlib.error, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ResumeError(f"the paused state cannot be read: {error}") from error

    def sampling(self) -> SamplingParams:
        return SamplingParams(**self.params)


@dataclass(eq=False, slots=True)
class Live:
    """A request from its arrival until its last output."""

    request: GenerationRequest
    model: Any = None  # models.Model, once it is known
    prompt: list[int] = field(default_factory=list)
    previous: tuple[int, ...] | None = None  # codes of the question's last picture,
    seen: bytes | None = None  # and what they look like, once that is asked for and known
    narrator: Narrator | None = None
    sequence: Sequence | None = None
    step_mode: bool = False
    started: bool = False
    position: int | None = None  # told last


def sampling_params(asked: SamplingRequest, *, temperature: float, top_p: float, can_draw: bool) -> SamplingParams:
    """What was asked for, filled up with the checkpoint's defaults.

    Raises:
        ValueError: a value lies outside its range.
    """
    return SamplingParams(
        temperature=temperature if asked.temperature is None else asked.temperature,
        top_p=top_p if asked.top_p is None else asked.top_p,
        seed=asked.seed,
        max_new_tokens=asked.max_new_tokens,
        max_images=asked.max_images if can_draw else 0,
    )


class KVStash:
    """Cached rows of paused traces, the least recently paused dropped first when they outgrow the budget."""

    def __init__(self, budget: int) -> None:
        """`budget` in bytes."""
        self.budget = budget
        self.num_bytes = 0
        self._rows: OrderedDict[str, tuple[object, Tensor]] = OrderedDict()

    def put(self, model: object, rows: Tensor) -> str:
        """Keep rows that belong to a model's weights; returns their key."""
        key, size = uuid.uuid4().hex, rows.nbytes
        if size > self.budget:
            return key
        self._rows[key] = (model, rows)
        self.num_bytes += size
        while self.num_bytes > self.budget:
            _, (_, dropped) = self._rows.popitem(last=False)
            self.num_bytes -= dropped.nbytes
        return key

    def take(self, model: object, key: str) -> Tensor | None:
        """Rows by their key, once; None when they are gone or belong to other weights."""
        found = self._rows.pop(key, None)
        if found is None:
            return None
        self.num_bytes -= found[1].nbytes
        return found[1] if found[0] is model else None

    def forget(self, model: object) -> None:
        """Drop what belongs to a model that is gone."""
        for key in [key for key, (owner, _) in self._rows.items() if owner is model]:
            self.take(model, key)
