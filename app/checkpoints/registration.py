"""Registers checkpoints from a folder or hub id, and deletes unused ones.

Nothing is copied or loaded: a registered folder stays where it is and is read completely before it gets a name.
Knows no HTTP; errors are :class:`app.contract.problems.Problem`.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from app.checkpoints import table
from app.checkpoints.folder import CheckpointInfo, Record, Source, outside, read_folder
from app.checkpoints.registry import CheckpointRegistry
from app.checkpoints.view import as_json
from app.common import pools
from app.contract.problems import Problem, field_problem
from app.contract.schemas import CHECKPOINT_NAME, CheckpointCreate
from app.storage.database import Database, now
from app.storage.home import Home
from app.storage.idempotency import Claim
from model.checkpoint.shards import HUB_ID, CheckpointError

log = logging.getLogger("omni_r1.checkpoints")

SOURCE = "body.source"
Fetch = Callable[[str], Awaitable[Path]]


class Registration:
    """Registers and deletes checkpoints of one server."""

    def __init__(
        self,
        db: Database,
        registry: CheckpointRegistry,
        *,
        home: Home,
        fetch: Fetch,
    ) -> None:
        """`fetch` downloads a hub id and returns its folder; raises CheckpointError or Problem."""
        self._db = db
        self._registry = registry
        self._home = home
        self._fetch = fetch

    async def register(self, body: CheckpointCreate, claim: Claim) -> dict[str, Any]:
        """Register a checkpoint and return its API representation.

        Raises:
            Problem: ``path_not_allowed``, ``checkpoint_invalid``, ``checkpoint_exists``, ``hub_unavailable`` or
                ``not_ready``.
        """
        if await pools.intake.run(self._is_on_hub, body.source):
            info = await pools.files.run(self._fetched, await self._fetch_from_hub(body.source), body.name)
        else:
            info = await pools.files.run(self._local, body)
        await self._registry.pool.check(info, path=SOURCE)
        shown = await pools.writes.run(self._store, info, claim, undo=lambda _: self._forget(info.name, claim))
        log.info("checkpoint %s was registered from %s", info.name, body.source)
        return shown

    def _is_on_hub(self, source: str) -> bool:
        """Whether `source` is a hub id and no folder; also False for names that no file can have."""
        return HUB_ID.fullmatch(source) is not None and not os.path.isdir(self._home.resolve(source))

    async def _fetch_from_hub(self, hub_id: str) -> Path:
        try:
            return await self._fetch(hub_id)
        except CheckpointError as error:
            raise _invalid(error.code, error.detail) from None

    def _fetched(self, folder: Path, name: str | None) -> CheckpointInfo:
        return self._new(_named(read_folder(folder), name, "hub"))

    def _local(self, body: CheckpointCreate) -> CheckpointInfo:
        path = self._home.resolve(body.source)
        target = outside(path, self._registry.roots)
        if target is not None:
            detail = f"{target} is outside OMNI_R1_HOME and OMNI_R1_ALLOWED_ROOTS; move it, or allow its folder"
            raise field_problem("path_not_allowed", SOURCE, detail)
        if not os.path.isdir(path):
            raise _invalid("not_found", "the folder does not exist")
        return self._new(_named(read_folder(path), body.name, "local"))

    def _new(self, info: CheckpointInfo) -> CheckpointInfo:
        """`info`, if it is usable and its name is free."""
        if info.problem is not None:
            raise _invalid(info.reason, info.problem)
        if self._registry.find(info.name) is not None:
            raise table.taken(info.name)
        return info

    def shown(self, info: CheckpointInfo) -> dict[str, Any]:
        """The API's JSON of a checkpoint."""
        return as_json(info, self._registry)

    def _forget(self, name: str, claim: Claim) -> None:
        """Revert a registration whose request failed before the database answered."""
        with self._db.write() as connection:
            table.remove(connection, name)
            claim.forget(connection)

    def _store(self, info: CheckpointInfo, claim: Claim) -> dict[str, Any]:
        assert info.manifest is not None
        base, source = info.manifest.base, info.source
        record = Record(info.name, self._home.recorded(info.folder), base, None, None, None, {}, source, now())
        shown = self.shown(replace(info, record=record)) | {"benchmarks": []}  # nothing has measured it yet
        try:
            with self._db.write() as connection:
                table.add(connection, record)
                self._registry.mirror.put(connection, info.folder)
                claim.store(connection, info.name, shown)
        except IntegrityError:  # another server on this database came first
            raise table.taken(info.name) from None
        return shown

    async def delete(self, name: str, *, unload: bool) -> None:
        """Delete the checkpoint, including files that this installation created. `unload` first unloads an idle one.

        Raises:
            Problem: ``checkpoint_not_found``; ``checkpoint_in_use`` when active, loaded or the base of a live job;
                ``checkpoint_protected`` unless registered or created here.
        """
        info = await pools.files.run(self._registry.find, name)
        if info is None:
            raise Problem("checkpoint_not_found", "no checkpoint has this name; GET /v1/checkpoints lists them")
        if name == self._registry.active:
            raise Problem("checkpoint_in_use", f"{name} is active; activate another checkpoint first")
        if info.source == "package":
            raise Problem("checkpoint_protected", f"{name} came with the program")
        if info.source == "setting":
            raise Problem("checkpoint_protected", f"OMNI_R1_CHECKPOINT names {name}; start without it first")
        async with self._registry.pool.without(name, unload=unload) as is_out:
            if not is_out:
                detail = f"{name} is loaded; wait for its traces to end and delete it with unload=true"
                raise Problem("checkpoint_in_use", detail)
            await pools.files.run(self._remove, info)
        log.info("checkpoint %s was deleted", name)

    def _remove(self, info: CheckpointInfo) -> None:
        def remove(connection: Connection) -> None:
            job = table.live_job_on(connection, info.name)
            if job is not None:
                raise Problem("checkpoint_in_use", f"job {job} starts from {info.name}; wait for it or cancel it")
            table.remove(connection, info.name)
            self._registry.mirror.drop(connection, info.folder, folder=True)
            if info.source in ("home", "job") and outside(info.folder, (self._home.path,)) is None:
                self._remove_files(info.folder)

        self._db.change(remove)

    def _remove_files(self, folder: Path) -> None:
        """Move aside in one step, then delete: a crash leaves nothing that looks like a checkpoint."""
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            trash = folder.rename(self._home.tmp / f"deleted-{uuid.uuid4().hex}")
            shutil.rmtree(trash, ignore_errors=True)  # the next start empties it


def _named(info: CheckpointInfo, wanted: str | None, source: Source) -> CheckpointInfo:
    name = wanted or (info.manifest.name if info.manifest else "")
    if not re.fullmatch(CHECKPOINT_NAME, name):
        name = info.folder.name
    return replace(info, name=name, source=source)


def _invalid(reason: str | None, detail: str) -> Problem:
    problem = field_problem("checkpoint_invalid", SOURCE, detail)
    problem.members["reason"] = reason
    return problem
