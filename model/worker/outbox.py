"""What the worker sends: outputs of requests in batches, queue positions, and its status when that changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from model.engine.commands import Outputs, Report
from model.engine.messages import EngineStatus, Output, QueuePosition
from model.worker.models import Models
from model.worker.requests import Live


class Outbox:
    """Belongs to the worker's thread."""

    def __init__(self, send: Callable[[Report], None], models: Models) -> None:
        self.send = send
        self._models = models
        self._items: list[tuple[str, Output]] = []
        self._reported: EngineStatus | None = None

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, request_id: str, output: Output) -> None:
        """Queue an output for the next `flush`."""
        self._items.append((request_id, output))

    def put_positions(self, live: Mapping[str, Live]) -> None:
        """Queue the positions in full engines' queues that have changed."""
        for model in self._models:
            scheduler = model.engine.scheduler
            if not scheduler.waiting or len(scheduler.running) < scheduler.num_slots:
                continue
            for position, sequence in enumerate(scheduler.waiting):
                request = live[sequence.request_id]
                if request.position != position and not request.started:
                    request.position = position
                    self.put(sequence.request_id, QueuePosition(position))

    def flush(self) -> None:
        """Send everything, and the status if it has changed."""
        if self._items:
            items, self._items = self._items, []
            self.send(Outputs(items))
        models = self._models
        status = EngineStatus(
            self._phase(),
            models.problem,
            models.versions,
            sum(model.engine.num_running for model in models),
            sum(model.engine.num_waiting for model in models),
            models.reading,
        )
        if status != self._reported:
            self._reported = status
            self.send(status)

    def _phase(self) -> Literal["starting", "ready", "failed"]:
        """Ready for good once all initial checkpoints have been tried and one was loaded."""
        if self._reported is not None and self._reported.phase == "ready":
            return "ready"
        if not self._models.settled:
            return "starting"
        nothing_failed = self._models.versions or not self._models.problem
        return "ready" if nothing_failed else "failed"
