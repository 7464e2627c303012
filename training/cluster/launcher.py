"""Runs a job on a Ray cluster: ``python -m training.cluster.launcher JOB_DIR [--resume]``, for ``OMNI_R1_JOBS=ray``.

Stands in for ``python -m training.jobs.worker``, which it starts in an actor on a node with room: the server's job
runner starts, follows and stops it in the same way, and it exits as the worker did. The worker writes the job's folder
itself, so home and checkpoints must lie on a file system that all nodes share. One node runs all ranks of a job.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.cluster.connect import ADDRESS, RAY, ROOM_S, connect
from model.cluster.words import why_died, why_refused
from training.cluster.actor import JobActor, NodeError
from training.cluster.room import needs_of, want_of_room
from training.jobs.context import JobError
from training.jobs.disk import NO_WAIT, Disk
from training.jobs.worker import STOPPED, fail

# Variables of this process that the worker on the node gets, too.
PASSED = ("OMNI_R1_", "OMP_", "MKL_", "PYTHONUNBUFFERED", "HF_", "JUDGE_", "WANDB_", "MLFLOW_")


def main(argv: list[str] | None = None) -> int:
    """Run the job given on the command line; return the exit code, negative for the signal that ended the worker."""
    parser = argparse.ArgumentParser(prog="python -m training.cluster.launcher", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="JOB_DIR")
    parser.add_argument("--resume", action="store_true", help="resume from the states of an earlier run")
    parser.add_argument("--attached", action="store_true", help="stdin is a pipe from the server: stop when it closes")
    arguments = parser.parse_args(argv)
    folder = arguments.folder.resolve()
    os.environ.update({name: value for name, value in RAY.items() if name not in os.environ})
    try:
        job = json.loads((folder / "job.json").read_text("utf-8"))
        return asyncio.run(_run(folder, job, resume=arguments.resume, attached=arguments.attached))
    except JobError as error:
        return fail(NO_WAIT, folder, error.code, error.detail)
    except (OSError, ValueError, KeyError) as error:
        return fail(NO_WAIT, folder, "bad_job", f"{folder / 'job.json'}: {error}")


async def _run(folder: Path, job: Mapping[str, Any], *, resume: bool, attached: bool) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if attached:
        closed = lambda: loop.call_soon_threadsafe(stop.set)  # noqa: E731
        threading.Thread(target=_when_closed, args=(0, closed), name="server watch", daemon=True).start()
    try:
        connect(own_cpus=1)
    except SystemExit:  # a signal, which Ray handles so while it connects
        return STOPPED
    except Exception as error:  # Ray has no class of its own for what goes wrong here
        detail = f"Ray at {os.environ.get(ADDRESS)} cannot be reached: {why_refused(error)}"
        raise JobError("cluster_unreachable", detail) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)  # again: Ray has set its own
    return await _follow(folder, job["spec"], ["--resume"] if resume else [], stop)


async def _follow(folder: Path, spec: Mapping[str, Any], options: list[str], stop: asyncio.Event) -> int:
    """Start the worker on a node and return its exit code."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    device = os.environ.get("OMNI_R1_DEVICE", "auto")
    needs = needs_of(spec, device, has_gpus=ray.cluster_resources().get("GPU", 0) > 0)
    actor: Any = (
        ray.remote(JobActor)
        .options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            max_restarts=0,  # the job is resumed instead
            scheduling_strategy="SPREAD",
        )
        .remote()
    )
    room = asyncio.create_task(_report_room(folder, needs))
    stopping = asyncio.create_task(stop.wait())
    try:
        placed = asyncio.ensure_future(actor.__ray_ready__.remote())
        await asyncio.wait({placed, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not placed.done():
            return STOPPED  # nothing has begun
        placed.result()
        room.cancel()
        await asyncio.wait([room])
        environment = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
        ended = asyncio.ensure_future(actor.run.remote(str(folder), options, environment))
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            with contextlib.suppress(RayError):  # `ended` says so, too
                await actor.stop.remote()
        code = await ended
        return STOPPED if code is None else int(code)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, NodeError):
            raise JobError("bad_node", str(cause)) from error
        raise JobError("node_died", why_died(str(error))) from error
    except RayError as error:
        detail = f"{why_died(str(error))}; the job resumes from its last saved state"
        raise JobError("node_died", detail) from error
    finally:
        room.cancel()
        stopping.cancel()


async def _report_room(folder: Path, needs: Mapping[str, float]) -> None:
    """Say in the job's folder what it waits for, until cancelled."""
    import ray

    disk = Disk(folder)
    try:
        while True:
            await asyncio.sleep(ROOM_S)
            with contextlib.suppress(Exception):  # the head is away, which ends this process
                nodes = [node["Resources"] for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
                free = await asyncio.to_thread(ray.available_resources)
                detail = want_of_room(needs, free, nodes)
                disk.note(None if detail is None else {"for": "cluster", "detail": detail})
    finally:
        disk.note(None)
        disk.close()


def _when_closed(descriptor: int, then: Any) -> None:
    with contextlib.suppress(OSError):
        while os.read(descriptor, 4096):
            pass
    then()


if __name__ == "__main__":
    code = main()
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    if code < 0:  # as the worker ended
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
