"""Trackers that a job reports its metrics to, by name: Weights & Biases, and those of entry points.

A tracker is optional and never fatal. Each has a thread and a bounded queue of its own: one that is slow loses rows,
one that fails is given up, and the job only gets a warning. The job's log itself writes TensorBoard's files.

A tracker of your own is an entry point of the group `omni_r1.trackers`: a function `(folder, about)` that returns an
object with `metrics(stage, step, values)` and `close()`. `about` is `{job_id, spec}`.
"""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from training.entry_points import TRACKERS, installed

MOST_WAITING = 1_000  # rows per tracker
PATIENCE_S = 10.0  # of the job's end

Warn = Callable[[str, str], None]  # code, detail


class Tracker(Protocol):
    """Where metrics go."""

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One row; the values are finite."""
        ...

    def close(self) -> None:
        """Called once, after the last row."""
        ...


def open_wandb(folder: Path, about: Mapping[str, Any]) -> Tracker:
    """A run of Weights & Biases, by its own package and settings (`WANDB_API_KEY`, `WANDB_PROJECT`, `WANDB_MODE`)."""
    return _Wandb(importlib.import_module("wandb"), folder, about)


class _Wandb:
    def __init__(self, wandb: Any, folder: Path, about: Mapping[str, Any]) -> None:
        config = {"config": about["spec"], "dir": str(folder)}
        self._run = wandb.init(id=about["job_id"], name=about["job_id"], resume="allow", **config)
        self._defined: set[str] = set()

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._defined:  # a pipeline's stages each count from 1
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._defined.add(stage)
        self._run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}})

    def close(self) -> None:
        self._run.finish()


BUILT_IN: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"wandb": open_wandb}


class Trackers:
    """The trackers of one job."""

    def __init__(self, names: Sequence[str], folder: Path, about: Mapping[str, Any], warn: Warn) -> None:
        """Open them, each in its own thread; `warn(code, detail)` reports those that fail."""
        self._followers = [_Follower(name, folder, about, warn) for name in names]

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Hand a row to every tracker that keeps up; returns at once."""
        for follower in self._followers:
            follower.put((stage, step, values))

    def close(self) -> None:
        """Wait a bounded time for the last rows."""
        for follower in self._followers:
            follower.end(PATIENCE_S)


class _Follower:
    """A tracker with its thread and queue."""

    def __init__(self, name: str, folder: Path, about: Mapping[str, Any], warn: Warn) -> None:
        self._name, self._folder, self._about, self._warn = name, folder, about, warn
        self._rows: queue.Queue[tuple[str, int, Mapping[str, float]] | None] = queue.Queue(MOST_WAITING)
        self._lost = 0
        self._gone = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, row: tuple[str, int, Mapping[str, float]]) -> None:
        if self._gone:
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._lost += 1
            if self._lost == 1:
                self._warn("tracker_behind", f"{self._name} does not keep up: rows of metrics are missing there")

    def end(self, patience_s: float) -> None:
        try:
            self._rows.put_nowait(None)
        except queue.Full:
            return  # it does not keep up; the process ends without it
        self._thread.join(patience_s)

    def _run(self) -> None:
        try:
            tracker = self._open()
            while (row := self._rows.get()) is not None:
                tracker.metrics(*row)
            tracker.close()
        except ModuleNotFoundError as error:
            self._give_up(f"the package {error.name} is not installed")
        except BaseException as error:  # whatever a tracker raises, the job goes on
            self._give_up(f"{type(error).__name__}: {error}")

    def _open(self) -> Tracker:
        if self._name in BUILT_IN:
            return BUILT_IN[self._name](self._folder, self._about)
        point = installed(TRACKERS).get(self._name)
        if point is None:
            raise LookupError("no installed package has a tracker of this name")
        tracker: Tracker = point.load()(self._folder, self._about)
        return tracker

    def _give_up(self, why: str) -> None:
        self._gone = True
        self._warn("tracker_failed", f"{self._name}: {why}")
