"""How a job tells what happens: one JSON object a line in ``events.jsonl``, and TensorBoard files beside it.

The worker is the only writer of its folder. Whatever fails here, a full disk or a tracker, never ends a training run:
the log says so once, counts what it lost, and goes on; once it can write again it tells how many rows are missing.

A run that is resumed tells the steps after its last saved state again: of two rows for one step the later one counts.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

EVENTS, SAMPLES, TENSORBOARD = "events.jsonl", "samples", "tensorboard"


class JobLog:
    """The events of one job, in the order in which they are told. Safe to call from several threads."""

    def __init__(self, folder: Path, *, tensorboard: bool = True) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._file: int | None = None
        self._torn = False  # the last write ended within a line
        self._lost = 0
        self._trackers: dict[str, Any] | None = {} if tensorboard else None

    def __enter__(self) -> JobLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush and close what is open; telling more opens it again."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            trackers, self._trackers = self._trackers, None if self._trackers is None else {}
        for tracker in (trackers or {}).values():
            try:
                tracker.close()
            except Exception as error:
                self._say(f"TensorBoard's files could not be closed: {error}")

    def progress(self, stage: str, step: int, total: int, eta_s: float | None = None) -> None:
        """How far a stage is."""
        eta = None if eta_s is None or not math.isfinite(eta_s) else round(eta_s, 1)
        self._emit("progress", {"stage": stage, "step": step, "total": total, "eta_s": eta})

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, keys as ``group/name``; what is not finite is told as null."""
        clean = {k: round(float(v), 7) if math.isfinite(v) else None for k, v in values.items()}
        self._emit("metrics", {"stage": stage, "step": step, "values": clean})
        self._track(stage, step, {k: v for k, v in clean.items() if v is not None})

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
        rewards: Mapping[str, float] | None = None,
        advantage: float | None = None,
        prompt: int = 0,
        index: int = 0,
    ) -> None:
        """One trace that the model made, with its rewards.

        Args:
            stage: and step, when it was made.
            step: see above.
            question: as it was asked.
            question_image: a picture, or its path below the job's folder.
            steps: ``{"text": str, "image": picture, path or None}`` each.
            answer: None where the trace has none.
            reference: the right one.
            slice: of the world or the benchmark.
            rewards: ``total, accuracy, format, perception``.
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
                "question_image": self.picture(question_image, f"{name}-q"),
                "steps": [
                    {"text": s.get("text", ""), "image": self.picture(s.get("image"), f"{name}-{k}")}
                    for k, s in enumerate(steps, 1)
                ],
                "answer": answer,
                "reference": reference,
                "slice": slice,
                "rewards": {k: round(float(v), 6) for k, v in (rewards or {}).items()},
                "advantage": None if advantage is None else round(float(advantage), 6),
                "prompt": prompt,
                "index": index,
            },
        )

    def picture(self, image: Image | str | None, name: str) -> str | None:
        """Save a picture as ``samples/<name>.png``; its path below the job's folder, or None where there is none."""
        if image is None or isinstance(image, str):
            return image
        path = self.folder / SAMPLES / f"{name}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
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
        """A sign of failure that does not end the job."""
        self._emit("warning", {"code": code, "detail": detail})
        self._say(f"warning {code}: {detail}")

    def log(self, line: str) -> None:
        """A line for people."""
        self._emit("log", {"line": line})
        self._say(line)

    def report(self, kind: str, data: Mapping[str, Any]) -> None:
        """A larger result: a bootstrapping report, a benchmark's tables."""
        self._emit("report", {"kind": kind, **data})

    def _emit(self, kind: str, data: Mapping[str, Any]) -> None:
        event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "type": kind, "data": data}
        text = json.dumps(event, ensure_ascii=False, default=str)
        line = text.encode(errors="replace") + b"\n"  # a file's name need not be text
        with self._lock:
            lost = self._lost
            try:
                self._write(line)
                if lost:
                    self._lost = 0
                    self._write(_lost_event(lost))
            except OSError as error:
                self._lose(f"events are being lost: {error}")

    def _write(self, line: bytes) -> None:
        if self._file is None:
            path = self.folder / EVENTS
            self._torn = _ends_within_a_line(path)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        whole = b"\n" + line if self._torn else line
        written = os.write(self._file, whole)  # what raises has written nothing
        self._torn = written < len(whole)
        if self._torn:
            raise OSError(f"{written} of {len(whole)} bytes were written")

    def _track(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        trackers = self._trackers
        if trackers is None:
            return
        try:
            if stage not in trackers:
                from torch.utils.tensorboard import SummaryWriter

                trackers[stage] = SummaryWriter(str(self.folder / TENSORBOARD / stage), purge_step=step)
            for name, value in values.items():
                trackers[stage].add_scalar(name, value, step)
            trackers[stage].flush()
        except Exception as error:  # a tracker is a convenience: without it the job goes on
            self._trackers = None
            self.log(f"TensorBoard's files are given up: {type(error).__name__}: {error}")

    def _lose(self, why: str) -> None:
        self._lost += 1
        if self._lost == 1:
            self._say(why)

    @staticmethod
    def _say(line: str) -> None:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # log.txt stands on the same disk


def _lost_event(lost: int) -> bytes:
    event = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "type": "warning",
        "data": {"code": "events_lost", "detail": f"{lost} events or pictures could not be written"},
    }
    return json.dumps(event).encode() + b"\n"


def _ends_within_a_line(path: Path) -> bool:
    """Whether a killed writer left half a line."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False
