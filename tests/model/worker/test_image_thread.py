"""The image thread: priorities, batching, errors, shutdown."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model.engine import device
from model.worker import image_thread
from model.worker.image_thread import REST, TOGETHER, ImageThread
from tests.patience import PATIENCE_S


class Results:
    """Posted results in order, or the names of errors; records the posting thread."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self.threads: list[str] = []
        self._arrived = threading.Semaphore(0)

    def post(self, result: Any, error: BaseException | None) -> None:
        self.all.append(result if error is None else type(error).__name__)
        self.threads.append(threading.current_thread().name)
        self._arrived.release()

    def wait(self, count: int) -> list[Any]:
        for _ in range(count):
            assert self._arrived.acquire(timeout=PATIENCE_S)
        return self.all


class Gate:
    """A job that blocks the thread until released."""

    def __init__(self) -> None:
        self._running, self._open = threading.Event(), threading.Event()
        self.let_go = self._open.set

    def __call__(self) -> str:
        self._running.set()
        assert self._open.wait(PATIENCE_S)
        return "gate"

    def wait(self) -> None:
        assert self._running.wait(PATIENCE_S)


class Draw:
    """Complete images: records the batches; "bad" raises."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, items: list[str]) -> list[str]:
        self.batches.append(items)
        if "bad" in items:
            raise ZeroDivisionError
        return [item.upper() for item in items]


@pytest.fixture
def thread() -> Iterator[ImageThread]:
    thread = ImageThread()
    yield thread
    thread.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(image_thread.time, "monotonic", lambda: now[0])
    return now


def test_waiting_partial_is_skipped(thread: ImageThread) -> None:
    results, gate = Results(), Gate()
    assert thread.try_submit(gate, results.post)
    gate.wait()
    assert not thread.try_submit(lambda: "partial", results.post)
    thread.submit_whole(Draw(), "final", results.post)
    thread.submit(lambda: 1 / 0, results.post)
    gate.let_go()
    assert results.wait(3) == ["gate", "FINAL", "ZeroDivisionError"]


def test_complete_images_first_idle_jobs_last(thread: ImageThread) -> None:
    results, gate = Results(), Gate()
    thread.submit(gate, results.post)
    gate.wait()
    thread.when_idle(lambda: results.post("idle", None))
    thread.when_idle(lambda: 1 / 0)
    thread.submit(lambda: "question", results.post)
    thread.submit_whole(Draw(), "final", results.post)
    gate.let_go()
    assert results.wait(4) == ["gate", "FINAL", "question", "idle"]
    thread.submit(lambda: "after an error", results.post)
    assert results.wait(1)[-1] == "after an error"


def test_waiting_images_are_batched_in_order(thread: ImageThread) -> None:
    results, gate, draw, other = Results(), Gate(), Draw(), Draw()
    thread.submit(gate, results.post)
    gate.wait()
    names = [f"p{i}" for i in range(TOGETHER + 2)]
    for name in names:
        thread.submit_whole(draw, name, results.post)
        if name == "p0":
            thread.submit_whole(other, "q0", results.post)
    gate.let_go()
    posted = results.wait(1 + len(names) + 1)
    assert draw.batches == [names[:TOGETHER], names[TOGETHER:]]
    assert other.batches == [["q0"]], "another model's are done apart"
    assert [name for name in posted if name.startswith("P")] == [name.upper() for name in names]
    assert posted.index("Q0") == 1 + TOGETHER, "no later than its turn"


def test_error_reaches_only_its_own_image(thread: ImageThread) -> None:
    results, gate, draw = Results(), Gate(), Draw()
    thread.submit(gate, results.post)
    gate.wait()
    for name in ("a", "bad", "c"):
        thread.submit_whole(draw, name, results.post)
    gate.let_go()
    assert results.wait(4) == ["gate", "A", "ZeroDivisionError", "C"]


def test_step_loop_helps_only_when_overdue(thread: ImageThread, clock: list[float]) -> None:
    results, gate, draw = Results(), Gate(), Draw()
    thread.help_out()  # nothing to do
    thread.submit(gate, results.post)
    gate.wait()
    thread.submit(lambda: "question", results.post)
    clock[0] += 10.0
    thread.help_out()  # neither the running job nor a question's image
    names = [f"p{i}" for i in range(TOGETHER + 1)]
    for name in names:
        thread.submit_whole(draw, name, results.post)
    clock[0] += image_thread.OVERDUE_S / 2
    thread.help_out()
    assert results.all == []
    clock[0] += image_thread.OVERDUE_S
    thread.help_out()
    assert results.all == [name.upper() for name in names[:TOGETHER]], "the oldest"
    assert set(results.threads) == {threading.current_thread().name}
    gate.let_go()
    assert results.wait(TOGETHER + 3)[TOGETHER:] == ["gate", names[-1].upper(), "question"]


def test_loading_waits_for_complete_images_only(thread: ImageThread) -> None:
    results, gate = Results(), Gate()
    thread.wait_for_images(PATIENCE_S)  # nothing waits
    thread.submit(gate, results.post)
    gate.wait()
    thread.submit(lambda: "question", results.post)
    thread.wait_for_images(PATIENCE_S)  # does not wait for other jobs
    thread.submit_whole(Draw(), "p", results.post)
    thread.wait_for_images(0.0)  # no longer than requested
    loader = threading.Thread(target=lambda: (thread.wait_for_images(PATIENCE_S), results.post("load", None)))
    loader.start()
    assert results.all == []
    gate.let_go()
    assert "load" in results.wait(4)
    loader.join(PATIENCE_S)
    assert results.all[0] == "gate", "it began after the image's turn"


def test_partials_leave_most_of_the_core(thread: ImageThread, clock: list[float]) -> None:
    results = Results()

    def work() -> None:
        clock[0] += 3.0

    assert thread.try_submit(work, results.post)
    results.wait(1)
    thread.submit_whole(lambda items: [work()], "p", results.post)  # a complete image does not wait
    results.wait(1)
    clock[0] += REST * 3.0 - 0.1
    assert not thread.try_submit(work, results.post)
    clock[0] += 0.2
    assert thread.try_submit(work, results.post)
    results.wait(1)


def test_close_waits_for_running_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, results, gate = ImageThread(), Results(), Gate()
    thread.submit(gate, results.post)
    gate.wait()
    thread.submit_whole(Draw(), "p", results.post)
    thread.submit(lambda: "question", results.post)
    thread.when_idle(lambda: results.post("idle", None))
    join = thread._thread.join

    def let_go_and_join() -> None:
        gate.let_go()
        join(PATIENCE_S)

    monkeypatch.setattr(thread._thread, "join", let_go_and_join)
    thread.close()
    assert not thread._thread.is_alive()
    assert results.all == ["gate"]


def test_on_cuda_jobs_share_a_stream_beside_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[tuple[str, object]] = []
    inside = threading.local()

    @contextlib.contextmanager
    def stream(one: object) -> Iterator[None]:
        entered.append((threading.current_thread().name, one))
        inside.stream = one
        yield
        inside.stream = None

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda priority: SimpleNamespace(priority=priority))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    device._side_stream.cache_clear()
    thread, results = ImageThread(), Results()
    try:
        thread.submit_whole(lambda items: [inside.stream] * len(items), "a", results.post)
        results.wait(1)
        thread.submit(lambda: inside.stream, results.post)
        results.wait(1)
        thread.when_idle(lambda: results.post(inside.stream, None))
        seen = results.wait(1)
    finally:
        thread.close()
        device._side_stream.cache_clear()
    assert len({id(one) for one in seen}) == 1
    assert seen[0].priority == 0, "the lowest: the steps' graphs are captured with a higher one"
    assert [name for name, _ in entered] == ["images"] * 3
