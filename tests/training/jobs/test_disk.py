"""A job on a full disk waits for space without losing data: every write of every method, and the end of a wait."""

from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from model.checkpoint.checkpoint import validate_checkpoint
from tests.training.job_helpers import events, losses, pesft_spec, write_job
from training.jobs import checkpoints as job_checkpoint
from training.jobs import disk as disk_module
from training.jobs import loop
from training.jobs.disk import WAITING, Disk, is_full
from training.jobs.folder import read_events
from training.jobs.log import JobLog
from training.jobs.loop import StopFlag
from training.jobs.worker import STOPPED, SUCCEEDED, run_job

MIB = 1 << 20
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "POLL_S", 0.001)


class Refusing:
    """A write that fails a number of times before it succeeds."""

    def __init__(self, times: int, error: Exception = FULL) -> None:
        self.times, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "done"


class Free:
    """Free disk space by a list; the last value stays."""

    def __init__(self, *values: int) -> None:
        self.values = list(values)

    def __call__(self, _: Any) -> Any:
        from shutil import _ntuple_diskusage  # the shape that callers see

        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        return _ntuple_diskusage(0, 0, value)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EFBIG, "x"), False),
        (PermissionError(errno.EACCES, "x"), False),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), True),
        (SafetensorError("invalid header"), False),
        (ValueError("x"), False),
    ],
)
def test_full_disk_errors_are_recognised(error: Exception, full: bool) -> None:
    assert is_full(error) is full


def test_write_waits_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    disk = Disk(tmp_path, stop=StopFlag(), on_wait=waits.append, on_room=lambda: waits.append("room"))
    write = Refusing(0)
    monkeypatch.setattr(disk_module.shutil, "disk_usage", Free(1000, 2000, 3000, 9 * MIB))
    assert disk.write(write, needed=5 * MIB) == "done"
    assert write.calls == 1  # it does not start without space
    assert waits == [{"for": "disk", "needed_bytes": 6 * MIB, "free_bytes": 2000}, "room"]
    assert json.loads((tmp_path / WAITING).read_text()) is None
    assert disk.waited_s > 0


@pytest.mark.parametrize("error", [FULL, OSError(errno.EDQUOT, "quota"), SafetensorError("(os error 28)")])
def test_write_is_retried_after_full_disk(error: Exception, tmp_path: Path) -> None:
    write = Refusing(3, error)
    assert Disk(tmp_path, stop=StopFlag()).write(write) == "done"
    assert write.calls == 4


def test_other_errors_are_raised_immediately(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        Disk(tmp_path, stop=StopFlag()).write(Refusing(1, PermissionError(errno.EACCES, "x")))
    with pytest.raises(OSError, match="No space"):
        Disk(tmp_path).write(Refusing(1))  # without a stop, waiting is not allowed


def test_stop_ends_a_wait(tmp_path: Path) -> None:
    stop = StopFlag()
    disk = Disk(tmp_path, stop=stop, on_wait=lambda _: stop.request())
    with pytest.raises(OSError, match="No space"):
        disk.write(Refusing(99))
    assert json.loads((tmp_path / WAITING).read_text()) is None


def test_obsolete_states_are_removed_before_waiting(tmp_path: Path) -> None:
    waits: list[Any] = []
    spared: list[int] = []
    for name in ("a-step-2", "a-step-4", "b-step-1"):
        (tmp_path / "checkpoints" / name / "train").mkdir(parents=True)
    disk = Disk(tmp_path, stop=StopFlag(), on_wait=waits.append, on_spared=spared.append)
    assert disk.write(Refusing(1)) == "done"
    assert (spared, waits) == ([2], [])
    assert [path.parent.name for path in tmp_path.glob("checkpoints/*/train")] == ["b-step-1"]
    assert len(list(tmp_path.glob("checkpoints/*"))) == 3


def test_partial_append_is_not_duplicated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("one\n")
    real, left = Path.open, [1, 1]

    def open_(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = real(self, mode, *args, **options)
        if self == path and left:
            left.pop()
            file.write(b"tw")
            file.close()
            raise FULL
        return file

    monkeypatch.setattr(Path, "open", open_)
    Disk(tmp_path, stop=StopFlag()).append(path, "two\nthree\n")
    assert path.read_text() == "one\ntwo\nthree\n"


def test_old_optimiser_states_are_removed_first(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has enough space for a save once the older states are removed."""
    usage = disk_module.shutil.disk_usage

    def disk_usage(path: Any) -> Any:
        states = list((tmp_path / "job" / "checkpoints").glob("*/train"))
        return usage(path) if len(states) < 2 else Free(0)(path)

    monkeypatch.setattr(disk_module.shutil, "disk_usage", disk_usage)
    job = write_job(tmp_path / "job", pesft_spec(), tiny_checkpoint)
    assert run_job(job, json.loads((job / "job.json").read_text())) == SUCCEEDED
    assert [p.parent.name for p in sorted(job.glob("checkpoints/*/train"))] == ["job-step-4", "job-step-6"]
    assert events(job, "warning") == []
    for folder in job.glob("checkpoints/*"):
        validate_checkpoint(folder)


@pytest.mark.parametrize("what", ["state", "weights"])
def test_save_on_a_full_disk_waits(
    what: str, tmp_path: Path, tiny_checkpoint: Path, pesft_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = Refusing(3, FULL if what == "state" else SafetensorError("I/O error: (os error 28)"))
    module, name = (loop, "_save_tensors") if what == "state" else (job_checkpoint, "save_checkpoint")
    real = getattr(module, name)

    def save(*args: Any, **options: Any) -> Any:
        refusing()
        return real(*args, **options)

    monkeypatch.setattr(module, name, save)
    job = write_job(tmp_path / "job", pesft_spec(), tiny_checkpoint)
    assert run_job(job, json.loads((job / "job.json").read_text())) == SUCCEEDED
    assert [e["code"] for e in events(job, "warning")] == ["disk_full"]
    waiting = next(e["waiting"] for e in events(job, "progress") if "waiting" in e)
    assert waiting["needed_bytes"] > sum(p.stat().st_size for p in job.glob("checkpoints/job-step-6/*.safetensors"))
    assert "waiting" not in events(job, "progress")[-1]
    assert [e["name"] for e in events(job, "checkpoint")] == ["job-step-2", "job-step-4", "job-step-6"]
    assert losses(job) == losses(pesft_job)


def test_stopping_a_waiting_save_keeps_state(
    tmp_path: Path, tiny_checkpoint: Path, pesft_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from step 3; the job is stopped while it waits, and resumes once there is space."""
    real = loop._save_tensors

    def full(state: Any, path: Path) -> None:
        if state["step"] > 2:
            raise FULL
        real(state, path)

    waits = JobLog._waits

    def waits_and_is_stopped(log: JobLog, waiting: dict[str, Any]) -> None:
        waits(log, waiting)
        assert isinstance(log.disk._stop, StopFlag)
        log.disk._stop.request()

    job = write_job(tmp_path / "job", pesft_spec(), tiny_checkpoint)
    described = json.loads((job / "job.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save_tensors", full)
        patch.setattr(JobLog, "_waits", waits_and_is_stopped)
        assert run_job(job, described) == STOPPED
    assert not (job / "error.json").exists()
    assert [p.name for p in job.glob("checkpoints/*")] == ["job-step-2"]
    assert run_job(job, described, resume=True) == SUCCEEDED
    assert losses(job) == losses(pesft_job)


# ---- a disk that is always full except while a job waits


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


class AlwaysFull:
    """Fills a disk after every waiting write, and frees space for the next one when it waits."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.filler, self.depth, self.waits = place / "filler", 0, 0
        real_write, real_waits = Disk.write, JobLog._waits

        def write(disk: Disk, action: Callable[[], Any], **options: Any) -> Any:
            self.depth += 1
            try:
                return real_write(disk, action, **options)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.fill()

        def waits(log: JobLog, waiting: dict[str, Any]) -> None:
            self.waits += 1
            real_waits(log, waiting)
            self.filler.unlink(missing_ok=True)

        monkeypatch.setattr(Disk, "write", write)
        monkeypatch.setattr(JobLog, "_waits", waits)

    def fill(self) -> None:
        for size in (MIB, 4096, 1):
            try:
                with self.filler.open("ab", buffering=0) as file:
                    while file.write(b"\0" * size) == size:
                        pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


WORLD = {"source": "unitasks", "num_samples": 4}
SPECS: dict[str, dict[str, Any]] = {
    "pesft": pesft_spec(sample_every=3, steps=4),
    "perpo": {
        "method": "perpo",
        "data": WORLD,
        "hyperparameters": {
            "steps": 2,
            "prompts_per_step": 1,
            "rollouts_per_prompt": 2,
            "mini_batch_prompts": 1,
            "save_every": 1,
            "filter_metric": "none",
            "max_new_tokens": 24,
        },
    },
    "benchmark": {"method": "benchmark", "data": WORLD, "hyperparameters": {"batch_size": 2, "max_new_tokens": 24}},
    "zero": {
        "method": "zero",
        "data": WORLD,
        "hyperparameters": {
            "pesft": None,
            "batch_size": 2,
            "candidates": 1,
            "max_steps": 1,
            "copied_share": 1.0,
            "min_accepted": 0,
        },
    },
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
@pytest.mark.parametrize("method", SPECS)
def test_every_write_waits_for_space(
    method: str, small_disk: Path, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a wait each write fails: the disk is full before any of them."""
    undisturbed = write_job(tmp_path / "undisturbed", SPECS[method], tiny_checkpoint)
    assert run_job(undisturbed, json.loads((undisturbed / "job.json").read_text())) == SUCCEEDED
    job = write_job(small_disk / "job", SPECS[method], tiny_checkpoint)
    full = AlwaysFull(small_disk, monkeypatch)
    full.fill()
    assert run_job(job, json.loads((job / "job.json").read_text())) == SUCCEEDED
    assert full.waits > 5
    full.filler.unlink(missing_ok=True)

    def rows(folder: Path, kind: str) -> list[Any]:
        logged = read_events(folder / "events.jsonl", 0)[0]  # as the runner reads them: half lines are skipped
        return [
            {k: v for k, v in e.data.items() if k not in ("values", "metrics", "folder")}
            for e in logged
            if e.type == kind
        ]

    assert len(rows(job, "warning")) == len(rows(undisturbed, "warning")) + full.waits  # each wait is logged once
    for kind in ("metrics", "sample", "checkpoint", "report"):
        assert rows(job, kind) == rows(undisturbed, kind), kind
    assert {row["code"] for row in rows(job, "warning")} - {row["code"] for row in rows(undisturbed, "warning")} == {
        "disk_full"
    }
    result, expected = (json.loads((folder / "result.json").read_text()) for folder in (job, undisturbed))
    assert result.get("checkpoint") == expected.get("checkpoint")
    for folder in job.glob("checkpoints/*"):
        validate_checkpoint(folder)
