"""What the worker sends: outputs of requests in batches, queue positions, and its status when that changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from model.engine.commands import Outputs, Report
from model.engine.messages import EngineStatus, Mark, Output, QueuePosition
from model.worker.models import Models
from model.worker.requests import Live


class Outbox:
    """Belongs to the worker's thread."""

    def __init__(self, send: Callable[[Report], None], models: Models, live: Mapping[str, Live]) -> None:
        """`live` has the requests whose outputs are sent, by id."""
        self.send = send
        self._models, self._live = models, live
        self._items: list[tuple[str, Output | Mark]] = []
        self._reported: EngineStatus | None = None

    def __bool__(self) -> bool:
        return bool(self._items)

    def put(self, request_id: str, output: Output) -> None:
        """Queue an output for the next `flush`."""
        self._items.append((request_id, output))

    def put_positions(self) -> None:
        """Queue the positions in full engines' queues that have changed."""
        for model in self._models:
            scheduler = model.engine.scheduler
            is_full = scheduler.lacks_room or len(scheduler.running) >= scheduler.num_slots
            if not scheduler.waiting or not is_full:
                continue
            for position, sequence in enumerate(scheduler.waiting):
                request = self._live[sequence.request_id]
                if request.position != position and not request.started:
                    request.position = position
                    self.put(sequence.request_id, QueuePosition(position))

    def flush(self) -> None:
        """Send everything, and the status if it has changed."""
        models = self._models
        if self._items:
            items, self._items = self._items, []
            if models.marks:
                items += self._marks(dict.fromkeys(request_id for request_id, _ in items))
            self.send(Outputs(items))
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

    def _marks(self, ids: Iterable[str]) -> Iterator[tuple[str, Mark]]:
        for request_id in ids:
            live = self._live.get(request_id)
            mark = None if live is None else live.mark()
            if mark is not None:
                yield request_id, mark

    def _phase(self) -> Literal["starting", "ready", "failed"]:
        """Ready for good once all initial checkpoints have been tried and one was loaded."""
        if self._reported is not None and self._reported.phase == "ready":
            return "ready"
        if not self._models.settled:
            return "starting"
        nothing_failed = self._models.versions or not self._models.problem
        return "ready" if nothing_failed else "failed"
