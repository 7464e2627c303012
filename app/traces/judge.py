"""The checkers' verdict on a finished trace."""

from __future__ import annotations

import logging

from app.common import pools
from app.storage.database import Database
from app.storage.images import ImageStore
from app.traces.live import LiveTrace
from app.traces.records import store
from app.traces.tasks import TaskWorld, Verdict

log = logging.getLogger("omni_r1.traces")


class Judge:
    """Collects what the checkers need: the answer, the drawings, the question's image as the model saw it."""

    def __init__(self, db: Database, images: ImageStore, world: TaskWorld) -> None:
        self._db = db
        self._images = images
        self._world = world

    async def verdict(self, live: LiveTrace, answer: str | None) -> Verdict | None:
        """The verdict; None if the checkers fail."""
        try:
            seen = await live.seen if live.seen is not None else None
            return await pools.work.run(self._judge, live, answer, seen)
        except Exception:
            log.exception("trace %s: the checkers failed", live.id)
            return None

    def _judge(self, live: LiveTrace, answer: str | None, seen: bytes | None) -> Verdict:
        assert live.task_id is not None
        pngs = dict(live.pngs)
        if live.resumed:  # drawn before a pause, perhaps by another process
            with self._db.read() as connection:
                folded = store.fold(store.events_of(connection, live.id))
            for step in folded["steps"]:
                if "image" in step and step["index"] not in pngs:
                    pngs[step["index"]] = self._images.read(step["image"]["image_id"])
        drawn = [pngs.get(step) for step in range(1, max(pngs, default=0) + 1)]
        return self._world.judge(live.task_id, answer, seen if drawn else None, drawn)
