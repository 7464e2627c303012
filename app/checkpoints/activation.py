"""Putting a checkpoint to work while the server answers: beside, not inside.

The folder is read from end to end, the weights get an engine of their own, and only then do new traces go there; those
that run or pause keep theirs. A failure on the way changes nothing. One activation at a time. Knows no HTTP.
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
    """What answers now, and what answered before (None: nothing did)."""

    name: str
    weight_version: int
    previous: str | None


class Activation:
    """Activations of one registry, one after another."""

    def __init__(self, registry: CheckpointRegistry) -> None:
        self._registry = registry
        self._busy_with: str | None = None

    async def activate(self, name: str, drain: Drain | None = None) -> ActivationResult:
        """Let new traces run on `name`; returns when they do.

        Raises:
            Problem: ``checkpoint_not_found``, ``activation_in_progress``, ``checkpoint_invalid``,
                ``insufficient_memory`` or ``not_ready``; what answered before still does.
        """
        if self._busy_with is not None:
            raise Problem(
                "activation_in_progress",
                f"{self._busy_with} is being activated; send it again when that has ended",
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
        log.info("checkpoint %s (version %d) answers after %.1f s instead of %s", name, result.weight_version,
                 time.monotonic() - began, result.previous)  # fmt: skip
        return result

    async def _activate(self, name: str, drain: Drain | None) -> ActivationResult:
        registry, pool = self._registry, self._registry.pool
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
        """Read back what answered before, where memory had to be emptied for the one that failed."""
        if info is not None and self._registry.pool.loaded_version(info.name) is None:
            with contextlib.suppress(Problem):  # the next trace has it loaded
                (await self._registry.lend_this(info)).release()

    def _find(self, name: str) -> CheckpointInfo:
        info = self._registry.find(name)
        if info is None:
            raise Problem("checkpoint_not_found", "no checkpoint has this name; GET /v1/checkpoints lists them")
        if info.problem is not None:
            raise Problem("checkpoint_invalid", info.problem, members={"reason": info.reason})
        return info
