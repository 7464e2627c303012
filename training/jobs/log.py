"""Job log: one JSON object per line in ``events.jsonl``, plus TensorBoard files.

The worker is the only writer of its folder. Errors here never end a training run. On a full disk the log waits for
space (:mod:`training.jobs.disk`); if it cannot wait, or on other errors, it reports the loss once, counts lost rows,
and logs their number once it can write again.

A resumed run logs the steps after its last saved state again: of two rows for one step, the later one counts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.jobs.disk import Disk, is_full
from training.jobs.trackers import Trackers

if TYPE_CHECKING:
    from PIL.Image import Image

    from training.jobs.stop import Stop

EVENTS, SAMPLES, TENSORBOARD = "events.jsonl", "samples", "tensorboard"


class JobLog:
    """The events of one job, in order. Thread-safe."""

    def __init__(self, folder: Path, *, tensorboard: bool = True, stop: Stop | None = None) -> None:
        """With ``stop``, writes wait for disk space until it is true."""
        self.folder = folder
        self.disk = Disk(folder, stop=stop, on_wait=self._waits, on_room=self._has_room, on_spared=self._spared)
        self._lock = threading.RLock()  # reentrant: a waiting write reports its wait
        self._file: int | None = None
        self._torn = False  # the last write ended within a line
        self._lost = 0
        self._progress: dict[str, Any] = {"stage": None, "step": None, "total": None, "eta_s": None}
        self._pending_warning: str | None = None  # warning about a wait that could not be written either
        self._trackers: dict[str, Any] | None = {} if tensorboard else None
        self._others: Trackers | None = None

    def __enter__(self) -> JobLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close all files; later events open them again."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            self.disk.close()
            trackers, self._trackers = self._trackers, None if self._trackers is None else {}
            others, self._others = self._others, None
        if others is not None:
            others.close()
        for tracker in (trackers or {}).values():
            try:
                tracker.close()
            except Exception as error:
                self._write_line(f"TensorBoard's files could not be closed: {error}")

    def report_to(self, names: Sequence[str], about: Mapping[str, Any]) -> None:
        """Report metrics to these trackers from now on; `about` is `{job_id, spec}`."""
        if "tensorboard" not in names:
            self._trackers = None
        others = [name for name in names if name != "tensorboard"]
        self._others = Trackers(others, self.folder, about, self.warning) if others else None

    def progress(self, stage: str, step: int, total: int, eta_s: float | None = None) -> None:
        """Progress of a stage."""
        eta = None if eta_s is None or not math.isfinite(eta_s) else round(eta_s, 1)
        self._progress = {"stage": stage, "step": step, "total": total, "eta_s": eta}
        self._emit("progress", self._progress)

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Metrics of one step, keys as ``group/name``; non-finite values become null."""
        clean = {k: round(float(v), 7) if math.isfinite(v) else None for k, v in values.items()}
        self._emit("metrics", {"stage": stage, "step": step, "values": clean})
        finite = {k: v for k, v in clean.items() if v is not None}
        self._track(stage, step, finite)
        if self._others is not None:
            self._others.metrics(stage, step, finite)

    def sample(
        self,
        stage: str,
        step: int,
        *,
        question: str,
        question_image: Image | str | None,
        steps: Sequence[Mapping[str, Any]],
        answer: str | None,
        reference: str | None = None,
        slice: str | None = None,
        rewards: Mapping[str, Any] | None = None,
        advantage: float | None = None,
        prompt: int = 0,
        index: int = 0,
    ) -> None:
        """One generated trace with its rewards.

        Args:
            stage: stage and step at which it was generated.
            step: see above.
            question: text of the question.
            question_image: an image, or its path below the job's folder.
            steps: ``{"text": str, "image": image, path or None}`` each.
            answer: None if the trace has none.
            reference: the right answer.
            slice: of the world or the benchmark.
            rewards: ``total, accuracy, format, perception``; ``custom`` has those of your own by label.
            advantage: of the trajectory within its group.
            prompt: number of the prompt within the step.
            index: number of the trajectory within its group.
        """
        name = f"{stage}-{step}-{prompt}-{index}"
        self._emit(
            "sample",
            {
                "stage": stage,
                "step": step,
                "question": question,
                "question_image": self.save_image(question_image, f"{name}-q"),
                "steps": [
                    {"text": s.get("text", ""), "image": self.save_image(s.get("image"), f"{name}-{k}")}
                    for k, s in enumerate(steps, 1)
                ],
                "answer": answer,
                "reference": reference,
                "slice": slice,
                "rewards": _rounded(rewards or {}),
                "advantage": None if advantage is None else round(float(advantage), 6),
                "prompt": prompt,
                "index": index,
            },
        )

    def save_image(self, image: Image | str | None, name: str) -> str | None:
        """Save an image as ``samples/<name>.png``; return its path below the job's folder, or None without an image."""
        if image is None or isinstance(image, str):
            return image
        path, given = self.folder / SAMPLES / f"{file_name(name)}.png", image

        def save() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            given.save(path)

        try:
            self.disk.write(save)
        except OSError as error:
            path.unlink(missing_ok=True)
            self._lose(f"{path.name} could not be saved: {error}")
            return None
        return f"{SAMPLES}/{path.name}"

    def checkpoint(self, name: str, folder: Path, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """A checkpoint that can be served from now on."""
        clean = {k: round(float(v), 7) for k, v in metrics.items() if math.isfinite(v)}
        self._emit("checkpoint", {"name": name, "folder": str(folder), "stage": stage, "step": step, "metrics": clean})

    def warning(self, code: str, detail: str) -> None:
        """A failure sign that does not end the job."""
        self._emit("warning", {"code": code, "detail": detail})
        self._write_line(f"warning {code}: {detail}")

    def log(self, line: str) -> None:
        """A line for people."""
        self._emit("log", {"line": line})
        self._write_line(line)

    def report(self, kind: str, data: Mapping[str, Any]) -> None:
        """A larger result: a bootstrapping report, a benchmark's tables."""
        self._emit("report", {"kind": kind, **data})

    def _emit(self, kind: str, data: Mapping[str, Any]) -> None:
        line = _event(kind, data)
        with self._lock:
            lost = self._lost
            try:
                self.disk.write(lambda: self._write(line))
                if lost:
                    self._lost = 0
                    detail = f"{lost} events or pictures could not be written"
                    self._write(_event("warning", {"code": "events_lost", "detail": detail}))
            except OSError as error:
                self._lose(f"events are being lost: {error}")

    def _waits(self, waiting: dict[str, Any]) -> None:
        """Report that a write waits for disk space, if there is space for the report."""
        detail = (
            f"the job waits for room on the disk: it needs {waiting['needed_bytes']:,} bytes, and "
            f"{waiting['free_bytes']:,} are free"
        )
        self._write_line(f"warning disk_full: {detail}")
        with self._lock:
            self._pending_warning = None if self._warn("disk_full", detail) else detail
            with contextlib.suppress(OSError):
                self._write(_event("progress", {**self._progress, "waiting": waiting}))

    def _warn(self, code: str, detail: str) -> bool:
        """Write a warning without waiting for space; return whether it was written."""
        try:
            self._write(_event("warning", {"code": code, "detail": detail}))
        except OSError:
            return False
        return True

    def _spared(self, count: int) -> None:
        self.log(f"the disk is full: the optimiser states of {count} older checkpoints were removed")

    def _has_room(self) -> None:
        """Report that the wait is over."""
        with self._lock:
            detail, self._pending_warning = self._pending_warning, None
            if detail is not None:
                self._warn("disk_full", detail)
        self._emit("progress", self._progress)
        self._write_line("the job continues")

    def _write(self, line: bytes) -> None:
        if self._file is None:
            path = self.folder / EVENTS
            self._torn = _ends_within_a_line(path)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        whole = b"\n" + line if self._torn else line
        written = os.write(self._file, whole)  # an exception means that nothing was written
        self._torn = written < len(whole)
        if self._torn and self.disk.waits:  # the write will be retried
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            self._torn = whole is not line
        if written < len(whole):
            raise OSError(errno.ENOSPC, f"{written} of {len(whole)} bytes were written")

    def _track(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        trackers = self._trackers
        if trackers is None:
            return
        try:
            if stage not in trackers:
                from torch.utils.tensorboard import SummaryWriter

                trackers[stage] = SummaryWriter(str(self.folder / TENSORBOARD / file_name(stage)), purge_step=step)
            for name, value in values.items():
                trackers[stage].add_scalar(name, value, step)
            trackers[stage].flush()
        except Exception as error:  # trackers are optional: the job continues without them
            if is_full(error):
                trackers.pop(stage, None)  # the next metrics start another file
                return
            self._trackers = None
            self.log(f"TensorBoard's files are given up: {type(error).__name__}: {error}")

    def _lose(self, why: str) -> None:
        self._lost += 1
        if self._lost == 1:
            self._write_line(why)

    @staticmethod
    def _write_line(line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # log.txt is on the same disk


class MutedLog(JobLog):
    """The log of a rank that reports nothing: another one does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, tensorboard=False)

    def report_to(self, names: Sequence[str], about: Mapping[str, Any]) -> None:
        """No tracker is started."""

    def save_image(self, image: Image | str | None, name: str) -> str | None:
        """Nothing is saved."""
        return None

    def _emit(self, kind: str, data: Mapping[str, Any]) -> None:
        pass


def file_name(name: str) -> str:
    """The name as that of a file on every system: a compared checkpoint's stage has a colon, a hub id a slash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".") or "unnamed"


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "type": kind, "data": data}
    text = json.dumps(event, ensure_ascii=False, default=str)
    return text.encode(errors="replace") + b"\n"  # file names need not be valid text


def _ends_within_a_line(path: Path) -> bool:
    """Whether a killed writer left half a line."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


def _rounded(rewards: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _rounded(v) if isinstance(v, Mapping) else round(float(v), 6) for k, v in rewards.items()}
