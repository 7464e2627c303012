"""A job whose home was moved resumes there: its records only have relative paths."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.contexts import StopAfter, job
from tests.training.job_helpers import events, make_context, pesft_spec, write_job
from tests.training.jobs.test_pipeline import RECIPE, Stages, run
from training.home_paths import located, record, without_old_home
from training.jobs.context import JobError, JobStopped
from training.jobs.worker import SUCCEEDED, run_job
from training.perpo import job as perpo
from training.pesft import job as pesft


def move(home: Path, to: Path) -> Path:
    """Move the home; nothing is left at the old place."""
    to.parent.mkdir(parents=True, exist_ok=True)
    return home.rename(to)


def records(folder: Path) -> str:
    """Everything the job stores, except the events that the server has read."""
    kept = (path for path in folder.rglob("*") if path.suffix in (".json", ".jsonl") and path.name != "events.jsonl")
    return "\n".join(path.read_text() for path in kept)


@pytest.mark.parametrize(
    "value",
    [
        {"folder": "/a/home/jobs/job_1/checkpoints/x", "steps": 3},
        {"data": {"path": "/a/home/uploads/x.jsonl"}, "base": "nano"},
        {"data": {"pesft": {"path": "/elsewhere/x.jsonl"}, "perpo": {"path": None}}},
        {"stages": {"zero": {"traces": "/a/home/jobs/job_1/zero/traces.jsonl", "report": {"traces": "zero/x"}}}},
        [{"folder": "/a/homestead/x"}],
    ],
)
def test_records_round_trip(value: Any) -> None:
    home = Path("/a/home")
    kept = record(value, home)
    assert "/a/home/" not in json.dumps(kept)
    assert located(kept, home / "jobs" / "job_1") == value
    moved = json.loads(json.dumps(value).replace("/a/home/", "/b/"))
    assert located(kept, Path("/b/jobs/job_1")) == moved


def test_old_records_are_mapped_to_the_job() -> None:
    old = {"folder": "/gone/jobs/job_1/checkpoints/x", "traces": "/gone/jobs/job_1/zero/traces.jsonl"}
    assert located(old, Path("/b/jobs/job_1")) == {
        "folder": "/b/jobs/job_1/checkpoints/x",
        "traces": "/b/jobs/job_1/zero/traces.jsonl",
    }


@pytest.mark.parametrize(
    ("old", "same"),
    [
        ({"data": {"path": "/gone/home/uploads/x.jsonl"}, "lr": 1}, True),
        ({"data": {"path": "/gone/home/uploads/y.jsonl"}, "lr": 1}, False),
        ({"data": {"path": "/gone/home/moreuploads/x.jsonl"}, "lr": 1}, False),
        ({"data": {"path": "/gone/home/uploads/x.jsonl"}, "lr": 2}, False),
    ],
)
def test_only_the_old_home_is_replaced(old: Any, same: bool) -> None:
    new = {"data": {"path": "uploads/x.jsonl"}, "lr": 1}
    assert (without_old_home(old, new) == new) is same


@pytest.mark.parametrize("version", ["this", "an earlier one"])
def test_moved_pipeline_resumes_from_its_stages(version: str, tmp_path: Path) -> None:
    stages, home = Stages(), tmp_path / "home"
    stages.failing["perpo"] = JobError("loss_not_finite", "step 3: nan")
    with pytest.raises(JobError):
        run(job(home / "jobs" / "job_1", RECIPE, tmp_path), stages)
    kept = home / "jobs" / "job_1" / "runs" / "pipeline.json"
    assert str(tmp_path) not in kept.read_text()
    if version != "this":
        kept.write_text(kept.read_text().replace('"jobs/', f'"{home}/jobs/'))
    moved = move(home, tmp_path / "new" / "place") / "jobs" / "job_1"
    stages.failing, stages.ran = {}, []
    run(job(moved, RECIPE, tmp_path, resume=True), stages)
    assert stages.ran == ["perpo", "benchmark"]
    assert stages.contexts["perpo"].base_folder == moved / "checkpoints" / "made-pesft-step-4"
    assert stages.contexts["benchmark"].checkpoints["made-pesft-step-4"].is_dir()


@pytest.mark.parametrize("version", ["this", "an earlier one"])
def test_moved_perpo_job_keeps_its_settings(version: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "uploads").mkdir(parents=True)
    (home / "uploads" / "x.jsonl").write_text("{}")

    def open_run(home: Path, *, resume: bool) -> Any:
        data = {"source": "jsonl", "path": str(home / "uploads" / "x.jsonl")}
        ctx = job(home / "jobs" / "job_1", {"method": "perpo", "data": data}, tmp_path, resume=resume)
        return perpo._open_run(ctx, "perpo", "fp32")

    first = open_run(home, resume=False)
    first.save_state({"step": 3})
    spec = first.path / "spec.json"
    assert str(home) not in spec.read_text()
    if version != "this":
        spec.write_text(spec.read_text().replace('"uploads/', f'"{home}/uploads/'))
    again = open_run(move(home, tmp_path / "new"), resume=True)
    assert again.load_state()["step"] == 3


@pytest.mark.parametrize("version", ["this", "an earlier one"])
def test_moved_job_resumes_identically(
    version: str, tmp_path: Path, tiny_checkpoint: Path, pesft_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and data lie in the home as well; cached data is not read again."""
    home = tmp_path / "home"
    base = Path(shutil.copytree(tiny_checkpoint, home / "checkpoints" / tiny_checkpoint.name))
    folder = home / "jobs" / "job_1"
    ctx = replace(make_context(folder, pesft_spec(), base), stop=StopAfter(3))  # after the data and a few steps
    with pytest.raises(JobStopped):
        pesft.run(ctx)
    ctx.log.close()
    if version != "this":
        about = folder / "runs" / "pesft" / "data.json"
        about.write_text(about.read_text().replace(f'"base": "{base.name}"', f'"base": "{base}"'))
        assert str(base) in about.read_text()
    moved = move(home, tmp_path / "new" / "home")
    write_job(moved / "jobs" / "job_1", pesft_spec(), Path("checkpoints") / base.name)
    monkeypatch.setattr(pesft, "trace_samples", None)
    described = json.loads((moved / "jobs" / "job_1" / "job.json").read_text())
    assert run_job(moved / "jobs" / "job_1", described, resume=True) == SUCCEEDED
    result = json.loads((moved / "jobs" / "job_1" / "result.json").read_text())
    assert result["folder"] == "jobs/job_1/checkpoints/job-step-6"
    end, undisturbed = (events(path, "metrics")[-1] for path in (moved / "jobs" / "job_1", pesft_job))
    assert end["values"]["loss/ce"] == undisturbed["values"]["loss/ce"]
    assert version != "this" or str(tmp_path) not in records(moved / "jobs" / "job_1")
