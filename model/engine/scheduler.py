"""Slot assignment: FIFO, slots 0 ... n-1 without gaps; a group never takes the last two. Knows no tensors or tokens.

Waiting sequences are admitted in order, at most `admissions_per_step` per step, so that prefills do not stall running
sequences. When a sequence ends, the last one moves into its slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from model.engine.sequence import Sequence, Status


class Scheduler:
    """`running[i]` holds slot i."""

    def __init__(self, num_slots: int, *, admissions_per_step: int = 2) -> None:
        if num_slots < 1 or admissions_per_step < 1:
            raise ValueError("num_slots and admissions_per_step must be at least 1")
        self.num_slots = num_slots
        self.admissions_per_step = admissions_per_step
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._admissions = 0
        self.lacks_room = False  # the first waiting sequence has not found room

    @property
    def is_idle(self) -> bool:
        """Whether no sequence is running or waiting."""
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Append a sequence to the queue."""
        sequence.status = Status.WAITING
        self.waiting.append(sequence)

    def add_first(self, sequences: Collection[Sequence]) -> None:
        """Put sequences that belong to a running request before all others, in order."""
        for sequence in sequences:
            sequence.status = Status.WAITING
        self.waiting = deque([*sequences, *self.waiting])

    def admit(
        self,
        fit: Callable[[list[Sequence]], bool] = lambda _: True,
        is_ready: Callable[[Sequence], bool] = lambda _: True,
    ) -> list[Sequence]:
        """Assign free slots to the first waiting sequences; return those.

        `fit` says whether those admitted in this call have room beside the running ones, `is_ready` whether the last of
        them can start; none overtakes one that has to wait.
        """
        admitted: list[Sequence] = []
        self.lacks_room = False
        while len(self.running) < self.num_slots and len(admitted) < self.admissions_per_step:
            sequence = next((s for s in self.waiting if self._may_run(s)), None)
            if sequence is None:
                break
            if not fit([*admitted, sequence]):
                self.lacks_room = True
                break
            if not is_ready(sequence):
                break
            self.waiting.remove(sequence)
            self._admissions += 1
            sequence.slot, sequence.status = len(self.running), Status.RUNNING
            sequence.admission = self._admissions
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def _may_run(self, sequence: Sequence) -> bool:
        """A group leaves two slots to others."""
        if sequence.group is None:
            return True
        return sum(s.group == sequence.group for s in self.running) < max(1, self.num_slots - 2)

    def remove(self, sequence: Sequence, status: Status) -> Sequence | None:
        """Remove a waiting or running sequence. Returns the one that moved into its slot, if any."""
        was_running = sequence.status is Status.RUNNING
        sequence.status = status
        if not was_running:
            self.waiting = deque(s for s in self.waiting if s is not sequence)
            return None
        slot, sequence.slot = sequence.slot, -1
        last = self.running.pop()
        if last is sequence:
            return None
        self.running[slot], last.slot = last, slot
        return last

    def find(self, request_id: str) -> list[Sequence]:
        """Every live sequence of a request."""
        return [s for s in (*self.running, *self.waiting) if s.request_id == request_id]
