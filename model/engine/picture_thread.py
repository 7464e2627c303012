"""One thread that encodes and decodes pictures beside the step loop.

A partial picture that would have to wait is refused, and so is one that comes right after another job: partials take
half of a core at most, since the step loop needs the rest of the machine more. Whole pictures and the question's
pictures always get their turn.
It knows no events: it runs functions and posts their results.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

Work = Callable[[], Any]
Post = Callable[[Any, BaseException | None], None]


class PictureThread:
    """Runs jobs one after another; `post` is called from the thread with (result, error)."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[Work, Post]] = deque()
        self._condition = threading.Condition()
        self._busy = False
        self._closed = False
        self._rests_until = 0.0  # for partial pictures: as long as the last job took
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
        self._thread.start()

    def submit(self, work: Work, post: Post) -> None:
        """Queue a job that must be done."""
        with self._condition:
            self._jobs.append((work, post))
            self._condition.notify()

    def try_submit(self, work: Work, post: Post) -> bool:
        """Queue a job only if it can begin at once and the thread has rested; returns whether it was taken."""
        with self._condition:
            if self._busy or self._jobs or time.monotonic() < self._rests_until:
                return False
            self._jobs.append((work, post))
            self._condition.notify()
            return True

    def close(self) -> None:
        """Finish the running job, drop the others, end the thread."""
        with self._condition:
            self._closed = True
            self._jobs.clear()
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._busy = False
                while not self._jobs and not self._closed:
                    self._condition.wait()
                if self._closed:
                    return
                work, post = self._jobs.popleft()
                self._busy = True
            started = time.monotonic()
            try:
                result, error = work(), None
            except Exception as raised:
                result, error = None, raised
            ended = time.monotonic()
            self._rests_until = 2 * ended - started
            post(result, error)
