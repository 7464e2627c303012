"""Images of live traces: what is decoded when and by which thread; results go to the worker's inbox.

Belongs to the worker's thread except for the jobs it submits to the image thread. Knows requests and models, no tokens.
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

Job = tuple[Live, ImageJob]


class Drawings:
    """Posts ("encoded", live, codes, error) and ("image", live, ticket, result, error)."""

    def __init__(self, post: Callable[[tuple[Any, ...]], None]) -> None:
        self._post = post
        self._thread = ImageThread()
        self.help_out = self._thread.help_out
        self.wait_for_images = self._thread.wait_for_images
        self.close = self._thread.close

    def see(self, live: Live) -> None:
        """Encode the question's images."""
        model, images = live.model, live.request.images
        self._thread.submit(
            lambda: model.see(images),
            lambda codes, error: self._post(("encoded", live, codes, error)),
        )

    def show_seen(self, live: Live, is_live: Callable[[Live], bool]) -> None:
        """Decode the question's image when idle; the checkers need it with the first drawing."""

        def show() -> None:
            if live.seen is None and live.previous is not None and is_live(live):
                live.seen = live.model.draw([live.previous])[0].png

        self._thread.when_idle(show)

    def draw(self, live: Live, jobs: list[ImageJob]) -> None:
        """Decode images; a partial image that would have to wait is skipped."""
        model: Model = live.model
        for job in jobs:
            post = partial(self._post_decoded, live, job.ticket)
            if job.is_final:
                self._thread.submit_whole(_Draw(model), (live, job), post)
            elif not self._thread.try_submit(partial(model.draw_part, job), post):
                assert live.narrator is not None
                live.narrator.image_skipped(job.ticket)

    def _post_decoded(self, live: Live, ticket: int, result: Any, error: BaseException | None) -> None:
        self._post(("image", live, ticket, result, error))


@dataclass(frozen=True, slots=True)
class _Draw:
    """Decodes complete images with one model; instances for the same model are equal."""

    model: Model

    def __call__(self, jobs: list[Job]) -> list[ImageResult]:
        """Decode a batch.

        The first image of a trace also carries the question's image as the model sees it, if requested.
        """
        firsts = [live for live, job in jobs if live.request.show_seen and job.is_first]
        unseen = [(live, live.previous) for live in firsts if live.seen is None and live.previous is not None]
        drawn = self.model.draw([job.codes for _, job in jobs] + [codes for _, codes in unseen])
        for (live, _), seen in zip(unseen, drawn[len(jobs) :], strict=True):
            live.seen = seen.png
        return [
            replace(result, seen=live.seen) if live in firsts else result
            for (live, _), result in zip(jobs, drawn[: len(jobs)], strict=True)
        ]
