"""One live request of the worker, and the state of a paused one. Knows no threads and no transport."""

from __future__ import annotations

import json
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from model.engine.messages import GenerationRequest, Mark, Tokens
from model.engine.phases import Legal
from model.engine.sequence import DRAWS_PER_TOKEN, PrefixRows, SamplingParams, Sequence
from model.text.prefix import GivenIds
from model.worker.narrator import Narrator

if TYPE_CHECKING:
    from torch import Tensor

    from model.worker.models import Model

_FORMAT = 4
_FORMATS = (2, 3, _FORMAT)  # 2 lacks what a branch keeps, 3 what a mark has


class ResumeError(ValueError):
    """The bytes are not the state of a paused trace."""


@dataclass(frozen=True, slots=True)
class ResumeState:
    """State of a paused or a marked trace: its tokens, and the positions of its random numbers and events."""

    version: int  # of the weights the trace started with
    key: str  # of the cached rows, if still kept
    prompt: list[int]
    tokens: list[int]
    num_draws: int
    num_parsed: int
    previous: list[int] | None  # codes of the question's last image
    params: dict[str, Any]
    kept: tuple[int, int] = (0, 0)  # given tokens and images
    logprobs: list[float] = field(default_factory=list)  # of the tokens; none in a paused trace, between two steps
    passes: tuple[int, ...] = ()  # forward passes of each image
    given: tuple[int, int] = (0, 0)  # steps, and their tokens

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
            given=narrator.given,
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

    @classmethod
    def marked(cls, marks: Seq[Mark]) -> ResumeState:
        """The state at the last of all marks of a request."""
        last = marks[-1]
        return replace(
            cls.from_bytes(marks[0].state),
            tokens=[token for mark in marks for token in mark.tokens.ids],
            logprobs=[logprob for mark in marks for logprob in mark.tokens.logprobs],
            num_draws=last.num_draws,
            num_parsed=last.num_parsed,
            passes=last.passes,
        )

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
    num_marked: int | None = None  # tokens up to the last mark

    @property
    def models(self) -> list[Model]:
        """The models that it holds."""
        return [model for model in (self.model, self.judge) if model is not None]

    def mark(self) -> Mark | None:
        """Where another worker could go on after what has been sent; None while there is no such place."""
        sequence, narrator = self.sequence, self.narrator
        place = None if narrator is None else narrator.resumable
        if sequence is None or narrator is None or place is None:
            return None
        end, num_parsed = place
        if sequence.state.finish_reason is not None:  # the last token is drawn again, and ends the trace again
            end = min(end, len(sequence.response) - 1)
        later = sum(legal != Legal.FORCED for legal in sequence.legal[end:])
        num_draws = sequence.draws.count - DRAWS_PER_TOKEN * later
        state, begin = b"", self.num_marked
        if begin is None:
            begin, whole = 0, ResumeState.of(self, sequence, narrator, "")
            state = replace(whole, tokens=[], num_draws=0, num_parsed=0).to_bytes()
        self.num_marked = end
        tokens = Tokens(tuple(sequence.response[begin:end]), tuple(narrator.logprobs[begin:end]))
        return Mark(state, tokens, num_draws, num_parsed, tuple(narrator.passes))


class KVStash:
    """LRU cache of the KV rows of paused traces, bounded by a budget."""

    def __init__(self, budget: int) -> None:
        """`budget` in bytes."""
        self.budget = budget
        self.num_bytes = 0
        self._rows: OrderedDict[str, tuple[object, Tensor]] = OrderedDict()

    def put(self, model: object, export: Callable[[], Tensor]) -> str:
        """Store rows that belong to a model's weights, in main memory; return their key.

        Without memory for a copy of them the key is empty: they will be computed again.
        """
        from model.engine.device import is_shortage  # imports torch, which servers do not need for the rest

        try:
            rows = export()
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            return ""
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
