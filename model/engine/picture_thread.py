"""One thread that encodes and decodes pictures beside the step loop.

A partial picture that would have to wait is refused, and so is one that comes right after another job: partials take
half of a core at most, since the step loop needs the rest of the machine more. Whole pictures and the question's
pictures always get their turn, and where they pile up (traces that began together finish their drawings together) the
step loop lets the thread catch up: what stands behind a picture in a stream waits for it. What nobody waits for yet
is done when there is nothing else to do.
It knows no events: it runs functions and posts their results.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

Work = Callable[[], Any]
Post = Callable[[Any, BaseException | None], None]

log = logging.getLogger("omni_r1.engine")

BEHIND_S = 0.05  # how long a job may wait before the step loop holds back,
CATCH_UP_S = 0.02  # and for how long at a time


class PictureThread:
    """Runs jobs one after another; `post` is called from the thread with (result, error)."""

    def __init__(self) -> None:
        self._jobs: deque[tuple[float, Work, Post]] = deque()  # with the time at which each came
        self._idle_jobs: deque[Work] = deque()
        self._lock = threading.Lock()
        self._come = threading.Condition(self._lock)
        self._gone = threading.Condition(self._lock)
        self._busy = False
        self._closed = False
        self._rests_until = 0.0  # for partial pictures: as long as the last job took
        self._thread = threading.Thread(target=self._run, name="pictures", daemon=True)
        self._thread.start()

    def submit(self, work: Work, post: Post) -> None:
        """Queue a job that must be done."""
        with self._lock:
            self._jobs.append((time.monotonic(), work, post))
            self._come.notify()

    def try_submit(self, work: Work, post: Post) -> bool:
        """Queue a job only if it can begin at once and the thread has rested; returns whether it was taken."""
        with self._lock:
            if self._busy or self._jobs or time.monotonic() < self._rests_until:
                return False
            self._jobs.append((time.monotonic(), work, post))
            self._come.notify()
            return True

    def when_idle(self, work: Work) -> None:
        """Do it once nothing else is to be done; what it raises is logged."""
        with self._lock:
            self._idle_jobs.append(work)
            self._come.notify()

    def let_catch_up(self) -> None:
        """Return at once while no job has waited for long; otherwise when one has been taken up, or after a moment."""
        with self._lock:
            if self._jobs and time.monotonic() - self._jobs[0][0] > BEHIND_S:
                self._gone.wait(CATCH_UP_S)

    def close(self) -> None:
        """Finish the running job, drop the others, end the thread."""
        with self._lock:
            self._closed = True
            self._jobs.clear()
            self._idle_jobs.clear()
            self._come.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._busy = False
                while not (self._jobs or self._idle_jobs or self._closed):
                    self._come.wait()
                if self._closed:
                    return
                self._busy = True
                _, work, post = self._jobs.popleft() if self._jobs else (0.0, self._idle_jobs.popleft(), _log)
                self._gone.notify()
            started = time.monotonic()
            try:
                result, error = work(), None
            except Exception as raised:
                result, error = None, raised
            ended = time.monotonic()
            self._rests_until = 2 * ended - started
            post(result, error)


def _log(_result: Any, error: BaseException | None) -> None:
    if error is not None:
        log.error("a picture could not be prepared", exc_info=error)
