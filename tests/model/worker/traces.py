"""Traces of the engine's worker: requests, what they emit, and how two of them compare."""

from __future__ import annotations

import io
import threading
from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as Seq
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.checkpoint.checkpoint import load_checkpoint
from model.engine.engine import Engine
from model.engine.hosted import EngineClient
from model.engine.messages import (
    Emitted,
    Finished,
    GenerationRequest,
    ImageInput,
    Output,
    SamplingParams,
    Tokens,
)
from model.engine.sequence import Sequence
from model.text.vocab import Vocabulary
from model.worker.inprocess import InProcess
from tests.near_ties import assert_equal_up_to_near_tie, assert_same_image


class Recorder:
    """The newest sequence that this process's engines sampled for each request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sequences: dict[str, Sequence] = {}
        add = Engine.add_request

        def add_and_record(engine: Engine, *args: Any, request_id: str, **more: Any) -> list[Sequence]:
            found = add(engine, *args, request_id=request_id, **more)
            self.sequences[request_id] = found[0]
            return found

        monkeypatch.setattr(Engine, "add_request", add_and_record)

    def assert_same_trace(
        self, checkpoint: Path, first: str, one: Seq[Output], second: str, other: Seq[Output]
    ) -> bool:
        """Assert that two equal requests sampled the same tokens up to a near tie; without a tie, their events are
        equal.

        `first` and `second` name the requests whose sequences have all tokens (for a resumed trace, the last one's).
        Returns whether all tokens are equal.
        """
        a, b = self.sequences[first], self.sequences[second]
        assert a.prompt == b.prompt
        same = assert_equal_up_to_near_tie(load_checkpoint(checkpoint), a.prompt, a.params, a, b)
        if a.response != b.response:
            return False
        assert same == len(a.response)
        assert_same_events(one, other)
        return True


def assert_same_events(one: Seq[Output], other: Seq[Output]) -> None:
    """Assert equal events and tokens; images may differ by decoder rounding."""
    mine, theirs = ([o for o in outputs if isinstance(o, Emitted)] for outputs in (one, other))
    assert [(o.event, o.tokens and o.tokens.ids) for o in mine] == [
        (o.event, o.tokens and o.tokens.ids) for o in theirs
    ]
    for a, b in zip(mine, theirs, strict=True):
        assert (a.event, a.tokens and a.tokens.ids) == (b.event, b.tokens and b.tokens.ids)
        assert (a.png is None) == (b.png is None)
        if a.png is not None and b.png is not None:
            assert_same_image(a.png, b.png)


class Steps:
    """Of the checkpoint "drawing": lets a test act while a request runs, however slowly the test's own thread runs."""

    def __init__(self, engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        self._free, self._begun = threading.Event(), threading.Event()
        self._free.set()
        core, inbox = engine.worker.models["drawing"].engine, engine.worker._inbox
        step = core.step

        def held() -> Any:
            while self._begun.is_set() and inbox.empty() and not self._free.wait(0.001):
                pass
            self._begun.set()
            return step()

        monkeypatch.setattr(core, "step", held)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, the worker takes one step to begin with and then one for each message that it gets."""
        self._begun.clear()
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()


def an_image(size: tuple[int, int] = (40, 30)) -> ImageInput:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(out, "PNG")
    return ImageInput(out.getvalue())


def ask(name: str, *, seed: int = 1, tokens: int = 120, images: bool = True, **more: Any) -> GenerationRequest:
    sampling = SamplingParams(temperature=1.0, seed=seed, max_new_tokens=tokens, max_images=3)
    given = (an_image(),) if images else ()
    return GenerationRequest(name, "drawing", "Where is the red star?", given, sampling, **more)


async def collect(engine: EngineClient, request: GenerationRequest) -> list[Output]:
    return [output async for output in engine.generate(request)]


@asynccontextmanager
async def engine_of(checkpoint: Path, *, slots: int = 4, **settings: Any) -> AsyncIterator[InProcess]:
    """A ready engine in this process with one checkpoint, "drawing"."""
    engine = InProcess({"drawing": checkpoint}, num_slots=slots, **settings)
    await engine.start()
    try:
        status = await engine.wait_ready()
        assert status.phase == "ready", status.detail
        yield engine
    finally:
        await engine.close()


def kinds(outputs: list[Output]) -> list[str]:
    """Event types and class names, runs of deltas counted once."""
    names = [o.event.type if isinstance(o, Emitted) else type(o).__name__ for o in outputs]
    return [n for i, n in enumerate(names) if i == 0 or n != names[i - 1]]


def events(outputs: list[Output]) -> list[Any]:
    return [(o.event, o.png, o.tokens and o.tokens.ids) for o in outputs if isinstance(o, Emitted)]


def without_logprobs(finished: Output) -> Output:
    """Log-probabilities may differ in their last bits."""
    assert isinstance(finished, Finished)
    return replace(finished, tokens=Tokens(finished.tokens.ids))


def first_codes(tokens: Tokens, vocab: Vocabulary) -> tuple[int, ...]:
    """Codes of the image in a step's tokens."""
    codes = (vocab.id_to_code(token) for token in tokens.ids)
    return tuple(code for code in codes if code is not None)


def parts_of(outputs: list[Output]) -> list[Tokens]:
    """The tokens of each complete step, and those after the last one."""
    steps = [o.tokens for o in outputs if isinstance(o, Emitted) and o.tokens is not None]
    last = outputs[-1]
    return [*steps, last.tokens] if isinstance(last, Finished) else steps
