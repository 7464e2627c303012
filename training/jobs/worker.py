"""Runs one job: ``python -m training.jobs.worker JOB_DIR [--resume]``, as the server's job runner starts it.

Reads ``job.json``, lowers its own priority, limits its threads and runs the method. It writes to the job's folder:
``events.jsonl`` while running, ``result.json`` or ``error.json`` at the end.

Exit codes: 0 succeeded; 3 stopped at a step boundary with its state saved (SIGTERM or SIGINT); 1 failed.
Knows nothing of HTTP or the database.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model import log_lines
from model.checkpoint.shards import CheckpointError
from training.jobs.context import JobError
from training.jobs.disk import NO_WAIT, Disk, is_full
from training.jobs.ranks import run_ranks
from training.parallel.group import ALONE, Ranks

SUCCEEDED, FAILED, STOPPED = 0, 1, 3
REPORTS = ("result.json", "error.json")
PINS = "hub-data.json"  # {address of data on the hub: the same with its commit}
NO_MEMORY = (
    "free memory and resume the job, or start one that takes less: `recompute`, `lora`, a smaller part of a batch or a "
    "shorter `context`"
)
NICENESS = 10  # the server's threads have priority
MODULES = {
    "pesft": "training.pesft.job",
    "perpo": "training.perpo.job",
    "zero": "training.zero.job",
    "benchmark": "training.benchmark.job",
    "pipeline": "training.jobs.pipeline",
}

Run = Callable[[Any], dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    """Run the job given on the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.jobs.worker", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="JOB_DIR")
    parser.add_argument("--resume", action="store_true", help="resume from the states of an earlier run")
    parser.add_argument("--attached", action="store_true", help="stdin is a pipe from the server: stop when it closes")
    parser.add_argument("--rank", action="store_true", help="one of several processes that a worker has started")
    arguments = parser.parse_args(argv)
    if arguments.attached or arguments.rank:
        then = _end if arguments.rank else _stop_with_server
        threading.Thread(target=when_closed, args=(os.dup(0), then), name="server watch", daemon=True).start()
    folder = arguments.folder.resolve()
    try:
        job = json.loads((folder / "job.json").read_text("utf-8"))
        threads, ranks = int(job["spec"].get("threads", 1)), int(job["spec"].get("num_gpus", 1))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return fail(NO_WAIT, folder, "bad_job", f"{folder / 'job.json'}: {error}")
    # Must precede the import of torch, whose thread pools take their size from here.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    _lower_priority()
    sys.stdout, sys.stderr = _Output(1), _Output(2)
    if ranks > 1 and not arguments.rank:
        return _run_ranks(folder, job, resume=arguments.resume)
    return run_job(folder, job, resume=arguments.resume, threads=threads)


def _run_ranks(folder: Path, job: Mapping[str, Any], *, resume: bool) -> int:
    for name in REPORTS:
        (folder / name).unlink(missing_ok=True)
    try:
        return run_ranks(folder, job, resume=resume, stopped=STOPPED)
    except JobError as error:
        return fail(NO_WAIT, folder, error.code, error.detail)


def run_job(
    folder: Path, job: Mapping[str, Any], *, resume: bool = False, threads: int = 1, run: Run | None = None
) -> int:
    """Run the job described by a ``job.json`` object in its folder; return the exit code.

    Args:
        folder: of the job.
        job: the object of ``job.json``.
        resume: continue from saved states.
        threads: torch's thread count.
        run: overrides the method's function.
    """
    import torch
    from pydantic import ValidationError

    from model.engine.device import is_shortage, resolve_device
    from training.data.hub import with_pins
    from training.home_paths import located
    from training.jobs.context import JobContext, JobStopped
    from training.jobs.continuation import adopted
    from training.jobs.log import JobLog, MutedLog
    from training.jobs.loop import StopFlag, provenance
    from training.parallel.group import joined
    from training.spec.spec import parse_spec

    torch.set_num_threads(threads)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopFlag())
        ranks = stack.enter_context(joined(os.environ.get("OMNI_R1_DEVICE", "auto")))
        log = stack.enter_context(JobLog(folder, stop=stop) if ranks.first else MutedLog(folder))
        if ranks.size == 1:  # otherwise the worker that started the ranks has done so
            for name in REPORTS:
                (folder / name).unlink(missing_ok=True)
        if ranks.first:
            log.disk.prepare()
        try:
            if ranks.first:
                _pin_data(log.disk, folder, job)
                adopted(log.disk, folder, job)
            ranks.wait()
            spec = parse_spec(with_pins(located(job["spec"], folder), _pins(folder)))
            known = located([{"name": k, "folder": v} for k, v in job.get("checkpoints", {}).items()], folder)
            log.report_to(spec.report_to, {"job_id": folder.name, "spec": spec.resolved()})
            context = JobContext(
                folder=folder,
                spec=spec,
                base_folder=Path(located(job["base"], folder)["folder"]),
                checkpoints={one["name"]: Path(one["folder"]) for one in known},
                log=log,
                output_prefix=job.get("output_prefix") or spec.output_name or folder.name,
                resume=resume or job.get("continues") is not None,
                stop=stop,
                device=str(ranks.device_of(resolve_device(os.environ.get("OMNI_R1_DEVICE", "auto")))),
                ranks=ranks,
                provenance={**provenance(), "seed": spec.seed},
            )
            method = run if run is not None else importlib.import_module(MODULES[spec.method]).run
            result = context.record(method(context))
            if ranks.first:
                _write(log.disk, folder / "result.json", result)
            return SUCCEEDED
        except JobStopped:
            log.log("stopped at a step boundary; the state is saved")
            return STOPPED
        except KeyboardInterrupt:  # the second signal
            return fail(log.disk, folder, "killed", "a second signal ended the job before its state was saved")
        except JobError as error:
            return fail(log.disk, folder, error.code, error.detail, ranks)
        except ValidationError as error:
            return fail(log.disk, folder, "bad_spec", str(error), ranks)
        except Exception as error:
            if stop and is_full(error):
                _write_log(f"stopped while waiting for disk space ({error}); progress after the last save is lost\n")
                return STOPPED
            if stop and not ranks.first:  # rank 0 stopped where nothing needs saving, and left this one waiting
                return STOPPED
            _write_log(traceback.format_exc())
            return fail(log.disk, folder, *_classify(error, is_shortage), ranks)


def _pin_data(disk: Disk, folder: Path, job: Mapping[str, Any]) -> None:
    """Ask the hub for the commits of the job's data, once: a resumed or continued job reads the same rows."""
    from training.data.hub import pins_of
    from training.data.row_images import DataError
    from training.home_paths import located

    if (folder / PINS).exists():
        return
    continues = job.get("continues")
    known = {} if continues is None else _pins(Path(located(continues, folder)["folder"]))
    try:
        pins = pins_of(job["spec"], known)
    except DataError as error:
        raise JobError("bad_data", str(error)) from error
    if pins:
        disk.replace(folder / PINS, lambda path: path.write_text(json.dumps(pins), "utf-8"))


def _pins(folder: Path) -> dict[str, str]:
    path = folder / PINS
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def _classify(error: Exception, is_shortage: Callable[[BaseException], bool]) -> tuple[str, str]:
    """Code and message for an unexpected error."""
    detail = f"{type(error).__name__}: {error}"
    if is_full(error):
        return "disk_full", detail
    if is_shortage(error):
        return "out_of_memory", f"{detail}; {NO_MEMORY}"
    if isinstance(error, FloatingPointError):
        return "loss_not_finite", str(error)
    if isinstance(error, CheckpointError):
        return "bad_checkpoint", str(error)
    return "internal", detail


def fail(disk: Disk, folder: Path, code: str, detail: str, ranks: Ranks = ALONE) -> int:
    """Report a failure. Of several ranks the first report counts: losing a rank is what fails the others."""
    if ranks.size > 1:
        detail = f"rank {ranks.rank}: {detail}"
    _write_log(f"failed, {code}: {detail}\n")
    if ranks.size > 1 and (folder / "error.json").exists():
        return FAILED
    try:
        _write(disk, folder / "error.json", {"code": code, "detail": detail})
    except OSError as error:
        _write_log(f"error.json could not be written: {error}\n")
    return FAILED


class _Output(io.TextIOBase):
    """Stdout and stderr, possibly files on a full disk: output that does not fit is lost without an error."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode(errors="replace"))
        return len(text)

    def fileno(self) -> int:
        return self._descriptor


def _write_log(text: str) -> None:
    """Write to `log.txt`, whose disk may be full."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _write(disk: Disk, path: Path, data: Mapping[str, Any]) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n"
    disk.replace(path, lambda temporary: temporary.write_text(text, "utf-8", "replace"))  # file names may not be text


def when_closed(descriptor: int, then: Callable[[], object]) -> None:
    """Do something once a pipe closes, that is, when the process on its other end is gone for any reason."""
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:
        pass
    then()


def _end() -> None:
    """End a rank whose worker is gone: nothing would end it later."""
    os._exit(FAILED)


def _stop_with_server() -> None:
    """Stop this process at its next step boundary."""
    stop_flag = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)  # the StopFlag, once installed
    if stop_flag is None:
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        stop_flag.request()


def _lower_priority() -> None:
    try:
        os.nice(NICENESS)
    except (AttributeError, OSError):
        _write_log("the priority could not be lowered\n")


if __name__ == "__main__":
    log_lines.configure("text", "info")  # to `log.txt`, for people
    sys.exit(main())
