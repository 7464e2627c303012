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
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from model.cluster.connect import ADDRESS, RAY, ROOM_S, connect
from model.cluster.words import why_died, why_refused
from training.cluster.actor import Ended, JobActor, NodeError, sizes_of
from training.cluster.room import lack_of, needs_of
from training.jobs.context import JobError
from training.jobs.disk import NO_WAIT, Disk
from training.jobs.worker import STOPPED, fail, when_closed

# Variables of this process that the worker on the node gets, too, and those that it must not get.
PASSED = ("OMNI_R1_", "OMP_", "MKL_", "PYTHONUNBUFFERED", "HF_", "JUDGE_", "REWARD_", "WANDB_", "MLFLOW_", "RAY_AUTH_")
PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"})
WITHHELD = frozenset({"OMNI_R1_API_KEY", "OMNI_R1_DATABASE_URL"})
# Ray would kill the worker when it ends an actor whose launcher is gone; it saves and ends by itself.
KEEP_WORKER = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}}
SEEN_S = 90.0  # for the worker's files to be seen through a network file system's caches
SCATTERED = "there is room for it, but not on one node"


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
        spec = json.loads((folder / "job.json").read_text("utf-8"))["spec"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return fail(NO_WAIT, folder, "bad_job", f"{folder / 'job.json'}: {error}")
    try:
        return asyncio.run(_run(folder, spec, resume=arguments.resume, attached=arguments.attached))
    except JobError as error:
        return fail(NO_WAIT, folder, error.code, error.detail)


async def _run(folder: Path, spec: Mapping[str, Any], *, resume: bool, attached: bool) -> int:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    if attached:
        then = partial(loop.call_soon_threadsafe, stop.set)
        threading.Thread(target=when_closed, args=(0, then), name="server watch", daemon=True).start()
    try:
        address = connect(own_cpus=1)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)  # again: Ray has set its own
    except SystemExit:  # a signal, which Ray handles so while it connects
        return STOPPED
    except Exception as error:  # Ray has no class of its own for what goes wrong here
        detail = f"Ray at {os.environ.get(ADDRESS)} cannot be reached: {why_refused(error)}"
        raise JobError("cluster_unreachable", detail) from error
    passed = _environment() | {ADDRESS: address}  # a worker may want actors of its own
    return await _follow(folder, spec, ["--resume"] if resume else [], passed, stop)


async def _follow(
    folder: Path, spec: Mapping[str, Any], options: list[str], passed: Mapping[str, str], stop: asyncio.Event
) -> int:
    """Start the worker on a node, with the environment ``passed``, and return its exit code."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    stopping, tasks = asyncio.create_task(stop.wait()), list[asyncio.Task[Any]]()
    code, detail = "node_died", "{}"
    try:
        device = os.environ.get("OMNI_R1_DEVICE", "auto")
        needs = needs_of(spec, device, has_gpus=ray.cluster_resources().get("GPU", 0) > 0)
        tasks.append(room := asyncio.create_task(_report_room(folder, needs)))
        placing: Any = ray.remote(JobActor).options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            max_restarts=0,  # the job is resumed instead
            scheduling_strategy="SPREAD",
            runtime_env=KEEP_WORKER,
        )
        actor = placing.remote()
        placed = asyncio.ensure_future(actor.__ray_ready__.remote())
        await asyncio.wait({placed, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not placed.done():
            return STOPPED  # nothing has begun
        code = "bad_node"
        placed.result()
        code, detail = "node_died", "{}; the job resumes from its last saved state"
        room.cancel()
        await asyncio.wait([room])
        ended = asyncio.ensure_future(actor.run.remote(str(folder), options, passed))
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            with contextlib.suppress(RayError):  # `ended` says so, too
                await actor.stop.remote()
        end: Ended | None = await ended
        if end is None:
            return STOPPED
        await _see(folder, end)
        return end.code
    except RayTaskError as error:
        if isinstance(error.cause, NodeError):
            raise JobError("bad_node", str(error.cause)) from error
        raise JobError(code, detail.format(why_died(str(error)))) from error
    except RayError as error:
        raise JobError(code, detail.format(why_died(str(error)))) from error
    finally:
        for task in (stopping, *tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _environment() -> dict[str, str]:
    """The variables that the worker gets from here."""
    wanted = {name for name in os.environ if name.startswith(PASSED) or name.upper() in PROXIES}
    return {name: os.environ[name] for name in wanted - WITHHELD}


async def _see(folder: Path, end: Ended) -> None:
    """Wait until this machine sees what the worker has written."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SEEN_S):
            while not end.sizes.items() <= (await asyncio.to_thread(sizes_of, folder)).items():
                await asyncio.sleep(0.2)


async def _report_room(folder: Path, needs: Mapping[str, float]) -> None:
    """Say in the job's folder what it waits for, until cancelled."""
    disk = Disk(folder)
    try:
        for look in count():
            await asyncio.sleep(ROOM_S)
            with contextlib.suppress(Exception):  # the head is away, which ends this process
                detail = await lack_of(needs) or (SCATTERED if look else None)
                disk.note(None if detail is None else {"for": "cluster", "detail": detail})
    finally:
        disk.note(None)
        disk.close()


if __name__ == "__main__":
    code = main()
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    if code < 0:  # as the worker ended
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(abs(code))
