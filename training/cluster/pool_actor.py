"""An actor of a pool: does shares of work with the weights that it is given. Imports no Ray."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Arrays = Mapping[str, Any]  # the bytes of each tensor, as an array


class Work(Protocol):
    """What an actor does."""

    def load(self, weights: Arrays) -> None:
        """Copy these weights; the others stay."""
        ...

    def __call__(self, share: Any) -> Any:
        """Do a share."""
        ...


@dataclass(frozen=True)
class Raised:
    """The exception that a share ended with, in place of its result."""

    error: Exception


class PoolActor:
    """Makes its work when it gets its first share, so that a failure to do so is a share's."""

    def __init__(self, make: bytes) -> None:
        """Take a pickled function without arguments, which makes a `Work`."""
        self._make = make
        self._made: Work | None = None
        self._version = -1

    def work(self, version: int, fixed: Arrays, changing: Arrays, share: bytes) -> bytes:
        """Do a pickled share; return its pickled result, or a pickled `Raised`.

        Args:
            version: of the weights; equal ones are loaded once.
            fixed: weights that are the same in all versions.
            changing: the others.
            share: of the work.
        """
        try:
            if self._made is None:
                made: Work = pickle.loads(self._make)()
                made.load(fixed)
                self._made = made
            if version != self._version:
                self._made.load(changing)
                self._version = version
            return pickle.dumps(self._made(pickle.loads(share)), pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            return _pickled(error)


def _pickled(error: Exception) -> bytes:
    try:
        data = pickle.dumps(Raised(error))
        pickle.loads(data)
        return data
    except Exception:  # an exception may be one of a kind that cannot travel
        return pickle.dumps(Raised(RuntimeError(f"{type(error).__name__}: {error}")))
