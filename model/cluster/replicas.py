"""Several engines as one `Generation`: requests go where there is room, checkpoints to all, deaths stay local.

A request goes to the replica with the fewest ones. The samples and branches of a group share a prefill and a paused
trace has its rows somewhere, so they prefer that replica. A checkpoint is loaded by one replica after the other under a
temporary name; once all have it, all take it over, so a failure changes nothing anywhere. A replica that was away gets
what it missed before it gets requests for it.

When a replica dies, its requests fail with `engine_died`. With `retry`, they go on elsewhere after the last output,
which takes replicas that send marks. Knows no Ray: a replica is any `EngineClient`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, cast

from model.cluster.run import Run
from model.engine.hosted import EngineClient
from model.engine.messages import (
    Alternative,
    AlternativesQuery,
    Cancelled,
    EngineError,
    EngineStatus,
    Failed,
    Footprint,
    GenerationRequest,
    ImageAttention,
    Mark,
    Output,
    Paused,
    Reliance,
    WholeResponse,
)

log = logging.getLogger("omni_r1.engine")

SLACK = 4  # more requests than the emptiest replica has, for the sake of a shared prefix
PLACE_S = 60.0  # for a request to find another replica
PAUSED = 10_000  # paused requests whose replica is remembered
T = TypeVar("T")


class Replicas:
    """A `Generation` of several engines with the same checkpoints. Belongs to one event loop."""

    def __init__(self, engines: Sequence[EngineClient], *, retry: bool = False) -> None:
        """`retry`: requests of a dead replica go on elsewhere."""
        self._engines, self._retry = list(engines), retry
        self._wanted: dict[str, tuple[str, int]] = {}  # folder and version of each checkpoint, for all replicas
        self._runs: dict[str, Run] = {}
        self._paused: OrderedDict[str, EngineClient] = OrderedDict()
        self._loading = asyncio.Lock()
        self._whole: set[EngineClient] = set()  # replicas that have had what they missed
        self._changed = asyncio.Event()
        self._care: asyncio.Task[None] | None = None
        self._stopping = False
        for engine in self._engines:
            engine.on_status, engine.on_mark = partial(self._note_status, engine), partial(self._marked, engine)

    # ---- start, stop, status

    async def start(self) -> None:
        """Start all replicas; return before they are ready."""
        await asyncio.gather(*(engine.start() for engine in self._engines))
        self._care = self._care or asyncio.create_task(self._take_care(), name="replicas")

    async def close(self) -> None:
        """Stop all replicas; live requests end with Failed(code="interrupted")."""
        self._stopping = True
        if self._care is not None:
            self._care.cancel()
        await asyncio.gather(*(engine.close() for engine in self._engines))
        self._note_change()

    def status(self) -> EngineStatus:
        """All replicas as one: ready as soon as one is; `detail` says what the others lack."""
        each = [engine.status() for engine in self._engines]
        ready = [status for status in each if status.phase == "ready"]
        phase: Literal["starting", "ready", "stopping", "failed"] = "starting"
        if self._stopping:
            phase = "stopping"
        elif ready:
            phase = "ready"
        elif all(status.phase == "failed" for status in each):
            phase = "failed"
        lacking = [(n, lack) for n, engine in enumerate(self._engines, 1) if (lack := self._lack(engine))]
        detail = "; ".join(f"replica {n}: {lack}" if len(each) > 1 else lack for n, lack in lacking)
        if lacking and ready and len(each) > 1:
            detail = f"{len(each) - len(lacking)} of {len(each)} replicas are whole; {detail}"
        return EngineStatus(
            phase,
            detail,
            {
                name: version
                for name, (_, version) in self._wanted.items()
                if any(status.loaded.get(name) == version for status in ready)
            },
            sum(status.running for status in each),
            sum(status.waiting for status in each),
            next((status.reading for status in each if status.reading is not None), None),
        )

    @property
    def is_whole(self) -> bool:
        """Whether every replica is ready and has every checkpoint."""
        return not any(self._lack(engine) for engine in self._engines)

    def _lack(self, engine: EngineClient) -> str:
        """What a replica lacks, or has to say."""
        status = engine.status()
        if status.detail or status.phase != "ready":
            return status.detail or f"it is {status.phase}"
        missing = [name for name, (_, version) in self._wanted.items() if status.loaded.get(name) != version]
        return f"it has not loaded {', '.join(missing)}" if missing else ""

    async def memory(self) -> dict[str, Any]:
        """What the fullest replica holds, and each one's share of the free memory (see the protocol).

        `rss`, `weights`, `kv_cache` and `stash` are sums.
        """
        engines = self._up()
        answers = await asyncio.gather(*(engine.memory() for engine in engines), return_exceptions=True)
        sharing = Counter(engine.host.memory for engine in self._engines)
        found = [(a, sharing[e.host.memory]) for e, a in zip(engines, answers, strict=True) if isinstance(a, dict)]
        facts = [answer for answer, _ in found]
        if not facts:
            raise EngineError("engine_died", "no replica answers; a new one is starting")
        models = {name: max(f["models"].get(name, 0) for f in facts) for f in facts for name in f["models"]}
        return {
            **facts[0],
            **{name: sum(f.get(name, 0) for f in facts) for name in ("rss", "weights", "kv_cache", "stash")},
            "models": models,
            "retired": max(f["retired"] for f in facts),
            "free": min(answer["free"] // share for answer, share in found),
            "total": min(answer["total"] // share for answer, share in found),
        }

    # ---- checkpoints

    async def check(self, folder: str) -> Footprint:
        """Validate a checkpoint folder completely, on one replica; as `Generation.check`."""
        return await min(self._some(), key=self._load_of).check(folder)

    async def load(self, name: str, folder: str, weight_version: int) -> None:
        """Load a checkpoint on every replica, one after the other, then switch all to it.

        Raises:
            EngineError: a replica cannot load it; nothing has changed on any.
        """
        async with self._loading:
            staged: list[EngineClient] = []
            temporary, deaths = f"{name}, version {weight_version}", []
            engines = [engine for engine in self._some() if engine.status().loaded.get(name) != weight_version]
            try:
                for engine in engines:
                    try:
                        await engine.load(temporary, folder, weight_version)
                        staged.append(engine)
                    except EngineError as error:
                        if error.code != "engine_died":
                            raise
                        deaths.append(error)  # its next worker gets what this one missed
            except BaseException:
                for engine in staged:
                    with contextlib.suppress(EngineError):
                        await engine.unload(temporary)
                raise
            if deaths and len(deaths) == len(engines):
                raise deaths[0]
            self._wanted[name] = (folder, weight_version)
            for engine in staged:
                with contextlib.suppress(EngineError):  # it has died; the next one gets what it lacks
                    await engine.rename(temporary, name)

    async def unload(self, name: str) -> None:
        """Free a checkpoint on every replica once its requests have ended."""
        async with self._loading:
            self._wanted.pop(name, None)
            for engine in self._up():
                with contextlib.suppress(EngineError):
                    await engine.unload(name)

    async def _take_care(self) -> None:
        """Give replicas that come back what they missed, and free what a cancelled load has left."""
        while True:
            changed = self._changed
            for engine in self._engines:
                has_more = not self._loading.locked() and engine.status().loaded.keys() - self._wanted.keys()
                if engine.status().phase == "ready" and (engine not in self._whole or has_more):
                    self._whole.add(engine)
                    async with self._loading:
                        await self._complete(engine)
            await changed.wait()

    def _note_status(self, engine: EngineClient) -> None:
        if engine.status().phase != "ready":
            self._whole.discard(engine)
        self._note_change()

    def _note_change(self) -> None:
        """Wake what waits for a replica to change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _complete(self, engine: EngineClient) -> None:
        try:
            for name, (folder, version) in list(self._wanted.items()):
                if engine.status().loaded.get(name) != version:
                    await engine.load(name, folder, version)
            for name in set(engine.status().loaded) - self._wanted.keys():
                await engine.unload(name)
        except EngineError as error:
            log.error("replica %d lacks a checkpoint: %s", self._engines.index(engine) + 1, error.detail)

    # ---- requests

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        """Yield outputs in order, the last one Paused, Finished, Cancelled or Failed. Closing the iterator aborts."""
        if request.request_id in self._runs:
            raise ValueError(f"request {request.request_id} is already running")
        run = self._runs[request.request_id] = Run(request)
        death: Output = Failed("not_ready", f"no replica is ready: {self.status().detail}")
        try:
            engine = self._place(run)
            while engine is not None:
                died = False
                outputs = cast("AsyncGenerator[Output, None]", engine.generate(run.begin(engine)))
                async with contextlib.aclosing(outputs):
                    async for output in outputs:
                        if isinstance(output, Failed) and output.code == "engine_died":
                            died, death = True, output
                        elif run.takes(output):
                            yield death if run.is_lost(output) else self._ended(run, output)
                if not died:
                    return
                run.leave()
                engine = await self._place_again(run) if self._retry and run.can_move else None
            yield Cancelled() if run.aborted else death
        finally:
            del self._runs[request.request_id]
            run.placed.set()

    def _ended(self, run: Run, output: Output) -> Output:
        if isinstance(output, Paused) and run.engine is not None:
            self._paused[run.request.request_id] = run.engine
            while len(self._paused) > PAUSED:
                self._paused.popitem(last=False)
        return output

    def _place(self, run: Run) -> EngineClient | None:
        """The replica for a new request; None if all have failed."""
        request, wanted = run.request, self._wanted.get(run.request.checkpoint, ("", None))[1]
        up = self._up()
        engines = [engine for engine in up if engine.status().loaded.get(request.checkpoint) == wanted] or up
        if not engines:
            return None
        emptiest = min(engines, key=self._load_of)
        favourite = self._paused.pop(request.request_id, None) or self._with_group(request.group)
        if favourite in engines and self._load_of(favourite) - self._load_of(emptiest) <= SLACK:
            return favourite
        return emptiest

    async def _place_again(self, run: Run) -> EngineClient | None:
        """A replica that computes like the first one, with the same weights; None if there is none in time."""
        name, wanted = run.request.checkpoint, run.version
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PLACE_S):
                while not (run.aborted or self._stopping or self.status().phase == "failed"):
                    found = [
                        engine
                        for engine in self._engines
                        if engine.status().phase == "ready"
                        and engine.host.kind == run.kind
                        and engine.status().loaded.get(name) == (wanted or self._wanted.get(name, ("", None))[1])
                    ]
                    if found:
                        log.warning("request %s goes on on another replica", run.request.request_id)
                        return min(found, key=self._load_of)
                    await self._changed.wait()
        return None

    def _with_group(self, group: str | None) -> EngineClient | None:
        others = (run.engine for run in self._runs.values() if group is not None and run.request.group == group)
        return next((engine for engine in others if engine is not None), None)

    def _load_of(self, engine: EngineClient) -> int:
        return sum(run.engine is engine for run in self._runs.values())

    def _up(self) -> list[EngineClient]:
        """The replicas that are ready; if none is, those that will be."""
        by_phase = {phase: [e for e in self._engines if e.status().phase == phase] for phase in ("ready", "starting")}
        return by_phase["ready"] or by_phase["starting"]

    def _some(self) -> list[EngineClient]:
        if not (up := self._up()):
            raise EngineError("not_ready", f"no replica is ready: {self.status().detail}")
        return up

    def _marked(self, engine: EngineClient, request_id: str, mark: Mark) -> None:
        run = self._runs.get(request_id)
        if run is not None and run.engine is engine:
            run.note(mark)

    async def pause(self, request_id: str) -> None:
        """Switch to step mode: the request pauses at the end of its running step."""
        run = self._runs.get(request_id)
        if run is not None:
            run.step_mode = True
            if run.engine is not None:
                await run.engine.pause(request_id)

    async def abort(self, request_id: str) -> None:
        """Abort a request; returns once it holds no slot. Unknown requests have already ended."""
        run = self._runs.get(request_id)
        if run is not None:
            run.aborted = True
            self._note_change()
            if run.engine is not None:
                await run.engine.abort(request_id)

    # ---- questions

    async def seen(self, request_id: str) -> bytes:
        """The last image of a live request's question as the model sees it; as `Generation.seen`."""
        while (run := self._runs.get(request_id)) is not None:
            await run.placed.wait()
            engine = run.engine
            if engine is None:
                break
            try:
                return await engine.seen(request_id)
            except EngineError as error:
                if error.code != "engine_died" or not self._retry:
                    raise
            while run.engine is engine and self._runs.get(request_id) is run:  # until the request notices, too
                await asyncio.sleep(0.01)
        raise EngineError("not_live", "no running request with an image has this id")

    async def alternatives(self, query: AlternativesQuery) -> list[Alternative]:
        """The likeliest legal tokens after a beginning of a response; as `Generation.alternatives`."""
        return await self._answer(query.checkpoint, query.weight_version, lambda engine: engine.alternatives(query))

    async def reliance(self, response: WholeResponse) -> Reliance:
        """How much an answer relies on each image before it; as `Generation.reliance`."""
        return await self._answer(response.checkpoint, response.weight_version, lambda e: e.reliance(response))

    async def attention(self, response: WholeResponse, step: int | None) -> tuple[ImageAttention, ...]:
        """How much the tokens of a step attend to each image; as `Generation.attention`."""
        return await self._answer(response.checkpoint, response.weight_version, lambda e: e.attention(response, step))

    async def _answer(self, name: str, version: int, ask: Callable[[EngineClient], Awaitable[T]]) -> T:
        """The answer of a replica with these weights, the emptiest one; retired weights may be on any."""
        lack: EngineError | None = None
        for engine in sorted(self._some(), key=lambda e: (e.status().loaded.get(name) != version, self._load_of(e))):
            try:
                return await ask(engine)
            except EngineError as error:
                if error.code != "weights_gone":
                    raise
                lack = error
        assert lack is not None
        raise lack
