"""Activates a checkpoint while the server keeps serving.

The folder is validated and the weights are loaded next to the active ones before new traces switch over; running and
paused traces keep theirs. A failure changes nothing. One activation at a time. Knows no HTTP.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass

from app.checkpoints.folder import CheckpointInfo
from app.checkpoints.registry import CheckpointRegistry
from app.common import pools
from app.contract.problems import Problem
from app.contract.words import Drain

log = logging.getLogger("omni_r1.checkpoints")


@dataclass(frozen=True)
class ActivationResult:
    """The active checkpoint and its predecessor (None: there was none)."""

    name: str
    weight_version: int
    previous: str | None


class Activation:
    """Activations of one registry, one at a time."""

    def __init__(self, registry: CheckpointRegistry) -> None:
        self._registry = registry
        self._busy_with: str | None = None

    async def activate(self, name: str, drain: Drain | None = None) -> ActivationResult:
        """Switch new traces to `name`; returns when it is active.

        Raises:
            Problem: ``checkpoint_not_found``, ``activation_in_progress``, ``checkpoint_invalid``,
                ``insufficient_memory`` or ``not_ready``; the previous checkpoint stays active.
        """
        if self._busy_with is not None:
            raise Problem(
                "activation_in_progress",
                f"{self._busy_with} is being activated; retry when it has finished",
                headers={"Retry-After": "2"},
            )
        if not self._registry.pool.is_ready:
            raise Problem("not_ready", "the server is still starting", headers={"Retry-After": "2"})
        self._busy_with = name
        began = time.monotonic()
        try:
            result = await self._activate(name, drain)
        except Problem as problem:
            log.warning("checkpoint %s was not activated: %s", name, problem.detail)
            raise
        finally:
            self._busy_with = None
        log.info(
            "checkpoint %s (version %d) is active after %.1f s, replacing %s",
            name,
            result.weight_version,
            time.monotonic() - began,
            result.previous,
        )
        return result

    async def _activate(self, name: str, drain: Drain | None) -> ActivationResult:
        registry, pool = self._registry, self._registry.pool
        await registry.arrivals.bring(name)
        info = await pools.intake.run(self._find, name)
        version = await pools.writes.run(registry.version_of, info)
        previous = registry.active
        before = await pools.intake.run(registry.find, previous) if previous else None

        try:
            async with pool.swapping(info, version, drain=drain):
                await pools.writes.run(registry.remember, name)
                pool.pinned = name
                registry.note = None
        except BaseException:
            await self._restore(before)
            raise
        return ActivationResult(name, version, previous)

    async def _restore(self, info: CheckpointInfo | None) -> None:
        """Reload the previous checkpoint when memory was emptied for the one that failed."""
        if info is not None and self._registry.pool.loaded_version(info.name) is None:
            with contextlib.suppress(Problem):  # the next trace loads it
                (await self._registry.lend_this(info)).release()

    def _find(self, name: str) -> CheckpointInfo:
        info = self._registry.find(name)
        if info is None:
            raise Problem("checkpoint_not_found", "no checkpoint has this name; GET /v1/checkpoints lists them")
        if info.problem is not None:
            raise Problem("checkpoint_invalid", info.problem, members={"reason": info.reason})
        return info
