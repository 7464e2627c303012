"""The checkpoints in the engine: loaded on demand, evicted in LRU order, within a memory budget.

Each running trace borrows its checkpoint. Only checkpoints that are neither borrowed nor active can be evicted. Loads
happen one at a time, in parallel with running traces. Lives on the event loop; knows no HTTP and no torch.
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
from model.quantisation import QuantKind

log = logging.getLogger("omni_r1.checkpoints")

MIB = 1 << 20
ENGINE_S = 1800.0  # to read or load a whole checkpoint: 14 GB at 8 MB/s
T = TypeVar("T")


class Lease:
    """The right to use a loaded checkpoint until `release`.

    As a context manager, it is released only if the block raises.
    """

    def __init__(self, pool: EnginePool, name: str, version: int) -> None:
        self._pool = pool
        self._held = True
        self._more: list[Lease] = []
        self.name = name
        self.version = version

    def release(self) -> None:
        """Return it; further calls do nothing."""
        if self._held:
            self._held = False
            self._pool.give_back(self)
            for lease in self._more:
                lease.release()

    def include(self, other: Lease) -> None:
        """Hold another lease until this one is released."""
        self._more.append(other)

    def again(self) -> Lease:
        """A second lease on the same weights."""
        lease = self._pool.lend_again(self)
        for other in self._more:
            lease.include(other.again())
        return lease

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.release()


class EnginePool:
    """The engine's checkpoints and their leases."""

    def __init__(self, generation: Generation, *, budget_mb: int | None = None, quant: QuantKind | None = None) -> None:
        """`budget_mb` limits the total of loaded checkpoints.

        None: idle ones are evicted when they take more than half of the device together, and whatever fits is loaded.

        `quant` is the form in which the engine loads them.
        """
        self._generation = generation
        self.quant = quant
        self._budget_mb = budget_mb
        self._lock = asyncio.Lock()  # one load at a time
        self._borrowed: Counter[str] = Counter()
        self._last_used: dict[str, int] = {}
        self._contexts: dict[str, int] = {}  # tokens of a trace, by checkpoint
        self._clock = 0
        self._all_back = asyncio.Event()
        self._all_back.set()
        self.pinned: str | None = None  # the active checkpoint
        self.busy_with: str | None = None  # one line on the running load
        self.draining = False
        self.cancel_running: Callable[[], Awaitable[None]] = _nothing

    # ---- leases

    async def borrow(self, info: CheckpointInfo, version: int) -> Lease:
        """Lease the checkpoint, loading it if necessary.

        Raises:
            Problem: ``checkpoint_invalid``, ``insufficient_memory``, ``not_ready``; state is unchanged.
        """
        self._refuse_while_draining()
        if not self._has(info, version):
            async with self._lock, self._busy():
                if not self._has(info, version):
                    need = await self._checked(info)
                    await self._evict_for(info, need)
                    await self._load(info, version, need)
                return self._lend(info.name, version)
        return self._lend(info.name, version)

    @contextlib.asynccontextmanager
    async def swapping(self, info: CheckpointInfo, version: int, *, drain: Drain | None = None) -> AsyncIterator[None]:
        """Validate the folder and load it next to the running checkpoints; the block then makes it the active one.

        Nothing is borrowed meanwhile. `drain` waits for (or cancels) running traces if memory cannot hold both.

        Raises:
            Problem: as `borrow`. After draining the engine may be empty; otherwise state is unchanged.
        """
        async with self._lock, self._busy():
            need = await self._checked(info)
            if not self._has(info, version):
                try:
                    await self._evict_for(info, need)
                except Problem:
                    if drain is None:
                        raise
                    await self._empty(info, need, drain)
                await self._load(info, version, need)
            yield

    async def load_first(self, info: CheckpointInfo, version: int) -> None:
        """Validate and load at start-up, when nothing can be evicted; raises as `borrow`."""
        async with self._lock, self._busy():
            need = await self._checked(info)
            if not self._has(info, version):
                await self._evict_for(info, need)
                await self._load(info, version, need)

    async def check(self, info: CheckpointInfo, *, path: str) -> None:
        """Read the whole folder; raises :class:`Problem` for the field `path`."""
        if not self.is_ready:
            raise Problem("not_ready", "the server is still starting", headers={"Retry-After": "2"})
        await _answer(self._generation.check(str(info.folder)), path)

    def give_back(self, lease: Lease) -> None:
        """End a lease."""
        self._borrowed[lease.name] -= 1
        self._touch(lease.name)
        if not self._borrowed[lease.name]:
            del self._borrowed[lease.name]
        if not self._borrowed:
            self._all_back.set()

    @property
    def is_ready(self) -> bool:
        """Whether the active checkpoint can serve requests."""
        return self.pinned is not None and self._generation.status().phase == "ready"

    def loaded_version(self, name: str) -> int | None:
        """The loaded version of `name`."""
        return self._generation.status().loaded.get(name)

    def served_context(self, name: str) -> int | None:
        """Tokens of a trace of `name`, if it is loaded."""
        return self._contexts.get(name) if self.loaded_version(name) is not None else None

    @contextlib.asynccontextmanager
    async def without(self, name: str, *, unload: bool) -> AsyncIterator[bool]:
        """Block all loads while the block runs; yields whether `name` is not loaded. `unload` unloads it if idle."""
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
        self.busy_with = f"checkpoint {info.name} is being validated"
        return await _answer(self._generation.check(str(info.folder)))

    async def _load(self, info: CheckpointInfo, version: int, need: Footprint) -> None:
        self.busy_with = f"checkpoint {info.name} is being loaded"
        await _answer(self._generation.load(info.name, str(info.folder), version))
        if need.context_len is None:
            self._contexts.pop(info.name, None)
        else:
            self._contexts[info.name] = need.context_len
        self._touch(info.name)

    async def _evict_for(self, info: CheckpointInfo, need: Footprint) -> None:
        facts = await _answer(self._generation.memory())
        held, free = _held(facts), int(facts["free"])
        victims: list[str] = []
        while (lack := self._lack(facts, need, held, free)) is not None:
            victim = self._victim(*victims)
            if victim is None:
                if self._budget_mb is None and need.loading <= free:
                    break
                raise self._insufficient_memory(info, need, facts, lack)
            victims.append(victim)
            held, free = held - facts["models"].get(victim, 0), free + facts["models"].get(victim, 0)
        for victim in victims:
            log.info("checkpoint %s is evicted for %s", victim, info.name)
            await self._unload(victim)

    async def _empty(self, info: CheckpointInfo, need: Footprint, drain: Drain) -> None:
        """Drain the running traces and unload everything."""
        facts = await _answer(self._generation.memory())
        if need.loading > facts["free"] + _held(facts):
            raise self._insufficient_memory(info, need, facts, "it does not fit even alone")
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
                async with asyncio.timeout(0.5):  # refreshes the count and catches new leases
                    await self._all_back.wait()

    async def _unload(self, name: str) -> None:
        await _answer(self._generation.unload(name))
        self._last_used.pop(name, None)

    # ---- figures

    def _has(self, info: CheckpointInfo, version: int) -> bool:
        return self.loaded_version(info.name) == version

    def _lend(self, name: str, version: int) -> Lease:
        self._borrowed[name] += 1
        self._touch(name)
        return Lease(self, name, version)

    def lend_again(self, lease: Lease) -> Lease:
        """A second lease on the weights of a held one."""
        return self._lend(lease.name, lease.version)

    def _touch(self, name: str) -> None:
        self._clock += 1
        self._last_used[name] = self._clock

    def _victim(self, *keep: str) -> str | None:
        """The LRU checkpoint, or None when all are in use."""
        kept = {*keep, self.pinned}
        idle = [n for n in self._generation.status().loaded if n not in self._borrowed and n not in kept]
        return min(idle, key=lambda name: self._last_used.get(name, 0), default=None)

    def _budget(self, facts: dict[str, Any]) -> int:
        return self._budget_mb * MIB if self._budget_mb is not None else int(facts["total"]) // 2

    def _lack(self, facts: dict[str, Any], need: Footprint, held: int, free: int) -> str | None:
        """Why loading is impossible, or None. A single checkpoint may exceed the budget."""
        if held and held + need.resident > self._budget(facts):
            return "it would exceed the memory budget"
        return "it would exceed the free memory" if need.loading > free else None

    def _insufficient_memory(self, info: CheckpointInfo, need: Footprint, facts: dict[str, Any], lack: str) -> Problem:
        figures = {
            "needed": need.resident,
            "needed_while_loading": need.loading,
            "held": _held(facts),
            "budget": self._budget(facts),
            "free": int(facts["free"]),
        }
        shown = ", ".join(f"{name.replace('_', ' ')} {-(-size // MIB)} MiB" for name, size in figures.items())
        setting = "set OMNI_R1_KV_MB (docs/gpu.md)" if self._budget_mb is None else "raise OMNI_R1_MEMORY_MB"
        remedy = (
            "next to the running checkpoints; wait for the running traces, "
            f'activate it with {{"drain": "wait"}} or {{"drain": "cancel"}}, or {setting}'
        )
        if not _held(facts):
            remedy = "into memory; free some, or set OMNI_R1_DTYPE, OMNI_R1_CONTEXT or OMNI_R1_KV_MB (docs/gpu.md)"
        where, _, what = remedy.partition("; ")
        return Problem(
            "insufficient_memory",
            f"{info.name} does not fit {where}: {lack} ({shown}); {what}",
            members={"memory": figures},
        )

    def _refuse_while_draining(self) -> None:
        if self.draining:
            detail = f"{self.busy_with or 'another checkpoint is being loaded'}; retry in a moment"
            raise Problem("not_ready", detail, headers={"Retry-After": "2"})


async def _answer(answer: Awaitable[T], path: str = "body.checkpoint") -> T:
    """The engine's answer, with its errors as problems; `path` is the field that named the checkpoint."""
    try:
        async with asyncio.timeout(ENGINE_S):
            return await answer
    except TimeoutError:
        detail = f"the engine has not answered for {ENGINE_S:g} s: its disk or device may hang"
        raise Problem("storage_unavailable", detail, headers={"Retry-After": "60"}) from None
    except EngineError as error:
        if error.code in ("not_ready", "engine_died", "interrupted"):
            raise Problem("not_ready", error.detail, headers={"Retry-After": "2"}) from None
        if error.code == "insufficient_memory":
            raise Problem("insufficient_memory", error.detail.removeprefix(f"{error.code}: ")) from None
        problem = field_problem("checkpoint_invalid", path, error.detail)
        problem.members["reason"] = error.code
        raise problem from None


def _held(facts: dict[str, Any]) -> int:
    return int(sum(facts["models"].values()) + facts["retired"])


async def _nothing() -> None:
    pass
