"""Fakes: an engine that plays a script, and a checkpoint without tensors."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
import re
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from model.engine.messages import (
    Alternative,
    AlternativesQuery,
    Cancelled,
    Emitted,
    EngineError,
    EngineStatus,
    Failed,
    Finished,
    Footprint,
    GenerationRequest,
    KeptStep,
    Output,
    Paused,
    QueuePosition,
    Reading,
    Started,
    Tokens,
    TraceEvent,
)

STATS = {"codes": 64, "flatness": 0.1, "tv": 0.2, "perception_reward": 0.5}


def png(colour: tuple[int, int, int] = (255, 255, 255), size: tuple[int, int] = (64, 64), *, box: int = 0) -> bytes:
    """A small RGB PNG, with a magenta box when `box` > 0."""
    picture = Image.new("RGB", size, colour)
    if box:
        ImageDraw.Draw(picture).rectangle((box, box, box + 20, box + 20), outline=(255, 0, 255), width=3)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Wait:
    """A point in a script where the engine waits for the test's `go(name)`."""

    name: str


@dataclass(frozen=True)
class StepEnd:
    """A point in a script where a step is complete: the engine pauses here in step mode."""

    step: int


@dataclass(frozen=True)
class Crash:
    """A point in a script where the engine raises."""

    error: Exception


Item = Output | Wait | StepEnd | Crash
Script = Callable[[GenerationRequest], Sequence[Item]]


def emitted(type_: str, *, png: bytes | None = None, **data: Any) -> Emitted:
    """One engine event."""
    return Emitted(TraceEvent(type_, data), png)


def step_items(
    step: int, text: str, picture: bytes | None, *, partials: int = 0, wait: str | None = None
) -> list[Item]:
    """The output of one step: its text word by word, its image in parts."""
    items: list[Item] = [emitted("step.started", step=step)]
    items += [emitted("text.delta", step=step, text=word) for word in _words(text)]
    if wait is not None:
        items.append(Wait(wait))
    if picture is not None:
        items.append(emitted("image.started", step=step))
        for index in range(partials):
            done = 64 * (index + 1) // (partials + 1)
            items.append(emitted("image.partial", step=step, index=index, codes_done=done, codes_total=64, png=picture))
        items.append(emitted("image.completed", step=step, stats=STATS, png=picture))
    items += [emitted("step.completed", step=step), StepEnd(step)]
    return items


def answer_items(answer: str, *, reason: str = "stop") -> list[Item]:
    """The output at the end of a trace."""
    usage = {"prompt_tokens": 80, "completion_tokens": 160, "images": 2}
    items: list[Item] = [emitted("answer.delta", text=word) for word in _words(answer)]
    return [*items, Finished(reason, answer.strip(), usage)]  # type: ignore[arg-type]


def two_steps(request: GenerationRequest) -> list[Item]:
    """The default script: two steps with images, then the answer "red"."""
    return [
        *step_items(1, "I look for the star.", png(box=5), partials=min(2, request.partial_images)),
        *step_items(2, "I draw a box around it.", png(box=30), partials=min(2, request.partial_images)),
        *answer_items(" red"),
    ]


def held(request: GenerationRequest) -> list[Item]:
    """One step, then a wait for `go("end")`, then the answer."""
    return [*step_items(1, "I look.", png(box=9)), Wait("end"), *answer_items("red")]


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


@dataclass
class _Job:
    request: GenerationRequest
    mode: str
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


class FakeGeneration:
    """A `Generation` that plays scripts: controllable waits, real slots, recorded calls.

    `go(name)` opens every `Wait(name)`, current and future. `pace_s` seconds pass between outputs (for demos).
    """

    def __init__(
        self,
        script: Script = two_steps,
        *,
        num_slots: int = 16,
        pace_s: float = 0.0,
        abort_takes: asyncio.Event | None = None,
        bad_folders: Mapping[str, str] | None = None,
        memory_mb: int = 1 << 20,
        sizes_mb: Mapping[str, int] | None = None,
    ) -> None:
        self.script = script
        self.num_slots, self.pace_s = num_slots, pace_s
        self.abort_takes = abort_takes
        self.bad_folders = dict(bad_folders or {})
        self.memory_mb, self.sizes_mb = memory_mb, dict(sizes_mb or {})
        self.contexts: dict[str, int] = {}  # of checkpoints that are served with another one than their own
        self.checks: list[str] = []
        self.phase, self.detail = "ready", ""
        self.reading: Reading | None = None
        self.loaded: dict[str, int] = {}
        self.loads: list[tuple[str, str, int]] = []
        self.requests: list[GenerationRequest] = []
        self.aborts: list[str] = []
        self.pauses: list[str] = []
        self.bad_loads: dict[str, tuple[str, str]] = {}  # name -> code and detail
        self.closed_gates: set[str] = set()  # "check NAME" and "load NAME" wait for `go`
        self.seen_image: bytes | None = None  # None: the question's image itself
        self.closed = False
        self._open: dict[str, asyncio.Event] = {}
        self._jobs: dict[str, _Job] = {}
        self._queue: list[str] = []
        self._running = 0
        self._moved = asyncio.Event()

    # ---- test controls

    def go(self, name: str) -> None:
        """Let all scripts pass `Wait(name)`."""
        self._open.setdefault(name, asyncio.Event()).set()

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._running

    # ---- the protocol

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self.closed = True
        for job in self._jobs.values():
            job.aborted.set()

    def status(self) -> EngineStatus:
        more = (dict(self.loaded), self._running, len(self._queue), self.reading)
        return EngineStatus(self.phase, self.detail, *more)  # type: ignore[arg-type]

    async def check(self, folder: str) -> Footprint:
        name = Path(folder).name
        self.checks.append(name)
        await self._pass(f"check {name}")
        if name in self.bad_folders:
            raise EngineError("missing_tensor", self.bad_folders[name])
        size = self._size(name)
        return Footprint(size, size, self.contexts.get(name))

    async def load(self, name: str, folder: str, weight_version: int) -> None:
        self.loads.append((name, folder, weight_version))
        await self._pass(f"load {name}")
        if name in self.bad_loads:
            raise EngineError(*self.bad_loads[name])
        self.loaded[name] = weight_version

    async def _pass(self, name: str) -> None:
        """Wait if the test has closed this gate."""
        if name in self.closed_gates:
            await self._open.setdefault(name, asyncio.Event()).wait()

    def _size(self, name: str) -> int:
        return self.sizes_mb.get(name, 1) << 20

    async def unload(self, name: str) -> None:
        self.loaded.pop(name, None)

    def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        self.requests.append(request)
        self._jobs[request.request_id] = _Job(request, request.mode)
        return self._play(request)

    async def pause(self, request_id: str) -> None:
        self.pauses.append(request_id)
        self._jobs[request_id].mode = "step"

    async def abort(self, request_id: str) -> None:
        self.aborts.append(request_id)
        job = self._jobs.get(request_id)
        if job is None:
            return
        if self.abort_takes is not None:
            await self.abort_takes.wait()
        job.aborted.set()
        await job.stopped.wait()

    async def seen(self, request_id: str) -> bytes:
        images = self._jobs[request_id].request.images
        if not images:
            raise EngineError("not_live", "no image")
        return self.seen_image or images[-1].png

    async def alternatives(self, query: AlternativesQuery) -> list[Alternative]:
        return [Alternative(token, -0.5 * token) for token in range(1, query.count + 1)]

    async def memory(self) -> dict[str, Any]:
        models = {name: self._size(name) for name in self.loaded}
        total = self.memory_mb << 20
        free = total - sum(models.values())
        return {"device": "fake", "models": models, "retired": 0, "total": total, "free": free}

    # ---- playback

    async def _play(self, request: GenerationRequest) -> AsyncIterator[Output]:
        job = self._jobs[request.request_id]
        has_slot = False
        try:
            position: int | None = None
            self._queue.append(request.request_id)
            while self._running >= self.num_slots or self._queue[0] != request.request_id:
                place = self._queue.index(request.request_id)
                if place != position:
                    position = place
                    yield QueuePosition(place)
                self._moved = self._moved if not self._moved.is_set() else asyncio.Event()
                if await self._first(self._moved, job.aborted):
                    yield Cancelled()
                    return
            self._leave_queue(request.request_id)
            self._running += 1
            has_slot = True
            async for output in self._items(job):
                yield output
        finally:
            self._leave_queue(request.request_id)
            if has_slot:
                self._running -= 1
            self._moved.set()
            job.stopped.set()

    def _leave_queue(self, request_id: str) -> None:
        if request_id in self._queue:
            self._queue.remove(request_id)
            self._moved.set()

    async def _items(self, job: _Job) -> AsyncIterator[Output]:
        request = job.request
        skip = json.loads(request.resume)["done"] if request.resume else 0
        sampling = request.sampling
        yield Started(
            80,
            768,
            sampling.max_new_tokens or 688,
            8,
            sampling.temperature or 0.0,
            sampling.top_p or 1.0,
            self.loaded.get(request.checkpoint, 1),
        )
        for number, step in enumerate(request.prefix.steps if not skip else (), 1):
            yield _kept(number, step)
        for index, item in enumerate(self.script(request)):
            if index < skip or _step_of(item) <= len(request.prefix.steps):
                continue
            if job.aborted.is_set():
                yield Cancelled()
                return
            match item:
                case Wait(name):
                    if await self._first(self._open.setdefault(name, asyncio.Event()), job.aborted):
                        yield Cancelled()
                        return
                case StepEnd(step):
                    if job.mode == "step":
                        yield Paused(step, json.dumps({"done": index + 1}).encode())
                        return
                case Crash(error):
                    raise error
                case _:
                    if self.pace_s:
                        await asyncio.sleep(self.pace_s)
                    yield item
                    if isinstance(item, Finished | Failed | Cancelled | Paused):
                        return

    async def _first(self, event: asyncio.Event, aborted: asyncio.Event) -> bool:
        """Wait for either; True for the abort."""
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(aborted.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return aborted.is_set()


def _kept(number: int, step: KeptStep) -> Emitted:
    image = step.image.png if step.image is not None and step.codes is None and step.tokens is None else None
    data = {"step": number} | ({} if image is None else {"width": 64, "height": 64, "stats": STATS})
    return Emitted(TraceEvent("step.kept", data), image, Tokens(step.tokens or (1, 2), (math.nan, math.nan)))


def _step_of(item: Item) -> float:
    """The step that an item belongs to; infinity for none."""
    if isinstance(item, StepEnd):
        return item.step
    return item.event.data.get("step", math.inf) if isinstance(item, Emitted) else math.inf


# ---- a checkpoint without tensors


def write_paper_checkpoint(
    folder: Path, *, context_len: int = 768, images: tuple[int, int] = (1, 1), **extra: Any
) -> Path:
    """A folder that the server accepts as a checkpoint: config, tokenizer, manifest, an empty safetensors file."""
    from model.checkpoint.manifest import ImageCount, Manifest
    from model.config import ModelConfig, TransformerConfig, VQConfig
    from model.text.tokenizer import train_bpe

    folder.mkdir(parents=True, exist_ok=True)
    texts = ["Where is the red star? I look for it and draw a box around it.", "\nFinal Answer: red", "THOUGHT 1: "]
    tokenizer = train_bpe(texts * 20, 64, text_vocab=420)
    transformer = TransformerConfig(tokenizer.get_vocab_size(), 32, 64, 2, 4, 2, 8, context_len)
    vq = VQConfig(
        resolution=64,
        base_channels=32,
        channel_multiplier=(1, 1, 1, 1),
        num_res_blocks=1,
        embed_dim=8,
        latent_channels=8,
        num_embeddings=64,
    )
    config = ModelConfig(transformer, vq, tokenizer.get_vocab())
    (folder / "config.json").write_text(json.dumps(config.to_json()))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "seed": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    )
    seed = random.Random(str(extra.get("salt", folder.name))).randrange(256)
    blob = struct.pack("<Q", len(header)) + header.encode() + bytes([seed])
    (folder / "model.safetensors").write_bytes(blob)
    Manifest(
        name=folder.name,
        licence="MIT",
        description="A checkpoint for tests.",
        images=ImageCount(*images),
        card_notes="Paper only.",
        created_at="2026-01-01T00:00:00+00:00",
    ).write(folder)
    return folder
