"""One thread that encodes and decodes pictures beside the step loop.

What a stream is silent for comes first: whole pictures. Those that wait side by side are done together, a few at once,
which costs less than one after another. Where they pile up all the same (traces that began together finish their
drawings together) the step loop lends a hand: what stands behind a picture in a stream waits for it anyway.
A partial picture that would have to wait is refused, and so is one that comes soon after another job: partials take a
fifth of a core at most, since the step loop needs the rest of the machine more. What nobody waits for yet is done when
there is nothing else to do.
It knows no events: it runs functions and posts their results.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

Work = Callable[[], Any]
WorkTogether = Callable[[list[Any]], list[Any]]
Post = Callable[[Any, BaseException | None], None]
_Done = tuple[Post, Any, BaseException | None]

log = logging.getLogger("omni_r1.engine")

TOGETHER = 4  # whole pictures at once: the first waits for the last, so few
REST = 4  # times as long as the last job took, before a partial picture is taken
BEHIND_S = 0.02  # how long one may wait before the step loop lends a hand


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    """A whole picture that waits."""

    come: float
    work: WorkTogether
    item: Any
    post: Post


class ImageThread:
    """Runs jobs; `post` is called with (result, error) from the thread that ran the job."""

    def __init__(self) -> None:
        self._whole: deque[_Whole] = deque()
        self._jobs: deque[tuple[Work, Post]] = deque()
        self._idle_jobs: deque[Work] = deque()
        self._lock = threading.Lock()
        self._come = threading.Condition(self._lock)
        self._taken = threading.Condition(self._lock)
        self._busy = False
        self._closed = False
        self._rests_until = 0.0  # for partial pictures
        self._thread = threading.Thread(target=self._run, name="images", daemon=True)
        self._thread.start()

    def submit_whole(self, work: WorkTogether, item: Any, post: Post) -> None:
        """Queue a whole picture. Several that wait for an equal `work` are done by one call with a list of items."""
        with self._lock:
            self._whole.append(_Whole(time.monotonic(), work, item, post))
            self._come.notify()

    def submit(self, work: Work, post: Post) -> None:
        """Queue another job that must be done."""
        with self._lock:
            self._jobs.append((work, post))
            self._come.notify()

    def try_submit(self, work: Work, post: Post) -> bool:
        """Queue a job only if it can begin at once and the thread has rested; returns whether it was taken."""
        with self._lock:
            if self._busy or self._whole or self._jobs or time.monotonic() < self._rests_until:
                return False
            self._jobs.append((work, post))
            self._come.notify()
            return True

    def when_idle(self, work: Work) -> None:
        """Do it once nothing else is to be done; what it raises is logged."""
        with self._lock:
            self._idle_jobs.append(work)
            self._come.notify()

    def lend_a_hand(self) -> None:
        """Return at once while no whole picture has waited for long; otherwise do the first few that wait, here."""
        with self._lock:
            behind = bool(self._whole) and time.monotonic() - self._whole[0].come > BEHIND_S
            jobs = self._next_whole() if behind else []
        for post, result, error in _done_together(jobs):
            post(result, error)

    def give_way(self, most_s: float) -> None:
        """For work that nobody sees: return once no whole picture waits, or after that long."""
        with self._lock:
            self._taken.wait_for(lambda: not self._whole, most_s)

    def close(self) -> None:
        """Finish the running job, drop the others, end the thread."""
        with self._lock:
            self._closed = True
            self._whole.clear()
            self._jobs.clear()
            self._idle_jobs.clear()
            self._come.notify()
            self._taken.notify_all()
        self._thread.join()

    def _next_whole(self) -> list[_Whole]:
        """Take the oldest whole picture out of the queue, and the next few that can be done with it."""
        first = self._whole[0]
        jobs = [job for job in self._whole if job.work == first.work][:TOGETHER]
        for job in jobs:
            self._whole.remove(job)
        if not self._whole:
            self._taken.notify_all()
        return jobs

    def _next(self) -> Callable[[], list[_Done]]:
        """What to do next; there is something."""
        if self._whole:
            return partial(_done_together, self._next_whole())
        if self._jobs:
            return partial(_done, *self._jobs.popleft())
        return partial(_done, self._idle_jobs.popleft(), _log)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._busy = False
                while not (self._whole or self._jobs or self._idle_jobs or self._closed):
                    self._come.wait()
                if self._closed:
                    return
                self._busy = True
                do = self._next()
            started = time.monotonic()
            done = do()
            ended = time.monotonic()
            self._rests_until = ended + REST * (ended - started)
            for post, result, error in done:
                post(result, error)


def _done(work: Work, post: Post) -> list[_Done]:
    try:
        return [(post, work(), None)]
    except Exception as error:
        return [(post, None, error)]


def _done_together(jobs: list[_Whole]) -> list[_Done]:
    """Do them in one call; when that fails each alone, so that an error is told to its own job and no other."""
    if len(jobs) > 1:
        with contextlib.suppress(Exception):
            results = jobs[0].work([job.item for job in jobs])
            return [(job.post, result, None) for job, result in zip(jobs, results, strict=True)]
    return [done for job in jobs for done in _done(partial(_alone, job), job.post)]


def _alone(job: _Whole) -> Any:
    return job.work([job.item])[0]


def _log(_result: Any, error: BaseException | None) -> None:
    if error is not None:
        log.error("a picture could not be prepared", exc_info=error)
