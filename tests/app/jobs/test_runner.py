"""The job runner with a store in memory, and the reader of job folders; no torch, no server."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.jobs.process import LOCK, WorkerProcess, WorkerRuns, start_worker
from app.jobs.runner import End, Job, JobRunner
from tests.patience import PATIENCE_S
from training.jobs import folder as job_folder
from training.jobs.context import JobError
from training.jobs.folder import WorkerEvent, last_progress_only, log_tail, read_events

WORKER = Path(__file__).parents[2] / "fake_worker.py"


def line(type_: str = "log", **data: Any) -> bytes:
    return json.dumps({"time": "now", "type": type_, "data": data}).encode() + b"\n"


# ---- folder


def test_events_are_read_in_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_events(path, 0) == ([], 0)
    whole = line(line="é↯") + line(line="b") + line(line="c")
    found: list[WorkerEvent] = []
    offset = 0
    for end in range(len(whole) + 1):  # the file grows byte by byte
        path.write_bytes(whole[:end])
        new, offset = read_events(path, offset)
        found += new
    assert [event.data["line"] for event in found] == ["é↯", "b", "c"]
    assert offset == len(whole)


def test_invalid_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    broken = (
        b'{"time": "now", "type": "log", "data"\n' + b"\n" + b"[]\n" + b'{"type": "log"}\n' + b"\xff\xfe\n" + b"3\n"
    )
    path.write_bytes(line(line="a") + broken + line(line="b"))
    found, offset = read_events(path, 0)
    assert [event.data["line"] for event in found] == ["a", "b"]
    assert offset == path.stat().st_size


def test_large_files_are_read_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_folder, "CHUNK_BYTES", 256)
    path = tmp_path / "events.jsonl"
    texts = ["a" * 40] * 20 + ["b" * 1000] + ["c"] * 5
    path.write_bytes(b"".join(line(line=text) for text in texts))
    found, offset, reads = [], 0, 0
    while (step := read_events(path, offset))[1] != offset:
        found += step[0]
        offset = step[1]
        reads += 1
    assert [event.data["line"] for event in found] == texts
    assert reads > 4


def test_only_the_latest_progress_is_kept() -> None:
    def progress(step: int) -> WorkerEvent:
        return WorkerEvent("progress", "now", {"step": step})

    log = WorkerEvent("log", "now", {})
    assert last_progress_only([progress(1), log, progress(2), log]) == [log, progress(2), log]
    assert last_progress_only([log]) == [log]


def test_log_tail_is_short_and_printable(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == []
    lines = [f"line {k} \x1b[31m\r" for k in range(5000)]
    (tmp_path / "log.txt").write_bytes("\n".join(lines).encode() + b"\n\xff\n\n")
    tail = log_tail(tmp_path)
    assert len(tail) == 20
    assert tail[-1] == "\ufffd"
    assert tail[-2].strip() == "line 4999 [31m"


# ---- runner


@dataclass
class MemoryStore:
    """A `JobStore` that keeps everything in lists."""

    queue: list[Job] = field(default_factory=list)
    left: list[Job] = field(default_factory=list)
    events: list[WorkerEvent] = field(default_factory=list)
    ends: list[tuple[str, End, Mapping[str, Any] | None]] = field(default_factory=list)
    cancel: bool = False
    running: int = 0

    def claim(self, max_running: int) -> Job | None:
        if not self.queue or self.running >= max_running:
            return None
        self.running += 1
        return self.queue.pop(0)

    def left_over(self) -> list[Job]:
        return self.left

    def started(self, job_id: str, worker: WorkerProcess) -> None:
        assert worker.pid

    def beat(self, job_id: str) -> bool:
        return self.cancel

    def record(self, job_id: str, events: Sequence[WorkerEvent], log_offset: int) -> None:
        self.events += events

    def finish(
        self, job_id: str, status: End, *, error: Mapping[str, Any] | None, result: Mapping[str, Any] | None
    ) -> None:
        self.running -= 1
        self.ends.append((job_id, status, error if error is not None else result))


class Hooks:
    """`JobHooks` that only record changes."""

    def __init__(self, refusal: JobError | None = None) -> None:
        self.refusal = refusal
        self.wake = asyncio.Event()

    def describe(self, job: Job) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        return {"output_prefix": job.id}

    def before_record(self, job: Job, event: WorkerEvent) -> WorkerEvent:
        return event

    async def conclude(self, job: Job, result: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**result, "concluded": True}

    def changed(self, job_id: str) -> None:
        self.wake.set()


def a_job(folder: Path, name: str = "one") -> Job:
    (folder / name).mkdir(parents=True, exist_ok=True)
    return Job(id=name, folder=folder / name, spec={"method": "pesft"})


@asynccontextmanager
async def running(what: str, store: MemoryStore, hooks: Hooks, **options: Any) -> AsyncIterator[JobRunner]:
    """A runner whose workers do `what`."""
    command = (sys.executable, "-S", str(WORKER), what)
    runner = JobRunner(store, hooks, command=command, poll_s=0.02, beat_s=0.02, **options)
    runner.recover(wait_s=5)
    runner.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield runner
    finally:
        await runner.stop()


async def until(hooks: Hooks, condition: Callable[[], bool]) -> None:
    while not condition():
        hooks.wake.clear()
        await hooks.wake.wait()


async def test_jobs_run_in_order_and_conclude(tmp_path: Path) -> None:
    store, hooks = MemoryStore([a_job(tmp_path, "one"), a_job(tmp_path, "two")]), Hooks()
    async with running("succeed", store, hooks, max_running=1):
        await until(hooks, lambda: len(store.ends) == 2)
    assert [(job_id, end) for job_id, end, _ in store.ends] == [("one", "succeeded"), ("two", "succeeded")]
    assert all(result is not None and result["concluded"] for *_, result in store.ends)
    assert json.loads((tmp_path / "two" / "job.json").read_text()) == {"output_prefix": "two"}
    assert [event.data["step"] for event in store.events if event.type == "metrics"] == [3, 4, 3, 4]


async def test_undescribable_job_does_not_start(tmp_path: Path) -> None:
    store, hooks = MemoryStore([a_job(tmp_path)]), Hooks(JobError("gone", "the base is gone"))
    async with running("succeed", store, hooks):
        await until(hooks, lambda: bool(store.ends))
    assert store.ends == [("one", "failed", {"code": "gone", "detail": "the base is gone", "log_tail": []})]
    assert store.events == []


async def test_old_result_is_ignored(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    (job.folder / "result.json").write_text('{"old": true}')
    (job.folder / "error.json").write_text('{"code": "old", "detail": ""}')
    store, hooks = MemoryStore([job]), Hooks()
    async with running("crash", store, hooks):
        await until(hooks, lambda: bool(store.ends))
    ((_, end, error),) = store.ends
    assert (end, error and error["code"]) == ("failed", "worker_died")


async def test_jobs_of_a_dead_server_get_their_end(tmp_path: Path) -> None:
    """Interrupted if the worker died too, failed if it reported an error, succeeded if it finished."""
    died, failed, done = (a_job(tmp_path, name) for name in ("died", "failed", "done"))
    (failed.folder / "error.json").write_text('{"code": "no_samples", "detail": "none"}')
    (done.folder / "result.json").write_text('{"checkpoint": "x"}')
    (died.folder / "events.jsonl").write_bytes(line(line="seen") + line(line="last words") + b'{"half')
    died = replace(died, log_offset=len(line(line="seen")))
    store, hooks = MemoryStore(left=[died, failed, done]), Hooks()
    async with running("succeed", store, hooks):
        await until(hooks, lambda: len(store.ends) == 3)
    ends = {job_id: (end, told) for job_id, end, told in store.ends}
    assert ends["died"][0] == "interrupted"
    assert ends["failed"] == ("failed", {"code": "no_samples", "detail": "none"})
    assert ends["done"] == ("succeeded", {"checkpoint": "x", "concluded": True})
    assert [event.data["line"] for event in store.events] == ["last words"]


SLEEPER = (sys.executable, "-S", "-c", "import sys; sys.stdin.read()")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in `tmp_path`/one that ends with its stdin."""
    (tmp_path / "one").mkdir()
    process = start_worker(SLEEPER, tmp_path / "one", stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_worker_is_alive_until_it_ends(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    worker = WorkerProcess(tmp_path / "one")
    assert (worker.alive, worker.pid) == (True, sleeper.pid)
    with pytest.raises(WorkerRuns):
        start_worker(SLEEPER, tmp_path / "one")
    assert sleeper.stdin is not None
    sleeper.stdin.close()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it has exited but was not reaped
    assert not worker.alive
    assert not WorkerProcess(tmp_path / "nowhere").alive


@pytest.mark.parametrize("days", [-3, 3])
def test_clock_steps_do_not_hide_a_worker(
    days: int, tmp_path: Path, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, boot = time.time, psutil.boot_time
    monkeypatch.setattr(time, "time", lambda: wall() + days * 86_400)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot() + days * 86_400)
    assert WorkerProcess(tmp_path / "one").alive


async def test_copied_folder_has_no_worker(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy = WorkerProcess(tmp_path / "two")
    assert not copy.alive
    copy.kill_survivors()
    store, hooks = MemoryStore(left=[a_job(tmp_path, "two")]), Hooks()
    async with running("succeed", store, hooks):
        await until(hooks, lambda: bool(store.ends))
    assert store.ends[0][:2] == ("two", "interrupted")
    assert WorkerProcess(tmp_path / "one").alive


def test_reused_pid_is_left_alone(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """The pid of an ended worker now belongs to another process."""
    (tmp_path / "old").mkdir()
    start_worker((sys.executable, "-S", "-c", ""), tmp_path / "old").communicate()
    lock = tmp_path / "old" / LOCK
    told = json.loads(lock.read_text())
    lock.write_text(json.dumps({**told, "pid": sleeper.pid}))
    worker = WorkerProcess(tmp_path / "old")
    assert not worker.alive
    worker.kill_survivors()
    assert sleeper.poll() is None
    assert WorkerProcess(tmp_path / "one").alive


async def test_full_disk_delays_the_worker(tmp_path: Path) -> None:
    class FullDisk(Hooks):
        tries = 0

        def describe(self, job: Job) -> dict[str, Any]:
            self.tries += 1
            if self.tries < 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().describe(job)

    store, hooks = MemoryStore([a_job(tmp_path)]), FullDisk()
    seen: list[Any] = []
    async with running("succeed", store, hooks) as runner:
        beat = store.beat

        def look(job_id: str) -> bool:
            seen.append(runner.waiting(job_id))
            return beat(job_id)

        store.beat = look  # type: ignore[method-assign]
        await until(hooks, lambda: bool(store.ends))
        assert runner.waiting("one") is None
    assert store.ends[0][1] == "succeeded"
    assert [waiting["for"] for waiting in seen[:2]] == ["disk", "disk"]


async def test_cancel_ends_the_wait_for_space(tmp_path: Path) -> None:
    class FullDisk(Hooks):
        def describe(self, job: Job) -> dict[str, Any]:
            store.cancel = True
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

    store, hooks = MemoryStore([a_job(tmp_path)]), FullDisk()
    async with running("succeed", store, hooks):
        await until(hooks, lambda: bool(store.ends))
    assert store.ends == [("one", "cancelled", None)]
