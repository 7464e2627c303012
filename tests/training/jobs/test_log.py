"""Job logs are complete lines in order, and errors never end a run."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.job_helpers import events
from training.jobs.log import JobLog


def full_disk(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_event_is_one_line_with_time(tmp_path: Path) -> None:
    with JobLog(tmp_path, tensorboard=False) as log:
        log.progress("pesft", 1, 4, 12.34)
        log.metrics("pesft", 1, {"loss/ce": 1.5, "loss/text": float("nan")})
        log.checkpoint("job-step-1", tmp_path / "checkpoints" / "job-step-1", "pesft", 1, {"loss/ce": 1.5})
        log.warning("blank_pictures", "3 of 4")
        log.log("a line\nand another")
        log.report("data", {"kept": 3})
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [row["type"] for row in rows] == ["progress", "metrics", "checkpoint", "warning", "log", "report"]
    assert all(row["time"].endswith("+00:00") for row in rows)
    assert rows[0]["data"] == {"stage": "pesft", "step": 1, "total": 4, "eta_s": 12.3}
    assert rows[1]["data"]["values"] == {"loss/ce": 1.5, "loss/text": None}  # NaN is not valid JSON
    assert rows[5]["data"] == {"kind": "data", "kept": 3}


def test_invalid_file_name_ends_no_run(tmp_path: Path) -> None:
    with JobLog(tmp_path, tensorboard=False) as log:
        log.warning("samples_rejected", os.fsdecode(b"caf\xe9.jsonl:1"))
    assert events(tmp_path, "warning") == [{"code": "samples_rejected", "detail": "caf?.jsonl:1"}]


def test_sample_images_are_saved_below_the_job(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), (1, 2, 3))
    with JobLog(tmp_path, tensorboard=False) as log:
        log.sample(
            "perpo",
            3,
            question="Where?",
            question_image=image,
            steps=[{"text": "I look.", "image": image}, {"text": "There.", "image": None}],
            answer="left",
            reference="left",
            slice="natural",
            rewards={"total": 0.5},
            advantage=1.25,
            prompt=2,
            index=7,
        )
    (sample,) = events(tmp_path, "sample")
    assert sample["question_image"] == "samples/perpo-3-2-7-q.png"
    assert [step["image"] for step in sample["steps"]] == ["samples/perpo-3-2-7-1.png", None]
    with Image.open(tmp_path / sample["steps"][0]["image"]) as saved:
        assert saved.tobytes() == image.tobytes()
    assert (sample["rewards"], sample["advantage"], sample["prompt"], sample["index"]) == ({"total": 0.5}, 1.25, 2, 7)


def test_lost_events_are_counted_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = JobLog(tmp_path, tensorboard=False)
    log.log("before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full_disk)
        log.metrics("pesft", 1, {"loss/ce": 1.0})
        log.metrics("pesft", 2, {"loss/ce": 1.0})
    said = capfd.readouterr().err
    assert said.count("No space left") == 1
    log.log("after")
    log.close()
    assert [e.get("line") or e.get("code") for e in events(tmp_path)] == ["before", "after", "events_lost"]
    assert events(tmp_path, "warning")[0]["detail"].startswith("2 events")


def test_partial_line_does_not_spoil_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = JobLog(tmp_path, tensorboard=False)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:10]))
        log.log("cut")
    log.log("whole")
    log.close()
    cut, whole, lost = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len(cut) == 10
    assert json.loads(whole)["data"] == {"line": "whole"}
    assert json.loads(lost)["data"]["code"] == "events_lost"


def test_unsaved_image_is_missing_from_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = JobLog(tmp_path, tensorboard=False)
    monkeypatch.setattr(Image.Image, "save", full_disk)
    log.sample("pesft", 1, question="?", question_image=Image.new("RGB", (4, 4)), steps=[], answer=None)
    log.close()
    assert events(tmp_path, "sample")[0]["question_image"] is None
    assert list((tmp_path / "samples").iterdir()) == []


def test_half_a_line_spoils_no_event(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"time": "t", "type": "log", "da')
    with JobLog(tmp_path, tensorboard=False) as log:
        log.log("whole")
    first, second = (tmp_path / "events.jsonl").read_text().splitlines()
    assert first.endswith('"da')
    assert json.loads(second)["data"] == {"line": "whole"}


def test_lines_of_threads_do_not_mix(tmp_path: Path) -> None:
    log = JobLog(tmp_path, tensorboard=False)
    threads = [
        threading.Thread(target=lambda k=k: [log.metrics("pesft", k * 100 + i, {"loss/ce": 1.0}) for i in range(50)])
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    steps = [e["step"] for e in events(tmp_path)]
    assert sorted(steps) == [k * 100 + i for k in range(4) for i in range(50)]
    assert all([s for s in steps if s // 100 == k] == list(range(k * 100, k * 100 + 50)) for k in range(4))


def test_tensorboard_reads_the_metrics_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with JobLog(tmp_path) as log:
        for step in (1, 2):
            log.metrics("pesft", step, {"loss/ce": 3.0 / step, "loss/text": float("inf")})
        log.metrics("perpo", 1, {"reward/total": 0.25})
    written = EventAccumulator(str(tmp_path / "tensorboard" / "pesft"))
    written.Reload()
    assert [(e.step, e.value) for e in written.Scalars("loss/ce")] == [(1, 3.0), (2, 1.5)]
    assert written.Tags()["scalars"] == ["loss/ce"]
    assert (tmp_path / "tensorboard" / "perpo").is_dir()


def test_broken_tracker_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.utils.tensorboard

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no tracker today")

    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", refuse)
    with JobLog(tmp_path) as log:
        for step in (1, 2):
            log.metrics("pesft", step, {"loss/ce": 1.0})
    assert [e["step"] for e in events(tmp_path, "metrics")] == [1, 2]
    (line,) = events(tmp_path, "log")
    assert "no tracker today" in line["line"]
