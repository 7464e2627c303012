"""One live request of the worker, and the state of a paused one. Knows no threads and no transport."""

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
    """The bytes are not the state of a paused trace."""


@dataclass(frozen=True, slots=True)
class ResumeState:
    """State of a paused trace: its tokens, and the positions of its random numbers and events."""

    version: int  # of the weights the trace started with
    key: str  # of the cached rows, if still kept
    prompt: list[int]
    tokens: list[int]
    num_draws: int
    num_parsed: int
    previous: list[int] | None  # codes of the question's last image
    params: dict[str, Any]

    @classmethod
    def of(cls, live: Live, sequence: Sequence, narrator: Narrator, key: str) -> ResumeState:
        """Capture the state of a request whose narration has paused."""
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
        """Compressed JSON, for the database."""
        return zlib.compress(json.dumps({"format": _FORMAT, **asdict(self)}).encode())

    @classmethod
    def from_bytes(cls, data: bytes) -> ResumeState:
        """Parse a saved state.

        Raises:
            ResumeError: the bytes are invalid.
        """
        try:
            values = json.loads(zlib.decompress(data))
            if values.pop("format") != _FORMAT:
                raise ResumeError("the paused state has another format")
            return cls(**values)
        except (zlib.error, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ResumeError(f"the paused state cannot be read: {error}") from error

    def sampling(self) -> SamplingParams:
        """The parameters that the trace started with."""
        return SamplingParams(**self.params)


@dataclass(eq=False, slots=True)
class Live:
    """A request from arrival to its last output."""

    request: GenerationRequest
    model: Any = None  # models.Model, once known
    prompt: list[int] = field(default_factory=list)
    previous: tuple[int, ...] | None = None  # codes of the question's last image,
    seen: bytes | None = None  # and their decoded image, once requested and available
    narrator: Narrator | None = None
    sequence: Sequence | None = None
    step_mode: bool = False
    started: bool = False
    position: int | None = None  # last reported position


def sampling_params(requested: SamplingRequest, *, temperature: float, top_p: float, can_draw: bool) -> SamplingParams:
    """Requested parameters, completed with the checkpoint's defaults.

    Raises:
        ValueError: a value is out of range.
    """
    return SamplingParams(
        temperature=temperature if requested.temperature is None else requested.temperature,
        top_p=top_p if requested.top_p is None else requested.top_p,
        seed=requested.seed,
        max_new_tokens=requested.max_new_tokens,
        max_images=requested.max_images if can_draw else 0,
    )


class KVStash:
    """LRU cache of the KV rows of paused traces, bounded by a budget."""

    def __init__(self, budget: int) -> None:
        """`budget` in bytes."""
        self.budget = budget
        self.num_bytes = 0
        self._rows: OrderedDict[str, tuple[object, Tensor]] = OrderedDict()

    def put(self, model: object, rows: Tensor) -> str:
        """Store rows that belong to a model's weights; return their key."""
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
        """Remove and return rows by key; None when they were evicted or belong to other weights."""
        found = self._rows.pop(key, None)
        if found is None:
            return None
        self.num_bytes -= found[1].nbytes
        return found[1] if found[0] is model else None

    def forget(self, model: object) -> None:
        """Drop the rows of a freed model."""
        for key in [key for key, (owner, _) in self._rows.items() if owner is model]:
            self.take(model, key)
