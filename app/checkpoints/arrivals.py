"""Checkpoints whose files only the object store has: fetched when they are used. Lives on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from app.checkpoints.folder import IN_STORE, CheckpointInfo
from app.common import pools
from app.contract.problems import Problem
from app.storage.mirror import Mirror


class Arrivals:
    """The running fetches of one server, one for each checkpoint."""

    def __init__(self, mirror: Mirror, find: Callable[[str], CheckpointInfo | None]) -> None:
        """`find` blocks and returns a checkpoint by its name."""
        self._mirror = mirror
        self._find = find
        self.wait_s = 20.0  # that long a request waits; the fetch goes on
        self._running: dict[str, asyncio.Task[None]] = {}

    async def bring(self, name: str | None, *, patient: bool = False) -> None:
        """Fetch the checkpoint if only the object store has it; `patient` waits as long as that takes.

        Raises :class:`Problem`: ``not_ready`` if that takes longer than a request should, ``storage_unavailable``.
        """
        if name is None or self._mirror.url is None:
            return
        info = await pools.intake.run(self._find, name)
        if info is None or info.reason != IN_STORE:
            return
        task = self._running.get(name)
        if task is None:
            fetch = pools.transfers.run(self._mirror.fetch_folder, info.folder)
            task = self._running[name] = asyncio.create_task(fetch, name=f"fetch {name}")
            task.add_done_callback(lambda _: self._running.pop(name, None))
        await asyncio.wait([task], timeout=None if patient else self.wait_s)
        if not task.done():
            detail = f"checkpoint {name} is being fetched from the object store"
            raise Problem("not_ready", detail, headers={"Retry-After": "5"})
        task.result()
