"""Registers checkpoints from a folder or hub id, and deletes unused ones.

Only adapters are copied; any other folder stays where it is. All are read completely before they get a name. Knows no
HTTP; errors are :class:`app.contract.problems.Problem`.
"""

from __future__ import annotations

import asyncio
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
from app.checkpoints.adapters import copy_adapter, find_base
from app.checkpoints.folder import CheckpointInfo, Record, Source, outside, read_folder
from app.checkpoints.registry import CheckpointRegistry
from app.checkpoints.view import as_json
from app.common import pools
from app.contract.problems import Problem, field_problem
from app.contract.schemas import CHECKPOINT_NAME, CheckpointCreate
from app.storage.database import Database, now
from app.storage.home import Home
from app.storage.idempotency import Claim
from model.checkpoint.parts import is_adapter
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
        self._one_adapter = asyncio.Lock()  # is copied at a time

    async def register(self, body: CheckpointCreate, claim: Claim) -> dict[str, Any]:
        """Register a checkpoint and return its API representation.

        Raises:
            Problem: ``path_not_allowed``, ``checkpoint_invalid``, ``checkpoint_exists``, ``hub_unavailable`` or
                ``not_ready``.
        """
        source: Source = "local"
        if await pools.intake.run(self._is_on_hub, body.source):
            folder, source = await self._fetch_from_hub(body.source), "hub"
        else:
            folder = await pools.files.run(self._local, body.source)
        if await pools.files.run(is_adapter, folder):
            shown = await self._register_adapter(folder, body.name, claim)
        else:
            info = _named(await pools.files.run(read_folder, folder), body.name, source)
            await pools.files.run(self._require_new, info)
            shown = await self._check_and_store(info, claim)
        log.info("checkpoint %s was registered from %s", shown["name"], body.source)
        return shown

    async def _register_adapter(self, adapter: Path, name: str | None, claim: Claim) -> dict[str, Any]:
        """Register a copy of an adapter, which vanishes again if anything fails."""
        async with self._one_adapter:
            try:
                base = await find_base(adapter, self._registry, self._fetch)
                copied = await pools.files.run(self._copied, adapter, base, name)
            except CheckpointError as error:
                raise _invalid(error.code, error.detail) from None
            try:
                return await self._check_and_store(copied, claim)
            except BaseException:
                await pools.files.run(self._remove_files, copied.folder)
                raise

    def _copied(self, adapter: Path, base: Path, name: str | None) -> CheckpointInfo:
        if (target := self._registry.reader.outside(base)) is not None:
            raise _not_allowed(target)
        info = _named(read_folder(adapter, base=base), name, "home")
        self._require_new(info)
        return _named(read_folder(copy_adapter(adapter, base, info.name, self._home)), info.name, "home")

    async def _check_and_store(self, info: CheckpointInfo, claim: Claim) -> dict[str, Any]:
        await self._registry.pool.check(info, path=SOURCE)
        return await pools.writes.run(self._store, info, claim, undo=lambda _: self._forget(info.name, claim))

    def _is_on_hub(self, source: str) -> bool:
        """Whether `source` is a hub id and no folder; also False for names that no file can have."""
        return HUB_ID.fullmatch(source) is not None and not os.path.isdir(self._home.resolve(source))

    async def _fetch_from_hub(self, hub_id: str) -> Path:
        try:
            return await self._fetch(hub_id)
        except CheckpointError as error:
            raise _invalid(error.code, error.detail) from None

    def _local(self, source: str) -> Path:
        path = self._home.resolve(source)
        target = outside(path, self._registry.roots)
        if target is not None:
            raise _not_allowed(target)
        if not os.path.isdir(path):
            raise _invalid("not_found", "the folder does not exist")
        return path

    def _require_new(self, info: CheckpointInfo) -> None:
        """Refuse what is unusable or has the name of another checkpoint."""
        if info.problem is not None:
            raise _invalid(info.reason, info.problem)
        if self._registry.find(info.name) is not None:
            raise table.taken(info.name)

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
            Problem: ``checkpoint_not_found``; ``checkpoint_in_use`` when active, loaded or the base of a live job
                or of an adapter;
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
        if (adapter := self._registry.adapter_of(info)) is not None:
            raise Problem("checkpoint_in_use", f"{adapter} is an adapter of {info.name}; delete it first")

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


def _not_allowed(target: Path) -> Problem:
    detail = f"{target} is outside OMNI_R1_HOME and OMNI_R1_ALLOWED_ROOTS; move it, or allow its folder"
    return field_problem("path_not_allowed", SOURCE, detail)


def _invalid(reason: str | None, detail: str) -> Problem:
    problem = field_problem("checkpoint_invalid", SOURCE, detail)
    problem.members["reason"] = reason
    return problem
