"""Images of live traces: what is encoded and decoded when and by which thread; results go to the worker's inbox.

Belongs to the worker's thread except for the jobs it submits to the image thread. Knows requests and models, no tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from model.engine.commands import Reply
from model.engine.messages import ImageInput, KeptStep
from model.worker.image_thread import ImageThread
from model.worker.models import Model, error_pair
from model.worker.narrator import ImageJob, ImageResult
from model.worker.requests import Live

Codes = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The images of a request are encoded: those of its question, and those of its given steps."""

    live: Live
    question: Codes
    kept: Codes
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image of a request is decoded."""

    live: Live
    ticket: int
    result: ImageResult | None
    error: BaseException | None


class Drawings:
    """Posts `Encoded`, `Decoded` and, for `view`, `Reply`."""

    def __init__(self, post: Callable[[object], None]) -> None:
        self._post = post
        self._thread = ImageThread()
        self.help_out = self._thread.help_out
        self.wait_for_images = self._thread.wait_for_images
        self.close = self._thread.close

    def see(self, live: Live, model: Model) -> None:
        """Encode the images of a request."""
        question, kept = live.request.images, images_to_encode(live)

        def done(result: tuple[Codes, Codes] | None, error: BaseException | None) -> None:
            self._post(Encoded(live, *(result or ([], [])), error))

        self._thread.submit(lambda: (model.see(question), model.see(kept)), done)

    def view(self, model: Model, codes: tuple[int, ...], ticket: int) -> None:
        """Reply with an image, decoded when nothing else is waiting."""

        def view() -> None:
            try:
                self._post(Reply(ticket, model.draw([codes])[0].png))
            except Exception as error:
                self._post(Reply(ticket, error=error_pair(error, "engine_error")))

        self._thread.when_idle(view)

    def work(self, work: Callable[[], Any], ticket: int) -> None:
        """Reply with the result of other work that needs no slot."""

        def done(value: Any, error: BaseException | None) -> None:
            pair = error_pair(error, "engine_error") if isinstance(error, Exception) else None
            self._post(Reply(ticket, value, pair))

        self._thread.submit(work, done)

    def draw(self, live: Live, jobs: list[ImageJob]) -> None:
        """Decode images; a partial image that would have to wait is skipped."""
        for job in jobs:
            assert live.model is not None
            post = partial(self._post_decoded, live, job.ticket)
            if job.is_final:
                self._thread.submit_whole(_Draw(live.model), job, post)
            elif not self._thread.try_submit(partial(live.model.draw_part, job), post):
                assert live.narrator is not None
                live.narrator.image_skipped(job.ticket)

    def _post_decoded(self, live: Live, ticket: int, result: Any, error: BaseException | None) -> None:
        self._post(Decoded(live, ticket, result, error))


def kept_steps(live: Live) -> tuple[KeptStep, ...]:
    """The given steps of a request; without their tokens and codes if those belong to another codec."""
    assert live.model is not None
    prefix = live.request.prefix
    if prefix.codec in ("", live.model.codec):
        return prefix.steps
    return tuple(KeptStep(step.text, image=step.image) for step in prefix.steps)


def is_to_encode(step: KeptStep) -> bool:
    """Whether a given step has an image that is not codes yet."""
    return step.tokens is None and step.codes is None and step.image is not None


def images_to_encode(live: Live) -> tuple[ImageInput, ...]:
    """The images of the given steps that are not codes yet, in order."""
    return tuple(step.image for step in kept_steps(live) if step.image is not None and is_to_encode(step))


@dataclass(frozen=True, slots=True)
class _Draw:
    """Decodes complete images with one model; instances for the same model are equal."""

    model: Model

    def __call__(self, jobs: list[ImageJob]) -> list[ImageResult]:
        return self.model.draw([job.codes for job in jobs], [job.previous for job in jobs])
