"""Which checkpoints the engine holds: loaded on demand, kept by last use, within a memory budget.

Whoever runs a trace borrows its checkpoint; what nobody borrows may be unloaded for another one, the active checkpoint
excepted. Loads happen one after another, beside what runs. Lives on the event loop; knows no HTTP and no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

from app.checkpoints.folder import CheckpointInfo
from app.contract.problems import Problem, field_problem
from app.contract.words import Drain
from model.engine.messages import EngineError, Footprint, Generation

log = logging.getLogger("omni_r1.checkpoints")

MIB = 1 << 20
ENGINE_S = 1800.0  # to read or load a checkpoint from end to end: 14 GB at 8 MB/s
T = TypeVar("T")


class Lease:
    """The right to use a loaded checkpoint until `release`. As a context manager it is released when the block fails,
    and handed on otherwise."""

    def __init__(self, pool: EnginePool, name: str, version: int) -> None:
        self._pool = pool
        self._held = True
        self.name = name
        self.version = version

    def release(self) -> None:
        """Give it back; once more does nothing."""
        if self._held:
            self._held = False
            self._pool.give_back(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.release()


class EnginePool:
    """The engine's checkpoints and who uses them."""

    def __init__(self, generation: Generation, *, budget_mb: int | None = None) -> None:
        """`budget_mb` is what loaded checkpoints may take together; None: half of the device's memory."""
        self._generation = generation
        self._budget_mb = budget_mb
        self._lock = asyncio.Lock()  # one load at a time
        self._borrowed: Counter[str] = Counter()
        self._last_used: dict[str, int] = {}
        self._clock = 0
        self._all_back = asyncio.Event()
        self._all_back.set()
        self.pinned: str | None = None  # the active checkpoint
        self.busy_with: str | None = None  # one line on the load under way
        self.draining = False
        self.cancel_running: Callable[[], Awaitable[None]] = _nothing

    # ---- borrowing

    async def borrow(self, info: CheckpointInfo, version: int) -> Lease:
        """The checkpoint, loaded unless it is.

        Raises:
            Problem: ``checkpoint_invalid``, ``insufficient_memory``, ``not_ready``; nothing has changed.
        """
        self._refuse_while_draining()
        if not self._has(info, version):
            async with self._lock, self._busy():
                if not self._has(info, version):
                    need = await self._checked(info)
                    await self._make_room(info, need)
                    await self._load(info, version)
                return self._lend(info.name, version)
        return self._lend(info.name, version)

    @contextlib.asynccontextmanager
    async def swapping(self, info: CheckpointInfo, version: int, *, drain: Drain | None = None) -> AsyncIterator[None]:
        """Check the folder from end to end and load it next to what runs; the block then makes it the active one.
        Nothing is borrowed in between. `drain` lets running traces end (or ends them) where memory cannot hold both.

        Raises:
            Problem: as `borrow`. Where running traces were drained the engine may be empty then; otherwise nothing has
                changed.
        """
        async with self._lock, self._busy():
            need = await self._checked(info)
            if not self._has(info, version):
                try:
                    await self._make_room(info, need)
                except Problem:
                    if drain is None:
                        raise
                    await self._empty(info, need, drain)
                await self._load(info, version)
            yield

    async def load_first(self, info: CheckpointInfo, version: int) -> None:
        """Check and load at the start, when there is nothing that could make room; raises as `borrow`."""
        async with self._lock, self._busy():
            await self._checked(info)
            if not self._has(info, version):
                await self._load(info, version)

    async def check(self, info: CheckpointInfo, *, path: str) -> None:
        """Read the folder from end to end; raises :class:`Problem` with the field that named it."""
        if not self.is_ready:
            raise Problem("not_ready", "the server is still starting", headers={"Retry-After": "2"})
        await _asked(self._generation.check(str(info.folder)), path)

    def give_back(self, lease: Lease) -> None:
        """End of a lease."""
        self._borrowed[lease.name] -= 1
        self._touch(lease.name)
        if not self._borrowed[lease.name]:
            del self._borrowed[lease.name]
        if not self._borrowed:
            self._all_back.set()

    @property
    def is_ready(self) -> bool:
        """Whether the active checkpoint answers, or would if it were asked."""
        return self.pinned is not None and self._generation.status().phase == "ready"

    def loaded_version(self, name: str) -> int | None:
        """The version the engine has under that name."""
        return self._generation.status().loaded.get(name)

    @contextlib.asynccontextmanager
    async def without(self, name: str, *, unload: bool) -> AsyncIterator[bool]:
        """Nothing is loaded while the block runs, which is told whether the engine is without `name`; `unload` takes
        it out unless it is in use."""
        async with self._lock:
            if unload and name in self._generation.status().loaded and name not in self._borrowed:
                await self._unload(name)
            yield self.loaded_version(name) is None and name not in self._borrowed

    # ---- loading

    @contextlib.asynccontextmanager
    async def _busy(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.busy_with, self.draining = None, False

    async def _checked(self, info: CheckpointInfo) -> Footprint:
        self.busy_with = f"checkpoint {info.name} is being checked"
        return await _asked(self._generation.check(str(info.folder)))

    async def _load(self, info: CheckpointInfo, version: int) -> None:
        self.busy_with = f"checkpoint {info.name} is being loaded"
        await _asked(self._generation.load(info.name, str(info.folder), version))
        self._touch(info.name)

    async def _make_room(self, info: CheckpointInfo, need: Footprint) -> None:
        facts = await _asked(self._generation.memory())
        held, free = _held(facts), int(facts["free"])
        victims: list[str] = []
        while (lack := self._lack(facts, need, held, free)) is not None:
            victim = self._victim(*victims)
            if victim is None:
                raise self._no_room(info, need, facts, lack)
            victims.append(victim)
            held, free = held - facts["models"].get(victim, 0), free + facts["models"].get(victim, 0)
        for victim in victims:
            log.info("checkpoint %s makes room for %s", victim, info.name)
            await self._unload(victim)

    async def _empty(self, info: CheckpointInfo, need: Footprint, drain: Drain) -> None:
        """Let the running traces end and take everything out."""
        facts = await _asked(self._generation.memory())
        if need.loading > facts["free"] + _held(facts):
            raise self._no_room(info, need, facts, "even alone it would not fit")
        self.draining = True
        await self._drain(info.name, drain)
        for name in list(self._generation.status().loaded):
            await self._unload(name)

    async def _drain(self, name: str, drain: Drain) -> None:
        while self._borrowed:
            count = self._borrowed.total()
            self.busy_with = f"checkpoint {name} waits for {count} running trace{'s' * (count != 1)}"
            self._all_back.clear()
            if drain == "cancel":
                await self.cancel_running()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):  # for the count, and for who borrowed just before
                    await self._all_back.wait()

    async def _unload(self, name: str) -> None:
        await _asked(self._generation.unload(name))
        self._last_used.pop(name, None)

    # ---- figures

    def _has(self, info: CheckpointInfo, version: int) -> bool:
        return self.loaded_version(info.name) == version

    def _lend(self, name: str, version: int) -> Lease:
        self._borrowed[name] += 1
        self._touch(name)
        return Lease(self, name, version)

    def _touch(self, name: str) -> None:
        self._clock += 1
        self._last_used[name] = self._clock

    def _victim(self, *keep: str) -> str | None:
        """The one that has been unused for the longest; None when all are needed."""
        kept = {*keep, self.pinned}
        idle = [n for n in self._generation.status().loaded if n not in self._borrowed and n not in kept]
        return min(idle, key=lambda name: self._last_used.get(name, 0), default=None)

    def _budget(self, facts: dict[str, Any]) -> int:
        return self._budget_mb * MIB if self._budget_mb is not None else int(facts["total"]) // 2

    def _lack(self, facts: dict[str, Any], need: Footprint, held: int, free: int) -> str | None:
        """What stands against loading; None: nothing. One checkpoint alone may take more than the budget."""
        if held and held + need.resident > self._budget(facts):
            return "more than the budget would be taken"
        return "more than is free would be taken" if need.loading > free else None

    def _no_room(self, info: CheckpointInfo, need: Footprint, facts: dict[str, Any], lack: str) -> Problem:
        figures = {
            "needed": need.resident,
            "needed_while_loading": need.loading,
            "held": _held(facts),
            "budget": self._budget(facts),
            "free": int(facts["free"]),
        }
        shown = ", ".join(f"{name.replace('_', ' ')} {-(-size // MIB)} MiB" for name, size in figures.items())
        return Problem(
            "insufficient_memory",
            f"{info.name} does not fit beside what runs: {lack} ({shown}); wait until the running traces have ended, "
            'activate it with {"drain": "wait"} or {"drain": "cancel"}, or raise OMNI_R1_MEMORY_MB',
            members={"memory": figures},
        )

    def _refuse_while_draining(self) -> None:
        if self.draining:
            detail = f"{self.busy_with or 'another checkpoint is being loaded'}; send it again in a moment"
            raise Problem("not_ready", detail, headers={"Retry-After": "2"})


async def _asked(answer: Awaitable[T], path: str = "body.checkpoint") -> T:
    """The engine's answer, its refusals as problems; `path` is the field that named the checkpoint."""
    try:
        async with asyncio.timeout(ENGINE_S):
            return await answer
    except TimeoutError:
        detail = f"the engine has not answered for {ENGINE_S:g} s: its disk or its device hangs"
        raise Problem("storage_unavailable", detail, headers={"Retry-After": "60"}) from None
    except EngineError as error:
        if error.code in ("not_ready", "engine_died", "interrupted"):
            raise Problem("not_ready", error.detail, headers={"Retry-After": "2"}) from None
        problem = field_problem("checkpoint_invalid", path, error.detail)
        problem.members["reason"] = error.code
        raise problem from None


def _held(facts: dict[str, Any]) -> int:
    return int(sum(facts["models"].values()) + facts["retired"])


async def _nothing() -> None:
    pass
