"""A server on the real engine in a thread of this process, its client, and how two of its traces compare."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.client import Client
from app.client.sse import Event
from app.client.types import Trace
from app.storage import tables
from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.engine.engine import Engine
from model.engine.phases import Legal
from model.worker.inprocess import InProcess
from tests.app.conftest import Server, Sse, parse_sse
from tests.app.stream_events import check_event
from tests.e2e.real_server import wait_until
from tests.model.worker.traces import Recorder
from tests.near_ties import assert_equal_up_to_near_tie, assert_same_image
from tests.patience import PATIENCE_S

MODEL = "nano-omni-r1"
SLOTS = 6
FIRST_TASK = 1_000_000_000


class Gate:
    """Lets the engines of this process make only so many steps; they answer cancellations meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None  # None: any number
        self.most_running = 0
        self._ends_at_code = False
        self._moved = threading.Condition()
        step = Engine.step

        def gated(engine: Engine) -> list[Any]:
            with self._moved:
                if self.left == 0:
                    self._moved.wait(0.005)  # then the worker looks at its commands
                    return []
                if self.left is not None:
                    self.left -= 1
            outputs = step(engine)
            self.most_running = max(self.most_running, sum(output.ends_pass for output in outputs))
            with self._moved:
                if self._ends_at_code and any(output.legal is Legal.CODE for output in outputs):
                    self.left = 0
            return outputs

        monkeypatch.setattr(Engine, "step", gated)

    @contextlib.contextmanager
    def after(self, steps: int) -> Iterator[None]:
        """Hold the engines after that many steps, until the end of the block."""
        self.open(steps)
        try:
            yield
        finally:
            self.open(None)

    @contextlib.contextmanager
    def in_an_image(self) -> Iterator[None]:
        """Hold the engines once one has drawn a code, until the end of the block."""
        self._ends_at_code = True
        try:
            yield
        finally:
            with self._moved:
                self._ends_at_code = False
            self.open(None)

    def open(self, steps: int | None) -> None:
        """Allow that many more steps."""
        with self._moved:
            self.left = steps
            self._moved.notify_all()


class Studio:
    """The server; `restart` keeps its home."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorder, self.gate = Recorder(monkeypatch), Gate(monkeypatch)
        self.home = home
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="studio", daemon=True)
        self._thread.start()
        self.start()

    def start(self) -> None:
        self.server = Server(self.home, SHIPPED, InProcess({}, num_slots=SLOTS))  # type: ignore[arg-type]
        self.recorder.server = self.server
        self._run(self.server.start())
        url = f"http://127.0.0.1:{self.server.port}"
        self.client, self.http = Client(url), httpx.Client(base_url=url, timeout=PATIENCE_S)

    def stop(self) -> None:
        self.client.close()
        self.http.close()
        self._run(self.server.stop())

    def restart(self) -> None:
        self.stop()
        self.gate.open(None)  # a new engine makes steps while it loads
        self.start()

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    # ---- shorthands

    def ask(self, seed: int = 0, slice_: str = "operational", **more: Any) -> Trace:
        """A new trace of a task."""
        task = self.client.task(slice=slice_, seed=FIRST_TASK + seed)
        options = {"sampling": {"temperature": 1.0, "seed": seed}, "task_id": task["task_id"], **more}
        return self.client.create_trace(task["question"], [task["image_id"]], **options)

    def asked(self, seed: int = 0, slice_: str = "operational", **more: Any) -> Trace:
        """A new trace of a task, completed."""
        trace = self.ended(self.ask(seed, slice_, **more)["id"])
        assert trace["status"] == "completed", trace.get("error")
        return trace

    def ended(self, trace_id: str) -> Trace:
        """The trace once it has ended."""
        for _ in self.client.events(trace_id):
            pass
        return self.client.trace(trace_id)

    def paused(self, trace_id: str) -> Trace:
        """The trace once it pauses."""
        self.until(trace_id, "trace.paused")
        return self.client.trace(trace_id)

    def until(self, trace_id: str, type_: str) -> list[Event]:
        """The events up to the first of that type."""
        found = []
        for event in self.client.events(trace_id):
            found.append(event)
            if event.type == type_:
                return found
        raise AssertionError(f"{trace_id} ended without {type_}")

    def reached(self, *trace_ids: str) -> None:
        """Wait until the engine has these traces."""
        wait_until(lambda: all(id_ in self.recorder.sequences for id_ in trace_ids), "the engine's requests")

    def branched(self, parent_id: str, after_step: int, **more: Any) -> Trace:
        """A new branch, completed."""
        [branch] = self.client.branch(parent_id, after_step, **more)
        trace = self.ended(branch["id"])
        assert trace["status"] == "completed", trace.get("error")
        return trace

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def refused(self, parent_id: str, **body: Any) -> httpx.Response:
        """The answer to a branch that must not be created, after checking that nothing was."""

        def newest() -> list[str]:
            pages = (self.client.traces(limit=1), self.client.groups(limit=1))
            return [entry["id"] for page in pages for entry in page["data"]]

        before = newest()
        answer = self.post(f"/v1/traces/{parent_id}/branches", body)
        assert newest() == before
        return answer

    def log(self, log_id: str, after: int = 0) -> bytes:
        """The bytes of a log's stream."""
        kind = "groups" if log_id.startswith("gr_") else "traces"
        answer = self.http.get(f"/v1/{kind}/{log_id}/events", params={"after": after})
        assert answer.status_code == (204 if not answer.content else 200)
        return answer.content

    def events(self, log_id: str) -> list[Sse]:
        """The events of an ended log, each checked against the contract."""
        found = parse_sse(self.log(log_id))
        for event in found:
            check_event("groups" if log_id.startswith("gr_") else "traces", event.type, event.data)
        return found

    def forget_tokens(self, trace_id: str, parts: Sequence[int]) -> None:
        """Make it a trace of a version that stored no tokens for these parts."""
        t = tables.trace_tokens
        with self.server.services.db.write() as connection:
            connection.execute(sa.delete(t).where(t.c.trace_id == trace_id, t.c.part.in_(parts)))

    # ---- comparisons

    def assert_same(self, one: Trace, other: Trace) -> bool:
        """Assert that both have the same tokens up to a near tie, and without one the same steps and answer.

        Returns whether all tokens are equal.
        """
        a, b = (self.recorder.sequences[trace["id"]] for trace in (one, other))
        assert (a.prompt, a.params) == (b.prompt, b.params)
        if a.response != b.response:
            assert_equal_up_to_near_tie(load_checkpoint(SHIPPED / MODEL), a.prompt, a.params, a, b)
            return False
        self.assert_same_steps(one, other)
        assert one["answer"] == other["answer"]
        return True

    def assert_same_steps(self, one: Trace, other: Trace, count: int | None = None) -> None:
        """Assert that the first steps, or all, have the same texts and images."""
        mine, theirs = one["steps"][:count], other["steps"][:count]
        assert [step["text"] for step in mine] == [step["text"] for step in theirs]
        for a, b in zip(mine, theirs, strict=True):
            first, second = a.get("image"), b.get("image")
            assert (first is None) == (second is None)
            if first is not None and second is not None and first["image_id"] != second["image_id"]:
                assert_same_image(self.client.image(first["image_id"]), self.client.image(second["image_id"]))


def assert_whole(log: Sequence[Sse], end: str | tuple[str, ...]) -> None:
    """Assert that ids are contiguous and that exactly the last event is the end."""
    assert [event.id for event in log] == list(range(1, len(log) + 1))
    assert [event.type for event in log if event.type.startswith(end)] == [log[-1].type]


def image_ids(trace: Trace) -> list[str | None]:
    """The image of each step."""
    images = [step.get("image") for step in trace["steps"]]
    return [None if image is None else image["image_id"] for image in images]
