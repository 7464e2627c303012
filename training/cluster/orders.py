"""What a job's worker and its Ray driver (`training/cluster/driver.py`) exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """The actors that a driver makes.

    Attributes:
        make: a pickled function without arguments, which makes an actor's `Work`.
        count: their number.
        gpus: of each, beside one CPU.
        place_s: the driver gives up after so many seconds without any actor.
    """

    make: bytes
    count: int
    gpus: int
    place_s: float


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor, as an array of bytes, of the weights that the next `Weights` completes."""

    name: str
    data: Any


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors since the last one are complete: those that change, or for good those that do not."""

    fixed: bool


@dataclass(frozen=True, slots=True)
class Round:
    """Pickled shares of work to do with the last weights, instead of what is left of earlier rounds."""

    number: int
    shares: list[bytes]


@dataclass(frozen=True, slots=True)
class Done:
    """A share's pickled result."""

    number: int
    share: int
    result: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """An actor has ended, in one line; another one takes its place."""

    detail: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """There is no actor, since there is no room for one; None: there is one again."""

    detail: str | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The driver gives up."""

    code: str
    detail: str
