"""Grading off the event loop: a dedicated thread with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from app.contract.problems import Problem

THREADS = 1  # grading holds the GIL: more would only take turns
MAX_WAITING = 64
DEADLINE_S = 10.0  # grading takes milliseconds; this bounds the time in the queue


class Grader:
    """Grades answers for the API."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="grader")
        self._waiting = 0

    async def grade(
        self, answer: str | None, reference: str, choices: Sequence[str] | Mapping[str, str], *, similarity: bool
    ) -> dict[str, Any]:
        """The grade as JSON. Raises `Problem` ``grader_busy`` when the queue is full or too slow."""
        if self._waiting >= MAX_WAITING:
            raise _busy()
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._pool, _grade, answer, reference, choices, similarity)
            return await asyncio.wait_for(work, DEADLINE_S)
        except TimeoutError:
            raise _busy() from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Accept no more answers."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _grade(
    answer: str | None, reference: str, choices: Sequence[str] | Mapping[str, str], similarity: bool
) -> dict[str, Any]:
    from training.scoring.grading import grade

    graded = grade(answer, reference, choices, similarity=similarity)
    return {
        "accuracy": graded.score,
        "check": graded.check,
        "answer": graded.answer,
        "reference": graded.reference,
        "details": dict(graded.details),
    }


def _busy() -> Problem:
    return Problem("grader_busy", "too many answers are being graded; retry shortly", headers={"Retry-After": "1"})
