"""One request of `Replicas`, from its first replica to its last."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from model.engine.hosted import EngineClient
from model.engine.messages import (
    Emitted,
    Failed,
    GenerationRequest,
    Mark,
    Output,
    Prefix,
    QueuePosition,
    Started,
)
from model.worker.requests import ResumeState

MOST_MOVES = 2  # a request may itself be what kills its replicas


class Run:
    """A request with what has been seen of it."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.engine: EngineClient | None = None  # None: it waits for a replica
        self.placed = asyncio.Event()  # it has a replica, or has ended
        self.aborted = False
        self.step_mode = request.mode == "step"
        self.kind = ""  # of its first replica
        self._moves = 0
        self._marks: list[Mark] = []
        self._started: Started | None = None
        self._emitted = False

    def begin(self, engine: EngineClient) -> GenerationRequest:
        """Go to a replica; returns what it is to run: what the last one's marks leave to do."""
        self.engine, self.kind = engine, self.kind or engine.host.kind
        self.placed.set()
        request = replace(self.request, mode="step" if self.step_mode else "auto")
        if not self._marks:
            return request
        state = ResumeState.marked(self._marks)
        return replace(request, resume=state.to_bytes(), prefix=Prefix())

    def leave(self) -> None:
        """The replica has died."""
        self.engine, self._moves = None, self._moves + 1
        self.placed.clear()

    def note(self, mark: Mark) -> None:
        """Take a mark."""
        if mark.state:
            self._marks = []
        self._marks.append(mark)

    def takes(self, output: Output) -> bool:
        """Note an output; returns whether it is new to the reader, who does not see a move."""
        match output:
            case QueuePosition():
                return self._started is None
            case Started():
                is_new, self._started = self._started is None, output
                return is_new
            case Emitted():
                self._emitted = True
        return True

    @property
    def version(self) -> int | None:
        """The weights that it started with; None before that."""
        return None if self._started is None else self._started.weight_version

    @property
    def can_move(self) -> bool:
        """Whether another replica could go on without repeating or changing anything."""
        return self._moves <= MOST_MOVES and not self.aborted and bool(self._marks or not self._emitted)

    def is_lost(self, output: Output) -> bool:
        """Whether a replica cannot go on with a request that has moved there."""
        codes = ("weights_gone", "unknown_checkpoint", "bad_resume", "not_ready", "no_verifier")
        return self._moves > 0 and isinstance(output, Failed) and output.code in codes
