"""What crosses between `model/engine/hosted.py` and the worker, as pickled values.

A command with an answer travels in a `Call`, and its `Reply` carries the same ticket. The other commands change
something without an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.engine.messages import AlternativesQuery, EngineStatus, GenerationRequest, Mark, Output, WholeResponse
from model.quantisation import QuantKind
from model.speculation import WINDOW


@dataclass(frozen=True, slots=True)
class Configure:
    """How checkpoints are served; sent before the first load.

    Attributes:
        device: auto, cpu, cuda or mps.
        num_slots: traces of a checkpoint at once; fewer if memory holds fewer.
        num_threads: of torch; None leaves them.
        speculation: the widest window of codes.
        dtype: of the weights: fp32, bf16 or auto (fp32 on a CPU).
        kv_mb: MiB of keys and values of each checkpoint; None: what the device has beside the weights.
        context: tokens of a trace; None: the checkpoint's own.
        quant: form of the matrices in memory; None: that of the other weights.
        marks: whether to send a `Mark` after the outputs of a request, so that another worker can go on from there.
    """

    device: str
    num_slots: int
    num_threads: int | None
    speculation: int = WINDOW
    dtype: str = "auto"
    kv_mb: int | None = None
    context: int | None = None
    quant: QuantKind | None = None
    marks: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """Load a checkpoint next to the others."""

    name: str
    folder: str
    version: int


@dataclass(frozen=True, slots=True)
class InitialLoadsSent:
    """Every initial checkpoint has been named: unknown names stay unknown from now on."""


@dataclass(frozen=True, slots=True)
class Unload:
    """Free a checkpoint once its requests have ended."""

    name: str


@dataclass(frozen=True, slots=True)
class Rename:
    """Serve a loaded checkpoint under another name, whose own one is freed once its requests have ended."""

    name: str
    to: str


@dataclass(frozen=True, slots=True)
class Check:
    """Validate a folder; the reply is its footprint."""

    folder: str


@dataclass(frozen=True, slots=True)
class Memory:
    """The reply is the engine's memory use."""


@dataclass(frozen=True, slots=True)
class Generate:
    """Run a request."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class SetMode:
    """Switch a request to step mode, or back."""

    request_id: str
    step_mode: bool


@dataclass(frozen=True, slots=True)
class Abort:
    """Abort a request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The reply is a live request's question image as the model sees it."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Alternatives:
    """The reply is a list of `Alternative`."""

    query: AlternativesQuery


@dataclass(frozen=True, slots=True)
class MeasureReliance:
    """The reply is a `Reliance`."""

    response: WholeResponse


@dataclass(frozen=True, slots=True)
class MeasureAttention:
    """The reply is a tuple of `ImageAttention`, of the tokens of a step or of the answer (None)."""

    response: WholeResponse
    step: int | None


@dataclass(frozen=True, slots=True)
class Close:
    """End the worker."""


Asked = Alternatives | MeasureReliance | MeasureAttention  # answered by forward passes outside the step loop
Replied = Load | Unload | Rename | Check | Memory | Abort | Seen | Asked


@dataclass(frozen=True, slots=True)
class Call:
    """A command that is answered by the `Reply` with its ticket."""

    ticket: int
    command: Replied


Command = Configure | InitialLoadsSent | Generate | SetMode | Close | Call | Load | Abort


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a call: a value, or code and detail of an error."""

    ticket: int
    value: Any = None
    error: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of requests, in order, each with its request's id."""

    items: list[tuple[str, Output | Mark]]


Report = Outputs | Reply | EngineStatus
