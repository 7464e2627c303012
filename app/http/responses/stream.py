"""The stream of a response, made from the stream of its trace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from app.contract.frames import encode, events_of, frame
from app.contract.words import TERMINAL_EVENTS
from app.http.responses.translation import Ended, Picture, Translation, filled, pictures

# The base64 of an image; None if a stored image is gone, "" if a preview is.
Load = Callable[[Picture], Awaitable[str | None]]


async def with_images(value: Any, load: Load) -> Any:
    """The event or response with its images in base64."""
    images = {picture: await load(picture) for picture in pictures(value)}
    return filled(value, images) if images else value


async def frames(
    log: AsyncIterator[bytes],
    translation: Translation,
    *,
    after: int,
    load: Load,
    ended: Callable[[], Awaitable[Ended | None]],
) -> AsyncIterator[bytes]:
    """The events with a `sequence_number` above `after` as stream frames; keep-alive comments pass through.

    `log` are the frames of the trace from its first event; `ended` is called for the terminal one, and gives None if
    the trace was deleted meanwhile.
    """
    async with aclosing(log):  # type: ignore[type-var]
        async for chunk in log:
            if chunk.startswith(b":"):
                yield chunk
                continue
            for type_, data in events_of(chunk):
                end = None
                if type_ in TERMINAL_EVENTS and (end := await ended()) is None:
                    return
                for event in translation.take(type_, data, end):
                    if event["sequence_number"] > after:
                        whole = await with_images(event, load)
                        yield frame(whole["sequence_number"], whole["type"], encode(whole))
