"""The pictures of live traces: what of them is decoded when, by whom, and what comes back into the worker's inbox.

Belongs to the worker's thread, but for what it hands to the picture thread. Knows requests and models, no tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from model.engine.image_thread import ImageThread
from model.engine.models import Model
from model.engine.narrator import ImageJob, ImageResult
from model.engine.requests import Live

Asked = tuple[Live, ImageJob]


class Drawings:
    """Posts ("encoded", live, codes, error) and ("image", live, ticket, result, error)."""

    def __init__(self, post: Callable[[tuple[Any, ...]], None]) -> None:
        self._post = post
        self._thread = ImageThread()
        self.lend_a_hand = self._thread.lend_a_hand
        self.give_way = self._thread.give_way
        self.close = self._thread.close

    def see(self, live: Live) -> None:
        """Encode the question's pictures."""
        model, images = live.model, live.request.images
        self._thread.submit(
            lambda: model.see(images),
            lambda codes, error: self._post(("encoded", live, codes, error)),
        )

    def show_seen(self, live: Live, is_live: Callable[[Live], bool]) -> None:
        """Decode the question's picture for the checkers, who want it with the first drawing: when there is time."""

        def show() -> None:
            if live.seen is None and live.previous is not None and is_live(live):
                live.seen = live.model.draw([live.previous])[0].png

        self._thread.when_idle(show)

    def draw(self, live: Live, jobs: list[ImageJob]) -> None:
        """Decode pictures; a partial one that would wait goes out without a picture."""
        model: Model = live.model
        for job in jobs:
            post = partial(self._drawn, live, job.ticket)
            if job.is_final:
                self._thread.submit_whole(_Draw(model), (live, job), post)
            elif not self._thread.try_submit(partial(model.draw_part, job), post):
                assert live.narrator is not None
                live.narrator.image_skipped(job.ticket)

    def _drawn(self, live: Live, ticket: int, result: Any, error: BaseException | None) -> None:
        self._post(("image", live, ticket, result, error))


@dataclass(frozen=True, slots=True)
class _Draw:
    """Whole pictures by one model; equal for one model."""

    model: Model

    def __call__(self, asked: list[Asked]) -> list[ImageResult]:
        """With a trace's first one goes what its model sees of the question's picture, where that is asked for."""
        firsts = [live for live, job in asked if live.request.show_seen and job.is_first]
        unseen = [(live, live.previous) for live in firsts if live.seen is None and live.previous is not None]
        drawn = self.model.draw([job.codes for _, job in asked] + [codes for _, codes in unseen])
        for (live, _), seen in zip(unseen, drawn[len(asked) :], strict=True):
            live.seen = seen.png
        return [
            replace(result, seen=live.seen) if live in firsts else result
            for (live, _), result in zip(asked, drawn[: len(asked)], strict=True)
        ]
