"""Trackers: metrics reach them, and none of their faults reaches the job."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.training.job_helpers import events
from training.jobs import trackers
from training.jobs.log import JobLog, file_name

ABOUT = {"job_id": "job_1", "spec": {"seed": 3}}


class Recording:
    """A tracker that keeps its rows, after `gate` is open."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.rows: list[tuple[str, int, dict[str, float]]] = []
        self.closed = False
        self.gate = gate

    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if self.gate is not None:
            self.gate.wait()
        self.rows.append((stage, step, dict(values)))

    def close(self) -> None:
        self.closed = True


def install(monkeypatch: pytest.MonkeyPatch, **openers: Any) -> None:
    monkeypatch.setattr(trackers, "BUILT_IN", {**trackers.BUILT_IN, **openers})


def run(folder: Path, names: list[str], rows: int = 3) -> None:
    with JobLog(folder, tensorboard=False) as log:
        log.report_to(names, ABOUT)
        for step in range(1, rows + 1):
            log.metrics("pesft", step, {"loss/ce": 1.0 / step, "kl": float("nan")})


def warnings(folder: Path) -> list[tuple[str, str]]:
    return [(event["code"], event["detail"]) for event in events(folder, "warning")]


def test_every_row_reaches_every_tracker_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Recording(), Recording()
    install(monkeypatch, one=lambda *_: one, two=lambda *_: two)
    run(tmp_path, ["one", "two"])
    assert one.rows == two.rows == [("pesft", step, {"loss/ce": round(1.0 / step, 7)}) for step in (1, 2, 3)]
    assert one.closed
    assert two.closed
    assert warnings(tmp_path) == []


def refuse(*_: Any) -> None:
    raise ConnectionError("it is down")


class Failing(Recording):
    def metrics(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        raise SystemExit("whatever")


def missing(*_: Any) -> None:
    raise ModuleNotFoundError("No module named 'absent'", name="absent")


@pytest.mark.parametrize(
    ("opener", "words"),
    [
        (refuse, "it is down"),
        (lambda *_: Failing(), "whatever"),
        (missing, "absent is not installed"),
        (None, "no inst"),
    ],
)
def test_failing_tracker_is_given_up_with_one_warning(
    opener: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Recording()
    install(monkeypatch, good=lambda *_: good, **({} if opener is None else {"bad": opener}))
    run(tmp_path, ["bad", "good"])
    assert [event["step"] for event in events(tmp_path, "metrics")] == [1, 2, 3]
    assert len(good.rows) == 3
    ((code, detail),) = warnings(tmp_path)
    assert code == "tracker_failed"
    assert words in detail


def test_hanging_tracker_delays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job writes more rows than the queue holds while the tracker waits for a gate that opens only at the end."""
    gate = threading.Event()
    slow = Recording(gate)
    install(monkeypatch, slow=lambda *_: slow)
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.0)
    run(tmp_path, ["slow"], rows=trackers.MOST_WAITING + 50)
    assert slow.rows == []
    assert len(events(tmp_path, "metrics")) == trackers.MOST_WAITING + 50
    assert [code for code, _ in warnings(tmp_path)] == ["tracker_behind"]
    gate.set()


def test_wandb_gets_each_stage_on_its_own_step_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Run:
        def define_metric(self, name: str, *, step_metric: str) -> None:
            calls.append(("define", (name, step_metric)))

        def log(self, values: dict[str, float]) -> None:
            calls.append(("log", values))

        def finish(self) -> None:
            calls.append(("finish", None))

    def init(**options: Any) -> Run:
        calls.append(("init", (options["id"], options["resume"], options["config"])))
        return Run()

    package = ModuleType("wandb")
    package.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    run(tmp_path, ["wandb"], rows=1)
    assert calls == [
        ("init", ("job_1", "allow", {"seed": 3})),
        ("define", ("pesft/*", "pesft/step")),
        ("log", {"pesft/step": 1, "pesft/loss/ce": 1.0}),
        ("finish", None),
    ]


def test_names_of_files_are_valid_everywhere(tmp_path: Path) -> None:
    from PIL import Image

    with JobLog(tmp_path) as log:
        log.metrics("benchmark:owner/name", 1, {"accuracy/all": 1.0})
        saved = log.save_image(Image.new("RGB", (2, 2)), "benchmark:owner/name-1-0-0")
    assert saved == "samples/benchmark-owner-name-1-0-0.png"
    names = {part for path in tmp_path.rglob("*") for part in path.relative_to(tmp_path).parts}
    assert [name for name in names if set(name) & set('<>:"/\\|?*')] == []
    assert [file_name(name) for name in ("a:b", "..", "x/y:z", "ok-1.2_3")] == ["a-b", "unnamed", "x-y-z", "ok-1.2_3"]
