"""One thread that encodes and decodes images in parallel with the step loop.

Complete images have priority, since their streams are blocked. Waiting ones are decoded in small batches, which is
cheaper than one by one. When they still pile up (traces that started together finish their images together), the step
loop helps: everything after an image in a stream waits for it anyway. A partial image is skipped if it would have to
wait or comes soon after another job: partials take at most a fifth of a core, since the step loop needs the rest. Idle
jobs run when nothing else is queued. The thread knows no events: it runs functions and posts their results.
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

from model.engine.device import beside_steps

Work = Callable[[], Any]
WorkTogether = Callable[[list[Any]], list[Any]]
Post = Callable[[Any, BaseException | None], None]
_Done = tuple[Post, Any, BaseException | None]

log = logging.getLogger("omni_r1.engine")

TOGETHER = 4  # complete images per batch; small, since the first waits for the last
REST = 4  # rest before a partial image, in multiples of the last job's duration
OVERDUE_S = 0.02  # maximum wait before the step loop helps


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    """A queued complete image."""

    queued_at: float
    work: WorkTogether
    item: Any
    post: Post


class ImageThread:
    """Runs jobs; calls `post` with (result, error) from the thread that ran the job."""

    def __init__(self) -> None:
        self._whole: deque[_Whole] = deque()
        self._jobs: deque[tuple[Work, Post]] = deque()
        self._idle_jobs: deque[Work] = deque()
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._taken = threading.Condition(self._lock)
        self._busy = False
        self._closed = False
        self._resting_until = 0.0  # partial images are skipped until then
        self._thread = threading.Thread(target=self._run, name="images", daemon=True)
        self._thread.start()

    def submit_whole(self, work: WorkTogether, item: Any, post: Post) -> None:
        """Queue a complete image. Queued images with equal `work` are passed to one call as a list of items."""
        with self._lock:
            self._whole.append(_Whole(time.monotonic(), work, item, post))
            self._arrived.notify()

    def submit(self, work: Work, post: Post) -> None:
        """Queue any other job."""
        with self._lock:
            self._jobs.append((work, post))
            self._arrived.notify()

    def try_submit(self, work: Work, post: Post) -> bool:
        """Queue a job only if it can start at once and the thread has rested; return whether it was taken."""
        with self._lock:
            if self._busy or self._whole or self._jobs or time.monotonic() < self._resting_until:
                return False
            self._jobs.append((work, post))
            self._arrived.notify()
            return True

    def when_idle(self, work: Work) -> None:
        """Run a job once the queues are empty; its exceptions are logged."""
        with self._lock:
            self._idle_jobs.append(work)
            self._arrived.notify()

    def help_out(self) -> None:
        """Decode the first few images on the calling thread if the oldest is overdue."""
        with self._lock:
            overdue = bool(self._whole) and time.monotonic() - self._whole[0].queued_at > OVERDUE_S
            jobs = self._next_whole() if overdue else []
        for post, result, error in _run_together(jobs):
            post(result, error)

    def wait_for_images(self, most_s: float) -> None:
        """For background work: wait until no complete image is queued, at most `most_s`."""
        with self._lock:
            self._taken.wait_for(lambda: not self._whole, most_s)

    def close(self) -> None:
        """Finish the running job, drop the others, stop the thread."""
        with self._lock:
            self._closed = True
            self._whole.clear()
            self._jobs.clear()
            self._idle_jobs.clear()
            self._arrived.notify()
            self._taken.notify_all()
        self._thread.join()

    def _next_whole(self) -> list[_Whole]:
        """Dequeue the oldest complete image and the next few that fit into its batch."""
        first = self._whole[0]
        jobs = [job for job in self._whole if job.work == first.work][:TOGETHER]
        for job in jobs:
            self._whole.remove(job)
        if not self._whole:
            self._taken.notify_all()
        return jobs

    def _next(self) -> Callable[[], list[_Done]]:
        """Return the next job; the queues must not all be empty."""
        if self._whole:
            return partial(_run_together, self._next_whole())
        if self._jobs:
            return partial(_done, *self._jobs.popleft())
        return partial(_done, self._idle_jobs.popleft(), _log)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._busy = False
                while not (self._whole or self._jobs or self._idle_jobs or self._closed):
                    self._arrived.wait()
                if self._closed:
                    return
                self._busy = True
                do = self._next()
            started = time.monotonic()
            with beside_steps():
                done = do()
            ended = time.monotonic()
            self._resting_until = ended + REST * (ended - started)
            for post, result, error in done:
                post(result, error)


def _done(work: Work, post: Post) -> list[_Done]:
    try:
        return [(post, work(), None)]
    except Exception as error:
        return [(post, None, error)]


def _run_together(jobs: list[_Whole]) -> list[_Done]:
    """Run jobs in one call; if that fails, run each alone, so that an error only reaches its own job."""
    if len(jobs) > 1:
        with contextlib.suppress(Exception):
            results = jobs[0].work([job.item for job in jobs])
            return [(job.post, result, None) for job, result in zip(jobs, results, strict=True)]
    return [done for job in jobs for done in _done(partial(_alone, job), job.post)]


def _alone(job: _Whole) -> Any:
    return job.work([job.item])[0]


def _log(_result: Any, error: BaseException | None) -> None:
    if error is not None:
        log.error("an image could not be prepared", exc_info=error)
