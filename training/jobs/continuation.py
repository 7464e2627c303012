"""Going on from a finished job: a new job starts with its weights, optimiser, data and position.

The state of a run belongs to its settings. The new job has those of the old one and more steps, so its first worker
takes a copy of the old run, writes the new number of steps into it, and resumes as if its own run had stopped there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.home_paths import located
from training.jobs.context import JobError
from training.jobs.disk import Disk

LINKED = frozenset({".pt", ".npz"})  # only ever replaced as a whole
RECORDS = ("spec.json", "data.json")


def adopted(disk: Disk, folder: Path, job: Mapping[str, Any]) -> bool:
    """Whether the job goes on from another one, whose run is in its folder afterwards.

    Args:
        disk: of the job's folder.
        folder: of the job.
        job: the object of `job.json`.

    Raises:
        JobError: ``state_gone``, if the other job was deleted.
    """
    continues, spec = job.get("continues"), job["spec"]
    if continues is None:
        return False
    source = Path(located(continues, folder)["folder"]) / "runs" / spec["method"]
    target = folder / "runs" / spec["method"]
    if (target / "state.pt").exists():  # an earlier worker of this job took it
        return True
    if not (source / "state.pt").exists():
        detail = f"job {continues['job_id']}, from which this one goes on, was deleted or has no saved state"
        raise JobError("state_gone", detail)
    temporary = target.with_name(f".{target.name}.tmp")

    def copy() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, copy_function=_link_or_copy)
        for name in RECORDS:
            if (temporary / name).exists():
                text = (temporary / name).read_text("utf-8")
                own = json.loads(text.replace(f"jobs/{continues['job_id']}/", f"jobs/{folder.name}/"))
                (temporary / name).write_text(json.dumps(_for_job(own, spec)), "utf-8")
        temporary.rename(target)

    disk.write(copy)
    return True


def _link_or_copy(source: str, target: str) -> None:
    if Path(source).suffix in LINKED:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # on another disk, or a file system without links
    shutil.copyfile(source, target)


def _for_job(recorded: dict[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the old run with what differs in the new job."""
    steps, settings = spec["hyperparameters"]["steps"], recorded.get("spec")
    if settings is None:
        return recorded
    if "hyperparameters" not in settings:
        return {**recorded, "spec": {**settings, "steps": steps}}
    hyperparameters = {**settings["hyperparameters"], "steps": steps}
    changed = {"hyperparameters": hyperparameters, "output_name": spec.get("output_name")}
    return {**recorded, "spec": {**settings, **changed}}
