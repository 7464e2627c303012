"""Fetches checkpoints from the hub, each in a process of its own (:mod:`model.checkpoint.hub_child`).

A hub may accept a connection and never answer, or send one byte a second. Fetches without progress are therefore
aborted, only a few run at once, and none outlives the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.common.locations import ROOT
from app.contract.problems import Problem
from model.checkpoint.shards import CheckpointError

log = logging.getLogger("omni_r1.checkpoints")

COMMAND = (sys.executable, "-m", "model.checkpoint.hub_child")
MOST = 4  # fetches at once
# The hub's client reports data in pieces of 10 MB: one may take this many times as long as the list of files.
DATA_PATIENCE = 10
_OURS = "OMNI_R1_"


class HubFetcher:
    """Fetches checkpoints for one server."""

    def __init__(self, *, timeout_s: float, command: Sequence[str] = COMMAND) -> None:
        """`timeout_s` limits the time until the hub has listed a checkpoint's files."""
        self._timeout_s = timeout_s
        self._command = tuple(command)
        self._slots = asyncio.Semaphore(MOST)
        self._running: set[asyncio.subprocess.Process] = set()
        self._closed = False

    async def fetch(self, hub_id: str) -> Path:
        """Return the folder of `hub_id` in the hub's cache.

        Raises:
            Problem: ``hub_unavailable`` on a timeout or with too many running fetches; ``stopping``.
            CheckpointError: ``download_failed``.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError:
            raise _unavailable(f"{MOST} other checkpoints are being fetched") from None
        try:
            return await self._fetch(hub_id)
        finally:
            self._slots.release()

    async def _fetch(self, hub_id: str) -> Path:
        if self._closed:
            raise _stopping()
        log.info("fetching %s from the hub", hub_id)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        process = await asyncio.create_subprocess_exec(
            *self._command,
            hub_id,
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._running.add(process)
        try:
            return await self._follow(process, hub_id)
        finally:
            self._running.discard(process)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _follow(self, process: asyncio.subprocess.Process, hub_id: str) -> Path:
        assert process.stdout is not None
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    line = await process.stdout.readline()
            except TimeoutError:
                raise _unavailable(f"{hub_id}: the hub is not responding") from None
            message = _parsed(line)
            if "folder" in message:
                return Path(message["folder"])
            if "error" in message:
                _raise(hub_id, message["error"])
            if not line:
                if self._closed:
                    raise _stopping()
                raise CheckpointError("download_failed", f"{hub_id}: the download process died")
            if "bytes" in message:
                deadline = time.monotonic() + DATA_PATIENCE * self._timeout_s

    def kill(self) -> None:
        """Kill every fetch; for shutdown."""
        self._closed = True
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _unavailable(why: str) -> Problem:
    return Problem("hub_unavailable", f"{why}; try again later", headers={"Retry-After": "30"})


def _stopping() -> Problem:
    return Problem("stopping", "retry when the server is back", headers={"Retry-After": "5"})


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _raise(hub_id: str, error: dict[str, str]) -> None:
    if error["code"] == "hub_silent":
        raise _unavailable(f"{hub_id}: the hub is not responding")
    raise CheckpointError(error["code"], error["detail"])
