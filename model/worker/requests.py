"""One live request of the worker, and the state of a paused one. Knows no threads and no transport."""

from __future__ import annotations

import json
import uuid
import zlib
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from model.engine.messages import GenerationRequest
from model.engine.sequence import PrefixRows, SamplingParams, Sequence
from model.text.prefix import GivenIds
from model.worker.narrator import Narrator

if TYPE_CHECKING:
    from torch import Tensor

    from model.worker.models import Model

_FORMAT = 3
_FORMATS = (2, _FORMAT)  # 2 lacks what a branch keeps


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
    kept: tuple[int, int] = (0, 0)  # given tokens and images

    @classmethod
    def of(cls, live: Live, sequence: Sequence, narrator: Narrator, key: str) -> ResumeState:
        """Capture the state of a request whose narration has paused."""
        assert live.model is not None
        return cls(
            version=live.model.version,
            key=key,
            prompt=live.prompt.ids,
            tokens=list(sequence.response),
            num_draws=sequence.draws.count,
            num_parsed=narrator.num_parsed,
            previous=None if live.prompt.previous is None else list(live.prompt.previous),
            params=asdict(sequence.params),
            kept=live.kept,
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
            if values.pop("format") not in _FORMATS:
                raise ResumeError("the paused state has another format")
            return cls(**values)
        except (zlib.error, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ResumeError(f"the paused state cannot be read: {error}") from error

    def sampling(self) -> SamplingParams:
        """The parameters that the trace started with."""
        return SamplingParams(**self.params)


@dataclass(eq=False)
class Prompt:
    """What the requests of a group share, or one request has alone: token ids, and the codes of the last image."""

    ids: list[int] = field(default_factory=list)
    given: GivenIds = field(default_factory=lambda: GivenIds([], []))
    previous: tuple[int, ...] | None = None  # codes of the question's last image
    rows: PrefixRows | None = None  # in a group
    waiting: list[Live] = field(default_factory=list)  # until the images are encoded
    is_ready: bool = False


@dataclass(eq=False, slots=True)
class Live:
    """A request from arrival to its last output."""

    request: GenerationRequest
    model: Model | None = None  # once known
    judge: Model | None = None  # of its candidates
    prompt: Prompt = field(default_factory=Prompt)
    narrator: Narrator | None = None
    sequence: Sequence | None = None
    step_mode: bool = False
    started: bool = False
    position: int | None = None  # last reported position
    kept: tuple[int, int] = (0, 0)  # given tokens and images
    seen_tickets: list[int] = field(default_factory=list)  # calls that wait for the question's image

    @property
    def models(self) -> list[Model]:
        """The models that it holds."""
        return [model for model in (self.model, self.judge) if model is not None]


class KVStash:
    """LRU cache of the KV rows of paused traces, bounded by a budget."""

    def __init__(self, budget: int) -> None:
        """`budget` in bytes."""
        self.budget = budget
        self.num_bytes = 0
        self._rows: OrderedDict[str, tuple[object, Tensor]] = OrderedDict()

    def put(self, model: object, rows: Tensor) -> str:
        """Store rows that belong to a model's weights, in main memory; return their key."""
        key, size = uuid.uuid4().hex, rows.nbytes
        if size > self.budget:
            return key
        self._rows[key] = (model, rows.cpu())
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
