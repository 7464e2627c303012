"""Steps that a branch keeps, and what is stored with the events of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from app.common import pools
from app.storage.images import ImageStore, StoredImage
from app.traces.live import LiveTrace
from app.traces.records import store, tokens
from app.traces.tasks import skill_of
from model.engine.messages import Emitted


async def kept_step(
    live: LiveTrace, emitted: Emitted, stored: StoredImage | None, images: ImageStore
) -> tuple[dict[str, Any], Callable[[Connection], None]]:
    """The data of `step.kept`, and what is stored with it; `stored` is an image that the engine encoded."""
    step = emitted.event.data["step"]
    kept = live.kept[step - 1]
    live.step_text[step] = kept.text
    data: dict[str, Any] = {"step": step, "text": kept.text, "edited": kept.edited}
    image, png = kept.image, emitted.png
    if stored is not None:
        image = stored.as_json() | {"stats": emitted.event.data.get("stats") or {}}
        data["reencoded"] = True
    elif image is not None:
        png = await pools.work.run(images.read, image["image_id"])
    if image is not None and png is not None:
        live.pngs[step] = png
        skill = kept.skill or await pools.work.run(skill_of, kept.text, live.task_id, step)
        data["image"] = image | ({"skill": skill} if skill is not None else {})
    if kept.source_image_id is not None:
        data["source_image_id"] = kept.source_image_id
    num_bytes = len(png) if png is not None else 0

    def update(connection: Connection) -> None:
        if emitted.tokens is not None:
            tokens.put(connection, live.id, step, emitted.tokens)
        if stored is not None:
            images.enter(connection, stored, num_bytes)
        if image is not None:
            store.link_image(connection, live.id, image["image_id"])
            shown = {key: image[key] for key in ("image_id", "url", "width", "height")}
            store.update(connection, live.id, last_image=shown)
        if kept.source_image_id is not None:
            store.link_image(connection, live.id, kept.source_image_id)

    return data, update


def drawn(images: ImageStore, trace_id: str, image: StoredImage, num_bytes: int) -> Callable[[Connection], None]:
    """What is stored with `image.completed`."""

    def update(connection: Connection) -> None:
        images.enter(connection, image, num_bytes)
        store.link_image(connection, trace_id, image.image_id)
        store.update(connection, trace_id, last_image=image.as_json())

    return update


def link_all(
    connection: Connection, *, images: ImageStore, trace_id: str, brought: Sequence[tuple[bytes, StoredImage]]
) -> None:
    """Store images with the trace that shows them."""
    for png, image in brought:
        images.enter(connection, image, len(png))
        store.link_image(connection, trace_id, image.image_id)
